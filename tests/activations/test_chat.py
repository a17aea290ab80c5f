"""Conversations through a tokenizer's chat template, and training on what some of those who speak said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tokenizer as character_tokenizer

from activations import DataConfig, Document, HarvestConfig, LanguageModel, harvest, pack_documents, stream, token_rows
from activations.chat import chat_prompt_ids, chat_tokens, why_no_chat

PLAIN = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content | trim }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MARKED = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}!{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{{ '\\n' }}{% endfor %}"
)
# drops what earlier answers thought, as templates of reasoning models do, so that beginnings are rendered differently
FORGETFUL = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if loop.last and message.role == 'assistant' %}(thought){% endif %}{{ message.content }}{{ '\\n' }}{% endfor %}"
)
STRICT = "{% if messages[-1].role == 'system' %}{{ raise_exception('no end') }}{% endif %}" + PLAIN
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": " hello\nuser "},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "bye"},
]


def chat_model(template: str | None) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer: Any = character_tokenizer()
    tokenizer.chat_template = template
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LanguageModel(LlamaForCausalLM(shape).eval(), tokenizer, name="chatty")


def said(lm: LanguageModel, messages: list[dict[str, Any]], roles: list[str]) -> str:
    """Returns the chosen tokens as text, a bar between pieces."""
    ids, chosen = chat_tokens(lm, messages, "talk", roles)
    strings = lm.token_strings(ids)
    text = "".join(string if kept else "|" for string, kept in zip(strings, chosen, strict=True))
    return "|".join(piece for piece in text.split("|") if piece)


@pytest.mark.parametrize("template", [PLAIN, FORGETFUL, STRICT], ids=["plain", "forgetful", "strict"])
def test_each_role_has_the_tokens_of_its_messages_contents(template: str) -> None:
    lm = chat_model(template)
    assert said(lm, TALK, ["assistant"]) == "hello\nuser|bye"
    assert said(lm, TALK, ["user"]) == "user|hello"
    assert said(lm, TALK, ["system"]) == "be kind"
    # the content, not the header that says the same
    ids, chosen = chat_tokens(lm, TALK, "talk", ["user"])
    assert lm.token_strings(ids)[chosen.index(True) - 1] == "]"
    assert said(lm, TALK, ["system", "user"]) == "be kind|user|hello"
    assert said(lm, TALK, []).replace("|", "") == said(lm, TALK, [])
    assert said(lm, TALK, []).startswith("[system]be kind\n[user]user\n[assistant]")


def test_marks_of_the_template_say_what_the_assistant_generates() -> None:
    lm = chat_model(MARKED)
    talk = [TALK[1], {"role": "assistant", "content": "yes"}]
    assert said(lm, talk, ["assistant"]) == "yes!"
    assert said(lm, talk, ["user"]) == "user"
    assert said(lm, talk, ["user", "assistant"]) == "user|yes!"


def test_the_ids_are_those_of_the_tokenizers_own_chats() -> None:
    lm = chat_model(PLAIN)
    expected = lm.tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert chat_tokens(lm, TALK, "talk").ids == list(expected)


def test_contents_in_parts_are_found(tmp_path: Path) -> None:
    template = (
        "{% for message in messages %}[{{ message.role }}]{% for part in message.content %}{{ part.text }}"
        "{% endfor %}.{% endfor %}"
    )
    lm = chat_model(template)
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "look"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I do"}]},
    ]
    assert said(lm, talk, ["assistant"]) == "I do"


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": TALK[1:], "id": f"t{number}"} for number in range(12)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "talks.parquet")
    return tmp_path


@pytest.mark.parametrize("file", ["talks.jsonl", "talks.parquet"])
def test_only_chosen_roles_reach_training_whatever_way_rows_take(talks: Path, file: str, tmp_path: Path) -> None:
    lm = chat_model(PLAIN)
    settings: dict[str, Any] = {"messages_column": "messages", "context_tokens": 16, "heldout_percent": 0}
    everything = token_rows(lm, DataConfig(source=str(talks / file), **settings))
    rows = token_rows(lm, DataConfig(source=str(talks / file), roles=["assistant"], **settings))
    assert np.array_equal(rows.tokens, everything.tokens)  # the model reads the same
    assert everything.kept is None
    trained = rows.trained_mask(lm.special_ids)
    text = "".join(lm.token_strings(rows.tokens[trained].tolist()))
    assert text == "hello\nuserbye" * 12
    config = HarvestConfig(dtype="float32", batch_tokens=64, shard_rows=64, buffer_rows=50)
    store = harvest(lm, rows, config, tmp_path / "store", sites=["resid_post.1"])
    whole = harvest(lm, everything, config, tmp_path / "whole", sites=["resid_post.1"])
    assert store.n_rows == trained.sum() == 12 * len("hello\nuserbye")
    assert rows.fingerprint() != everything.fingerprint()
    # the kept rows are those of the whole text at these places
    kept = torch.from_numpy(trained[everything.trained_mask(lm.special_ids)])
    read = torch.cat(list(whole.rows("resid_post.1", shuffle=False)))[kept]
    assert torch.allclose(torch.cat(list(store.rows("resid_post.1", shuffle=False))), read, atol=1e-5)
    assert sum(map(len, stream(lm, rows, "resid_post.1", config))) == store.n_rows


def test_a_slice_of_rows_keeps_its_roles(talks: Path) -> None:
    lm = chat_model(PLAIN)
    config = DataConfig(
        source=str(talks / "talks.jsonl"),
        messages_column="messages",
        roles=["user"],
        context_tokens=16,
        heldout_percent=0,
    )
    rows = token_rows(lm, config)
    assert rows.kept is not None
    some = rows[1:3]
    assert some.kept is not None
    assert np.array_equal(some.kept, rows.kept[1:3])
    chosen = rows[np.array([2, 0])]
    assert chosen.kept is not None
    assert np.array_equal(chosen.kept, rows.kept[[2, 0]])


def test_the_index_counts_chosen_roles_only(talks: Path) -> None:
    from features.index import arrange_corpus

    lm = chat_model(PLAIN)
    config = DataConfig(
        source=str(talks / "talks.jsonl"),
        messages_column="messages",
        roles=["user"],
        context_tokens=16,
        heldout_percent=0,
    )
    rows = token_rows(lm, config)
    corpus = arrange_corpus(rows, lm.special_ids, None)
    assert "".join(lm.token_strings(corpus.tokens[corpus.is_indexed].tolist())) == "userhello" * 12
    assert corpus.tokens.size == rows.n_tokens  # the others are kept as context


def test_chats_that_cannot_be_read_say_why(talks: Path, tmp_path: Path) -> None:
    lm = chat_model(PLAIN)
    source = str(talks / "talks.jsonl")
    with pytest.raises(
        ValueError, match="the tokenizer of chatty has no chat template, expected one for data.messages"
    ):
        token_rows(chat_model(None), DataConfig(source=source, messages_column="messages"))
    with pytest.raises(ValueError, match=r"talks.jsonl has no column 'mesages' \(nearest: 'messages'\)"):
        token_rows(lm, DataConfig(source=source, messages_column="mesages"))
    with pytest.raises(ValueError, match=r"talks.jsonl row 0, column 'id' holds str, expected a list of messages"):
        token_rows(lm, DataConfig(source=source, messages_column="id", heldout_percent=0))
    with pytest.raises(ValueError, match="no message has a role among asistant, expected some: correct data.roles"):
        token_rows(lm, DataConfig(source=source, messages_column="messages", roles=["asistant"], heldout_percent=0))
    with pytest.raises(ValueError, match=r"roles=\['user'\] was given for plain text, expected messages_column"):
        DataConfig(source=source, roles=["user"])
    with pytest.raises(ValueError, match="messages_column='messages' was given for the embedded text"):
        DataConfig(messages_column="messages")
    (tmp_path / "plain.txt").write_text("hello")
    with pytest.raises(
        ValueError, match=r"plain.txt is plain text and has no column 'messages', expected files with rows"
    ):
        token_rows(lm, DataConfig(source=str(tmp_path / "plain.txt"), messages_column="messages", heldout_percent=0))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"from": "human", "value": "hi"}], r"message 0 has no role \(from, value\), expected `role` and `content`"),
        (["hi"], r"message 0 has no role \(str\)"),
        ([{"role": "user", "content": 3}], "message 0 has content of type int, expected text or parts"),
        ([{"role": "user", "content": None}], "message 0 has no content, expected text"),
    ],
)
def test_malformed_messages_name_their_row(tmp_path: Path, messages: Any, reason: str) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(ValueError, match=rf"talks.jsonl row 0, column 'messages': {reason}"):
        token_rows(chat_model(PLAIN), DataConfig(source=str(file), messages_column="messages", heldout_percent=0))


def test_a_conversation_that_the_template_refuses_or_rewrites_is_named() -> None:
    refusing = chat_model("{{ raise_exception('roles must alternate') }}")
    talk = Document("talk", "", tuple(TALK[1:3]))
    with pytest.raises(
        ValueError, match=r"refuses the messages of talk \(roles must alternate\), expected a conversation"
    ):
        pack_documents([talk], refusing, 16)
    shouting = chat_model(
        "{{ messages | length }}"
        "{% for message in messages %}[{{ message.role }}]{{ message.content | upper }}{% endfor %}"
    )
    with pytest.raises(
        ValueError, match=r"message 1 of talk \(assistant\) is not found in what the chat template makes of it"
    ):
        pack_documents([talk], shouting, 16, roles=["user"])
    assert len(pack_documents([talk], shouting, 16)) > 0  # without roles nothing needs to be found


def test_a_conversation_is_answered_after_the_templates_own_opening() -> None:
    lm = chat_model(PLAIN)
    asked = [{"role": "user", "content": "hello"}]
    expected = lm.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert expected.endswith("[assistant]")
    ids = chat_prompt_ids(lm, asked)
    assert lm.tokenizer.decode(ids) == expected
    seen: list[list[int]] = []
    hook = lm.model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    try:
        answer = lm.generate(asked, max_new_tokens=3)
    finally:
        hook.remove()
    assert seen[0] == ids
    assert isinstance(answer, str)


def test_a_model_without_a_template_says_why_it_cannot_talk() -> None:
    assert why_no_chat(chat_model(PLAIN)) is None
    lm = chat_model(None)
    assert "no chat template" in str(why_no_chat(lm))
    with pytest.raises(ValueError, match="no chat template, expected a model that was trained to talk"):
        lm.generate([{"role": "user", "content": "hello"}])
    with pytest.raises(ValueError, match="message 0 has no role"):
        chat_prompt_ids(chat_model(PLAIN), [{"content": "hello"}])

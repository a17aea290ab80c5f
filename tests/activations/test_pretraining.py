"""The recipe of a small language model: its text, its resume, and the figures it reports."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from activations import pretraining
from activations.corpus import Document, standard_library
from activations.lm_quality import TrigramModel, parses_when_trimmed, token_nats
from activations.pretraining import PretrainConfig, copy_detector, lay_out_text, pretrain, train_tokenizer

TINY = PretrainConfig(
    out="",
    total_tokens=64 * 4 * 12,
    vocab_size=300,
    hidden_size=16,
    intermediate_size=32,
    layers=1,
    heads=2,
    context_tokens=64,
    batch_tokens=256,
    corpus_epochs=1,
    corpus_bytes=6_000,
    checkpoint_every_steps=5,
    compile=False,
    device="cpu",
)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is none")
def test_a_compiled_run_learns_what_an_eager_one_learns(tmp_path: Path) -> None:
    finals = []
    for name, compiled in (("eager", False), ("compiled", True)):
        pretrain(replace(TINY, out=str(tmp_path / name), compile=compiled))
        lines = (tmp_path / name / "recipe.jsonl").read_text().splitlines()
        finals.append([json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)])
    # fused kernels round bf16 elsewhere: the curves agree to about its precision
    assert finals[0] == pytest.approx(finals[1], rel=0.01)


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original, seen = pretraining._rate, []

    def rate(config: PretrainConfig, at: int) -> float:
        seen.append(at)
        if at == step:
            raise Interrupted
        return original(config, at)

    monkeypatch.setattr(pretraining, "_rate", rate)


def test_an_interrupted_pretraining_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrain(replace(TINY, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8)
        with pytest.raises(Interrupted):
            pretrain(replace(TINY, out=str(tmp_path / "cut")))
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    cut = pretrain(replace(TINY, out=str(tmp_path / "cut")))
    a, b = (load_file(result.path / "model.safetensors") for result in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert next(iter(a.values())).dtype == torch.bfloat16
    steps = [json.loads(line).get("step") for line in (cut.path / "recipe.jsonl").read_text().splitlines()]
    assert steps == [None, 0, 11, None]
    assert pretrain(replace(TINY, out=str(tmp_path / "cut"))) == cut, "a finished run is returned as it is"


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="run of another recipe"):
        pretrain(replace(TINY, out=str(tmp_path)))


def test_a_run_goes_on_only_over_the_text_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, out=str(tmp_path))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 8)
        with pytest.raises(Interrupted):
            pretrain(config)
    monkeypatch.setattr(pretraining, "standard_library", lambda *_: iter([Document("a.py", "x = 1\n" * 3000)]))
    with pytest.raises(ValueError, match="trained on other text than this machine gives now"):
        pretrain(config)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of context_tokens"):
        replace(TINY, batch_tokens=100)
    with pytest.raises(ValueError, match="less than one step"):
        replace(TINY, total_tokens=10)


def test_held_out_files_and_their_copies_stay_out_of_the_text() -> None:
    heldout = list(standard_library("heldout"))
    assert {d.name for d in heldout}.isdisjoint(d.name for d in standard_library("train"))
    is_copy = copy_detector(heldout)
    assert is_copy(Document("vendored/copy.py", "# a new header\n" + heldout[0].text))
    assert not is_copy(Document("other.py", "a_line_of_code_that_stands_nowhere_else = 1234\n"))
    assert not is_copy(Document("short.py", "x = 1\n"))


def test_the_last_pass_over_the_corpus_comes_alone_at_the_end() -> None:
    corpus = [Document(f"{i}.py", f"name_{i} = {i}\n" * 40) for i in range(10)]
    tokenizer = train_tokenizer((document.text for document in corpus), 280)
    config = replace(TINY, corpus_epochs=2, total_tokens=64 * 4 * 40)
    text = lay_out_text(config, tokenizer, corpus)
    own = text.counts["corpus_tokens"]
    assert len(text.stream) == config.steps * config.batch_tokens + 1
    tail = text.stream[-own:]
    assert sorted(tail.tolist()) == sorted(t for d in corpus for t in [0, *tokenizer.encode(d.text).ids])


def test_tokens_keep_newline_and_indentation_together_and_words_apart() -> None:
    source = "def f(self):\n        return self._name, 12345\n" * 50
    tokens = train_tokenizer([source], 400).encode(source).tokens
    assert "Ċ" + "Ġ" * 8 in tokens
    assert "Ġreturn" not in tokens, "after an indentation a word carries no space"
    assert "return" in tokens


def test_trigram_probabilities_sum_to_one_and_learn_a_pattern() -> None:
    pattern = np.tile(np.arange(5), 200)
    model = TrigramModel(pattern, vocab_size=7)
    context = np.array([0, 1])
    total = sum(math.exp(-model.token_nats(np.array([*context, token]))[-1]) for token in range(7))
    assert total == pytest.approx(1.0)
    assert model.token_nats(np.array([0, 1, 2]))[-1] < 0.05


def test_overlapping_windows_score_each_token_with_half_a_context() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, max_position_embeddings=64)
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=1, num_key_value_heads=1, **sizes)).eval()
    stream = np.random.default_rng(0).integers(0, 20, 45)
    nats = token_nats(model, stream, context_tokens=16, batch_rows=2)
    tokens = torch.from_numpy(stream)
    for target in range(1, 45):
        begin = 0 if target <= 16 else ((target - 1) // 8 - 1) * 8
        logits = model(input_ids=tokens[None, begin:target]).logits[0, -1]
        expected = -logits.log_softmax(-1)[tokens[target]].item()
        assert nats[target - 1] == pytest.approx(expected, abs=1e-5), target


@pytest.mark.parametrize(
    ("source", "accepted"),
    [
        ("def f(x):\n    return x\n", True),
        ("def f(x):\n    return x\n    y = (1,\n  2", True),
        ("def f(x):\n    return x +\n    y\n", False),
        ("def f(x):\n", False),
        ("def f(x):\n    pass\n  q\n", False),
        ("", False),
        ("def f():\n    '''open", False),
    ],
)
def test_a_completion_parses_up_to_its_last_complete_statement(source: str, accepted: bool) -> None:
    assert parses_when_trimmed(source) is accepted

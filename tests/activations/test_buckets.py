"""Padding is never computed: every token that a model is given is a token of the text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations import Document, LanguageModel, TokenRows, pack_documents
from activations.buckets import capture_tokens, length_groups
from activations.harvesting import row_batch
from sae import SAE, SAEConfig
from sae.pooling import pool_texts

TEXTS = ["a text", "another text of some length", "a text", "short", "a text that is the longest of all of them", ""]


@contextmanager
def counting(lm: LanguageModel) -> Iterator[list[int]]:
    """Counts the tokens of every forward pass; a mask would say that some of them are padding."""
    passes: list[int] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        assert kwargs.get("attention_mask") is None
        passes.append(kwargs["input_ids"].numel())

    handle = lm.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


@given(lengths=st.lists(st.integers(0, 9), max_size=30), batch_tokens=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_groups_hold_each_sequence_once_and_one_length_each(lengths: list[int], batch_tokens: int) -> None:
    seen: list[int] = []
    for length, members in length_groups(lengths, batch_tokens):
        assert all(lengths[member] == length > 0 for member in members)
        assert len(members) == 1 or len(members) * length <= batch_tokens
        seen += members.tolist()
    assert sorted(seen) == [number for number, length in enumerate(lengths) if length]


def test_the_last_packed_row_is_computed_without_its_padding(tiny_lm: LanguageModel) -> None:
    rows = pack_documents([Document("a", "some text of no round length " * 3)], tiny_lm, 32)
    assert 0 < rows.mask()[-1].sum() < 32
    masked = tiny_lm.capture(rows.torch_tokens(), torch.from_numpy(rows.mask()), ["resid_post.1"])["resid_post.1"]
    with counting(tiny_lm) as passes:
        batch = row_batch(tiny_lm, rows, ["resid_post.1"], frozenset())
    assert sum(passes) == rows.n_tokens
    kept = masked[torch.from_numpy(rows.mask())]
    assert torch.allclose(batch.values["resid_post.1"], kept, atol=1e-5)
    assert np.array_equal(batch.positions, rows.positions[rows.mask()])


def test_rows_of_any_lengths_come_back_in_their_order(tiny_lm: LanguageModel) -> None:
    lengths = [7, 3, 12, 7, 12, 1]
    generator = np.random.default_rng(0)
    tokens = generator.integers(3, 90, (6, 12)).astype(np.int32)
    real = np.arange(12) < np.array(lengths)[:, None]
    documents = np.where(real, np.arange(6)[:, None], -1).astype(np.int32)
    positions = np.where(real, np.arange(12), -1).astype(np.int32)
    rows = TokenRows(tokens, documents, positions, list("abcdef"))
    with counting(tiny_lm) as passes:
        batch = row_batch(tiny_lm, rows, ["resid_post.1", "embed"], frozenset())
    assert sum(passes) == sum(lengths)
    assert len(passes) == len(set(lengths))
    for number, length in enumerate(lengths):
        alone = tiny_lm.capture(torch.from_numpy(tokens[number : number + 1, :length]).long(), None, ["resid_post.1"])
        here = torch.from_numpy(batch.documents == number)
        assert torch.allclose(batch.values["resid_post.1"][here], alone["resid_post.1"][0], atol=1e-5)
    assert batch.values["embed"].shape == (sum(lengths), 32)


def test_rows_without_a_wanted_token_are_not_run(tiny_lm: LanguageModel) -> None:
    tokens = np.full((3, 8), 5, dtype=np.int32)
    wanted = np.zeros((3, 8), dtype=bool)
    wanted[1, 2:4] = True
    tiny_lm.site_width("embed")  # tried once on two tokens
    with counting(tiny_lm) as passes:
        values = capture_tokens(tiny_lm, tokens, np.ones_like(wanted), wanted, ["embed"])
        none = capture_tokens(tiny_lm, tokens, np.ones_like(wanted), np.zeros_like(wanted), ["embed"])
    assert passes == [8]
    assert values["embed"].shape == (2, 32)
    assert none["embed"].shape == (0, 32)


def test_labelled_texts_are_read_without_padding_and_as_if_each_were_alone(tiny_lm: LanguageModel) -> None:
    sae = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=64, k=4))
    sae.metadata["site"] = "resid_post.1"
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    texts = TEXTS * 2
    with counting(tiny_lm) as passes:
        pooled = pool_texts(tiny_lm, {"a": sae}, texts, context_tokens=30, batch_texts=4)["a"]
    limited = [min(30, len(ids)) for ids in tiny_lm.encode(texts)]
    assert sum(passes) == sum(limited)
    assert torch.equal(pooled.x[5], torch.zeros(32))
    assert bool((pooled.texts.diff() >= 0).all())
    for number in (1, 4):
        alone = pool_texts(tiny_lm, {"a": sae}, [texts[number]], context_tokens=30)["a"]
        assert torch.allclose(pooled.x[number], alone.x[0], atol=1e-5)
        chosen = torch.arange(len(texts)) == number
        assert torch.allclose(pooled.dense(chosen), alone.dense(torch.tensor([True])), atol=1e-5)

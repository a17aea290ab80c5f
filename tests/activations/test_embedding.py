"""Embedding models: pooled as their files say, the same whatever texts stand beside a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from activations.embedding import EmbeddingModel

TEXTS = ["a short one", "x", 'a longer text with "quotes"; drop table labels; <script>', "\ud800 alone", "nul\x00"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Any) -> Path:
    """A random BERT as it would be published."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    tokenizer = tiny_lm.tokenizer
    shape = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    out = tmp_path_factory.mktemp("embedder")
    BertModel(shape).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def by_hand(model: EmbeddingModel, text: str, pooling: str = "mean") -> torch.Tensor:
    ids = torch.tensor([model.tokenizer(text.encode("utf-8", "replace").decode())["input_ids"]])
    with torch.no_grad():
        states = model.model(input_ids=ids).last_hidden_state[0]
    pooled = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
    return pooled / pooled.norm()


def publish(folder: Path, tmp_path: Path, **files: Any) -> Path:
    import shutil

    out = Path(shutil.copytree(folder, tmp_path / "published"))
    for name, content in files.items():
        path = out / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(content))
    return out


def test_a_vector_is_the_mean_over_the_texts_own_tokens_whatever_stands_beside_it(folder: Path) -> None:
    model = EmbeddingModel.load(str(folder))
    found = model.embed(TEXTS)
    assert found.shape == (len(TEXTS), 32)
    for text, vector in zip(TEXTS, found, strict=True):
        assert torch.allclose(vector, by_hand(model, text), atol=1e-6)
        assert torch.allclose(vector, model.embed([text])[0], atol=1e-6)
    assert model.embed([]).shape == (0, 32)
    with pytest.raises(ValueError, match=r"text 1 \(''\) has no tokens"):
        model.embed(["a", ""])


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": 32}, "last"),
        ({"pooling_mode": "cls"}, "first"),
    ],
)
def test_the_pooling_is_that_of_the_folder(
    folder: Path, tmp_path: Path, settings: dict[str, Any], pooling: str
) -> None:
    model = EmbeddingModel.load(str(publish(folder, tmp_path, **{"1_Pooling__config": settings})))
    assert torch.allclose(model.embed(TEXTS[:3])[2], by_hand(model, TEXTS[2], pooling), atol=1e-6)


def test_longer_texts_are_cut_where_the_folder_says(folder: Path, tmp_path: Path) -> None:
    model = EmbeddingModel.load(str(publish(folder, tmp_path, sentence_bert_config={"max_seq_length": 5})))
    assert torch.allclose(model.embed(["abcdefgh"])[0], by_hand(model, "abcde"), atol=1e-6)
    whole = EmbeddingModel.load(str(folder))
    assert whole.max_tokens == 64
    assert torch.isfinite(whole.embed(["word " * 1000])).all()


def test_what_is_not_known_is_refused(folder: Path, tmp_path: Path) -> None:
    steps = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense"}]
    with pytest.raises(ValueError, match="has a step 'Dense', expected only"):
        EmbeddingModel.load(str(publish(folder, tmp_path / "a", modules=steps)))
    settings = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    with pytest.raises(ValueError, match="pools by mean_tokens and max_tokens, expected one of"):
        EmbeddingModel.load(str(publish(folder, tmp_path / "b", **{"1_Pooling__config": settings})))
    with pytest.raises(FileNotFoundError, match="no model folder at"):
        EmbeddingModel.load("./nowhere")


def test_the_embedded_language_model_embeds_too() -> None:
    vectors = EmbeddingModel.load("embedded", device="cpu").embed(["import os", "import sys", "It was a dark night."])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]

"""Models that do not fit one device: spread by accelerate, quantised while loading."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from families import tokenizer as character_tokenizer

from activations import Document, HarvestConfig, LanguageModel, ModelConfig, pack_documents, stream

SITES = ["resid_post.0", "head_out.1", "mlp_act.1", "resid_mid.1"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build("llama", torch.float32).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(saved: Path) -> LanguageModel:
    return LanguageModel.load(str(saved), device="cpu")


@pytest.fixture(scope="module")
def spread(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Embedding and first layer in memory, the rest on disk."""
    layers = len(build("llama", torch.float32).model.layers)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "disk", "model.rotary_emb": "cpu"}
    places |= {f"model.layers.{layer}": "disk" for layer in range(1, layers)} | {"lm_head": "disk"}
    offload = tmp_path_factory.mktemp("offload")
    return LanguageModel.load(str(saved), device_map=places, offload_folder=str(offload))


def test_a_model_partly_on_disk_computes_what_it_computes_whole(whole: LanguageModel, spread: LanguageModel) -> None:
    assert any(parameter.is_meta for parameter in spread.model.parameters())
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    assert torch.equal(spread.logits(tokens), whole.logits(tokens))
    ours, theirs = (lm.capture(tokens, None, SITES) for lm in (spread, whole))
    assert all(torch.equal(ours[site], theirs[site]) for site in SITES)
    assert {value.device for value in ours.values()} == {spread.device} == {torch.device("cpu")}
    # a pass that stopped early leaves nothing behind
    assert torch.equal(spread.logits(tokens), whole.logits(tokens))
    edit = {"resid_post.1": lambda x: x * 2}
    with whole.intervene(edit):
        wanted = whole.logits(tokens)
    with spread.intervene(edit):
        assert torch.equal(spread.logits(tokens), wanted)


def test_a_spread_model_is_known_by_the_same_hash_and_directions(whole: LanguageModel, spread: LanguageModel) -> None:
    assert spread.weight_hash() == whole.weight_hash()
    assert torch.equal(spread.logit_directions(), whole.logit_directions())


def test_rows_of_a_spread_model_stream_into_training(whole: LanguageModel, spread: LanguageModel) -> None:
    rows = pack_documents([Document("a", "abc def " * 40)], whole, 16)
    config = HarvestConfig(dtype="float32", batch_tokens=64, buffer_rows=100)
    ours, theirs = (torch.cat(list(stream(lm, rows, "resid_post.1", config))) for lm in (spread, whole))
    assert torch.equal(ours, theirs)


def test_placement_that_cannot_work_is_refused_at_once(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"device=cpu and device_map='auto' were given, expected one of them"):
        ModelConfig(device="cpu", device_map="auto")
    with pytest.raises(ValueError, match="device_map puts modules on disk and offload_folder is not given"):
        ModelConfig(device_map={"model": "disk"})


def test_quantisation_without_its_library_is_one_clear_line(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def absent(name: str, *more: Any) -> Any:
        return None if name == "bitsandbytes" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(
        ValueError, match=r"model.quantization=4bit needs the package bitsandbytes.*pip install"
    ) as caught:
        LanguageModel.load(str(saved), quantization="4bit")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("asked", "field"), [("8bit", "load_in_8bit"), ("4bit", "load_in_4bit")])
def test_quantisation_is_handed_to_transformers(
    saved: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, field: str
) -> None:
    import transformers

    from activations import loading

    given: dict[str, Any] = {}

    class Settings:
        def __init__(self, **chosen: bool) -> None:
            given.update(chosen)

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", Settings)
    placed = loading._placement(ModelConfig(quantization=asked), torch.device("cpu"))
    assert [name for name, chosen in given.items() if chosen] == [field]
    assert isinstance(placed["quantization_config"], Settings)
    assert placed["device_map"] == {"": "cpu"}

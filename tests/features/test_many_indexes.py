"""Many SAEs from one pass: each dictionary is, byte for byte, the one that its SAE gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import features.index
from features import Dictionary, build_index, build_indexes
from sae import SAE, SAEConfig

KINDS = (
    ("topk", ["resid_post.1"], 96),
    ("jumprelu", ["resid_post.0"], 64),
    ("crosscoder", ["resid_post.0", "resid_post.2"], 40),
    ("transcoder", ["mlp_in.1"], 48),
)


def sae_of(lm: Any, architecture: str, sites: list[str], d_sae: int, seed: int = 0) -> SAE:
    d = 32
    extra = {"n_sites": len(sites)} if len(sites) > 1 else {}
    k = {} if architecture == "jumprelu" else {"k": 5}
    sae = SAE(SAEConfig(architecture=architecture, d_in=d, d_sae=d_sae, **k, **extra))  # pyright: ignore
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.tensors.items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            if name == "threshold":
                tensor.abs_()
    sae.metadata.update(sites=sites, site=sites[0], model_weight_hash=lm.weight_hash(), name=architecture)
    if architecture == "transcoder":
        sae.metadata["target_sites"] = ["mlp_out.1"]
    return sae


@pytest.fixture(scope="module")
def saes(tiny_lm: Any) -> list[SAE]:
    return [sae_of(tiny_lm, *kind, seed) for seed, kind in enumerate(KINDS)]


def build_files(dictionary: Dictionary) -> dict[str, dict[str, Any]]:
    return dictionary.info["files"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any, tiny_lm: Any, rows: Any, saes: list[SAE], config: Any) -> list[dict[str, Any]]:
    """Files, with their hashes, of the dictionaries built one by one."""
    folder = tmp_path_factory.mktemp("alone")
    return [build_files(build_index(sae, tiny_lm, rows, folder / str(place), config)) for place, sae in enumerate(saes)]


def counted(lm: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Sites of every call of the model's capture that reads for an SAE, as they come."""
    calls: list[tuple[str, ...]] = []
    capture = type(lm).capture

    def counts(self: Any, tokens: Any, mask: Any, sites: Any) -> Any:
        if list(sites) != [self.final_site]:  # a sample of it gives the final norm's effect on logits
            calls.append(tuple(sites))
        return capture(self, tokens, mask, sites)

    monkeypatch.setattr(type(lm), "capture", counts)
    return calls


def test_one_pass_gives_the_files_of_many_and_runs_the_model_once_for_each_batch(
    tmp_path: Path, tiny_lm: Any, rows: Any, saes: list[SAE], config: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(tiny_lm, monkeypatch)
    outs = [tmp_path / str(place) for place in range(len(saes))]
    opened = build_indexes(saes, tiny_lm, rows, outs, config, names=["a", "b", "c", "d"])
    for dictionary, wanted in zip(opened, alone, strict=True):
        assert build_files(dictionary) == wanted
        dictionary.verify()
    assert [dictionary.name for dictionary in opened] == ["a", "b", "c", "d"]
    one_pass = list(calls)
    calls.clear()
    build_index(saes[0], tiny_lm, rows, tmp_path / "single", config)
    assert len(one_pass) == len(calls) > 5
    assert set(one_pass) == {("resid_post.1", "resid_post.0", "resid_post.2", "mlp_in.1")}
    calls.clear()
    again = build_indexes(saes, tiny_lm, rows, outs, config)
    assert not calls, "finished dictionaries are returned as they are"
    assert [d.info["created"] for d in again] == [d.info["created"] for d in opened]


def test_each_dictionary_of_a_killed_pass_goes_on_from_what_it_has(
    tmp_path: Path, tiny_lm: Any, rows: Any, saes: list[SAE], config: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(features.index.EventSpill):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, chunk_events=2500)

    encode = features.index.encode_events

    def dies(*given: Any) -> Any:
        for number, batch in enumerate(encode(*given)):
            if number == 6:
                raise KeyboardInterrupt
            yield batch

    outs = [tmp_path / str(place) for place in range(len(saes))]
    build_index(saes[1], tiny_lm, rows, outs[1], config)
    monkeypatch.setattr(features.index, "EventSpill", Small)
    monkeypatch.setattr(features.index, "encode_events", dies)
    with pytest.raises(KeyboardInterrupt):
        build_indexes(saes, tiny_lm, rows, outs, config)
    monkeypatch.setattr(features.index, "encode_events", encode)
    held = [len(list(out.glob("build-*/spill/chunk-*"))) for out in outs]
    assert held[0] > 0
    assert held[1] == 0, "this one was finished before"
    assert len(set(held)) > 1, "they stop at different places"
    calls = counted(tiny_lm, monkeypatch)
    opened = build_indexes(saes, tiny_lm, rows, outs, config)
    assert [build_files(dictionary) for dictionary in opened] == alone
    batches = -(-len(rows.tokens) // 4)
    assert 0 < len(calls) <= batches


def test_a_folder_for_two_dictionaries_and_lists_of_other_lengths_are_refused(
    tmp_path: Path, tiny_lm: Any, rows: Any, saes: list[SAE], config: Any
) -> None:
    with pytest.raises(ValueError, match="is given for two dictionaries, expected a folder for each"):
        build_indexes(saes[:2], tiny_lm, rows, [tmp_path / "a", tmp_path / "b" / ".." / "a"], config)
    with pytest.raises(ValueError, match="got 2 SAEs, 1 folders and 2 names"):
        build_indexes(saes[:2], tiny_lm, rows, [tmp_path / "a"], config)
    with pytest.raises(ValueError, match="got 0 SAEs"):
        build_indexes([], tiny_lm, rows, [], config)
    assert not any(tmp_path.iterdir())


def test_one_foreign_folder_stops_all_before_anything_is_written(
    tmp_path: Path, tiny_lm: Any, rows: Any, saes: list[SAE], config: Any
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        build_indexes(saes[:2], tiny_lm, rows, [tmp_path / "a", tmp_path / "b"], config)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk", "p_anneal"])
def test_kinds_of_training_are_refused_before_the_text_is_read(
    kind: str, tmp_path: Path, tiny_lm: Any, rows: Any, saes: list[SAE], config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = {} if kind == "p_anneal" else {"k": 5}
    unfinished = SAE(SAEConfig(architecture=kind, d_in=32, d_sae=40, **extra))  # pyright: ignore
    unfinished.metadata.update(sites=["resid_post.1"], site="resid_post.1")
    calls = counted(tiny_lm, monkeypatch)
    with pytest.raises(ValueError, match=f"`{kind}` is a kind of training.*expected a finished one"):
        build_indexes([saes[0], unfinished], tiny_lm, rows, [tmp_path / "a", tmp_path / "b"], config)
    assert calls == []
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is a kind of training"):
        unfinished.save(tmp_path / "sae")
    assert not any(tmp_path.iterdir())


def test_the_way_to_the_logits_is_computed_once_for_all(
    tmp_path: Path, tiny_lm: Any, rows: Any, saes: list[SAE], config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = type(tiny_lm).normed_logit_directions
    monkeypatch.setattr(type(tiny_lm), "normed_logit_directions", lambda self, x: asked.append(len(x)) or real(self, x))
    for opened in build_indexes(saes[:2], tiny_lm, rows, [tmp_path / "a", tmp_path / "b"], config):
        assert opened.sql("select count(*) as n from normed_logits")["n"][0].as_py() > 0
        opened.close()
    assert len(asked) == 1

"""An SAE on disk is a SAELens folder and comes back the same; damaged and foreign folders are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import SAE, Codes, SAEConfig
from sae.formats import saelens_hook


@pytest.fixture
def sae() -> SAE:
    made = SAE(
        SAEConfig(architecture="topk", d_in=12, d_sae=40, k=4), {"site": "resid_post.3", "model_name": "embedded"}
    )
    for value in (made.W_enc, made.W_dec, made.b_enc, made.b_dec):
        torch.nn.init.normal_(value, std=0.4)
    return made


def test_saved_and_loaded_it_is_the_same(sae: SAE, tmp_path: Path) -> None:
    sae.metadata["density"] = [0.0] + [0.25] * 39
    sae.save(tmp_path / "s", format="saelens")
    again = SAE.load(tmp_path / "s")
    x = torch.randn(30, 12)
    assert torch.equal(again(x), sae(x))
    assert again.site == "resid_post.3"
    assert again.metadata["density"] == pytest.approx(sae.metadata["density"])


def test_the_folder_has_the_fields_and_shapes_of_saelens_6(sae: SAE, tmp_path: Path) -> None:
    sae.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    required = {"architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
                "reshape_activations", "k", "rescale_acts_by_decoder_norm", "metadata"}  # fmt: skip
    assert required <= set(config)
    assert (config["architecture"], config["k"], config["normalize_activations"]) == ("topk", 4, "none")
    assert config["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    weights = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "W_enc": (12, 40),
        "W_dec": (40, 12),
        "b_enc": (40,),
        "b_dec": (12,),
    }
    x = torch.randn(7, 12)  # the reconstruction as SAELens computes it from these files
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    top = pre.topk(4)
    dense = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(dense @ weights["W_dec"] + weights["b_dec"], sae(x).detach())


def test_codes_hold_at_most_k_positive_values_and_pad_the_rest(sae: SAE) -> None:
    sae.b_enc.data -= 1.5
    codes = sae.encode(torch.randn(200, 12))
    assert codes.values.shape == codes.indices.shape == (200, 4)
    padding = codes.indices == -1
    assert padding.any()
    assert (codes.values[padding] == 0).all()
    assert (codes.values[~padding] > 0).all()
    dense = codes.to_dense()
    assert dense.shape == (200, 40)
    torch.testing.assert_close(dense @ sae.W_dec + sae.b_dec, sae.decode(codes))


def test_decode_is_differentiable_in_values_and_weights(sae: SAE) -> None:
    values = torch.rand(3, 2, requires_grad=True)
    sae.decode(Codes(values, torch.tensor([[0, 1], [2, 2], [5, -1]]), 40)).sum().backward()
    torch.testing.assert_close(values.grad[0, 1], sae.W_dec[1].sum())
    assert sae.W_dec.grad is not None


def test_no_rows_give_no_codes(sae: SAE) -> None:
    assert sae(torch.zeros(0, 12)).shape == (0, 12)


def test_rows_of_another_shape_are_refused(sae: SAE) -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 5\), expected \[n, 12\]"):
        sae.encode(torch.randn(4, 5))


def test_missing_folder_and_missing_files_are_named(sae: SAE, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no SAE folder at"):
        SAE.load(tmp_path / "nowhere")
    sae.save(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds cfg\.json, expected cfg\.json and sae_weights"):
        SAE.load(tmp_path)


def test_truncated_weights_are_named(sae: SAE, tmp_path: Path) -> None:
    sae.save(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        SAE.load(tmp_path)


def test_wrong_shapes_and_non_finite_weights_are_named(sae: SAE, tmp_path: Path) -> None:
    sae.save(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    weights = load_file(file)
    save_file({**weights, "W_enc": weights["W_dec"].clone()}, file)
    with pytest.raises(ValueError, match=r"W_enc of shape \(40, 12\), expected \(12, 40\)"):
        SAE.load(tmp_path)
    save_file({**weights, "b_dec": torch.full((12,), float("nan"))}, file)
    with pytest.raises(ValueError, match="b_dec holds non-finite values"):
        SAE.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "unheard_of"}, "architecture `unheard_of` is not available"),
        ({"normalize_activations": "whitening"}, "says normalize_activations='whitening'"),
        ({"d_in": None}, "lacks 'd_in'"),
    ],
)
def test_configs_that_cannot_be_honoured_are_refused(sae: SAE, tmp_path: Path, change: dict, message: str) -> None:
    sae.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text()) | change
    (tmp_path / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        SAE.load(tmp_path)


def test_damaged_json_and_unknown_formats_are_named(sae: SAE, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format `onnx` cannot be written"):
        sae.save(tmp_path, format="onnx")
    sae.save(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        SAE.load(tmp_path)


def test_an_sae_without_a_site_says_so() -> None:
    with pytest.raises(ValueError, match="names no site"):
        _ = SAE(SAEConfig(architecture="topk", d_in=2, d_sae=2, k=1)).site


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("resid_pre.0", "blocks.0.hook_resid_pre"),
        ("mlp_act.2", "blocks.2.mlp.hook_post"),
        ("embed", "hook_embed"),
        ("model.layers.1", "model.layers.1"),
        (None, None),
    ],
)
def test_sites_translate_to_hook_names(site: str | None, hook: str | None) -> None:
    assert saelens_hook(site) == hook


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(d_in=4, d_sae=8), "needs k"),
        (dict(d_in=4, d_sae=8, k=9), "between 1 and d_sae=8"),
        (dict(d_in=0, d_sae=8, k=1), "must be positive"),
        (dict(d_in=4, d_sae=8, k=1, auxk_alpha=-1.0), "must not be negative"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAEConfig(**settings)

"""Every project's SAEs reconstruct here what they reconstruct there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import CASES
from foreign.forward import dictionary_learning_forward, saelens_forward, sparsify_forward
from foreign.making import D, F, Foreign
from own_saes import OURS, load, one_line, ours

from sae import SAE, formats
from sae.formats import finding

Case = Callable[[Path], Foreign]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
def test_it_reconstructs_what_its_own_project_does(case: Case, tmp_path: Path) -> None:
    made = case(tmp_path)
    sae = load(made)
    # float32: folds and another order of sums leave a few units in the last place of the largest value
    torch.testing.assert_close(
        sae(made.x).detach(), made.expected, rtol=1e-5, atol=1e-5 * made.expected.abs().max().item()
    )
    active = sae.encode(made.x).active.float().sum(1).mean() / sae.config.d_sae
    assert 0.02 < active < 0.98, "the case must not be trivial"


@every_case
def test_what_it_is_and_where_it_belongs_is_understood(case: Case, tmp_path: Path) -> None:
    made = case(tmp_path)
    sae = load(made)
    assert sae.config.architecture == made.architecture
    assert sae.metadata.get("site") == made.site
    for name, value in made.known.items():
        got = sae.metadata.get(name)
        assert got == (pytest.approx(value, abs=1e-8) if name == "density" else value), name
    json.dumps(sae.metadata)  # plain JSON, as the native layout needs


@every_case
def test_it_comes_back_from_the_native_layout(case: Case, tmp_path: Path) -> None:
    made = case(tmp_path / "theirs")
    sae = load(made)
    again = SAE.load(sae.save(tmp_path / "ours"))
    torch.testing.assert_close(again(made.x), sae(made.x), rtol=1e-6, atol=1e-6)
    assert again.config == sae.config
    for name in ("site", "sites", "target_sites", "model_name", "data"):
        assert again.metadata.get(name) == sae.metadata.get(name)


def test_row_i_is_latent_i_whatever_the_file_says(tmp_path: Path) -> None:
    for name, transposed in (("saelens_jumprelu", True), ("dl_autoencoder", False), ("gemma_residual", True)):
        made = CASES[name](tmp_path / name)
        sae = load(made)
        file = next(path for path in sorted(made.path.rglob("*")) if path.suffix in (".safetensors", ".pt", ".npz"))
        stored = formats.files.read_tensors(file)
        encoder = stored.get("W_enc", stored.get("encoder.weight"))
        assert encoder is not None
        torch.testing.assert_close(sae.W_enc[7].detach(), encoder[:, 7] if transposed else encoder[7])
        assert sae.W_enc.shape == sae.W_dec.shape == (F, D)


def test_a_scale_that_no_file_gives_must_be_given(tmp_path: Path) -> None:
    made = CASES["saelens_scale_given"](tmp_path)
    with pytest.raises(ValueError, match=r"no activation_scaler\.json gives the scale: give input_scale") as error:
        SAE.load(made.path)
    one_line(error.value)
    with pytest.raises(ValueError, match=r"has 2 values, expected one positive number or one for each of 1 sites"):
        SAE.load(made.path, input_scale=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"input_scale=-1.0 has 1 values, expected one positive number"):
        SAE.load(made.path, input_scale=-1.0)


def test_matching_pursuit_keeps_its_dictionary_under_a_scale(tmp_path: Path) -> None:
    made, scale = CASES["saelens_matching_pursuit"](tmp_path), 0.5
    sae = SAE.load(made.path)
    scaled = SAE.load(made.path, input_scale=scale)
    torch.testing.assert_close(scaled(made.x / scale) * scale, sae(made.x), rtol=1e-5, atol=1e-5)


WRITTEN = {
    "saelens": set(OURS) - {"topk_transcoder", "topk_skip_transcoder", "crosscoder", "jumprelu_crosscoder", "clt"},
    "dictionary_learning": {
        "standard", "standard_plain", "gated", "gated_plain", "topk", "topk_plain", "jumprelu", "jumprelu_plain",
    },
    "sparsify": {"topk", "topk_plain", "topk_transcoder", "topk_skip_transcoder"},
}  # fmt: skip
"""What each project has, so that it opens there."""
THEIRS = {
    "saelens": saelens_forward,
    "dictionary_learning": dictionary_learning_forward,
    "sparsify": sparsify_forward,
}


@pytest.mark.parametrize(("format", "name"), [(f, name) for f, names in WRITTEN.items() for name in sorted(names)])
def test_what_we_write_reconstructs_the_same_there_and_back_here(format: str, name: str, tmp_path: Path) -> None:
    sae, x = ours(name)
    path = sae.save(tmp_path / "out", format=format)
    expected = sae(x).detach()
    tolerance: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5 * expected.abs().max().item()}
    torch.testing.assert_close(THEIRS[format](path, x), expected, **tolerance)
    again = SAE.load(path)
    torch.testing.assert_close(again(x).detach(), expected, **tolerance)
    assert again.config.architecture == sae.config.architecture
    assert again.metadata["site"] == sae.metadata["site"]
    assert again.metadata["model_name"] == "EleutherAI/pythia-70m"
    assert again.metadata["data"]["context_tokens"] == 64
    assert again.metadata.get("target_sites") == sae.metadata.get("target_sites")


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_architecture_comes_back_bit_for_bit_from_the_native_layout(name: str, tmp_path: Path) -> None:
    sae, x = ours(name)
    again = SAE.load(sae.save(tmp_path / "s"))
    assert torch.equal(again(x), sae(x))
    assert (again.config.architecture, again.config.k, again.config.mechanism, again.config.subtracts_b_dec) == (
        sae.config.architecture, sae.config.k, sae.config.mechanism, sae.config.subtracts_b_dec,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(OURS) - WRITTEN["saelens"]))
def test_what_saelens_lacks_has_a_name_that_saelens_refuses(name: str, tmp_path: Path) -> None:
    sae, x = ours(name)
    with pytest.raises(AssertionError, match="SAELens"):
        saelens_forward(sae.save(tmp_path / "s"), x)


@pytest.mark.parametrize(
    ("format", "name"),
    [(f, name) for f in ("dictionary_learning", "sparsify") for name in sorted(set(OURS) - WRITTEN[f])],
)
def test_what_a_format_cannot_express_is_refused_and_leaves_nothing(format: str, name: str, tmp_path: Path) -> None:
    sae, _ = ours(name)
    with pytest.raises(
        ValueError, match=rf"{format} (has no|cannot express|writes).*write the SAE as saelens"
    ) as error:
        sae.save(tmp_path / "out", format=format)
    one_line(error.value)
    assert not (tmp_path / "out").exists()


def test_the_native_config_has_the_fields_of_each_architecture(tmp_path: Path) -> None:
    fields: dict[str, dict[str, Any]] = {}
    for name in OURS:
        ours(name)[0].save(tmp_path / name)
        fields[name] = json.loads((tmp_path / name / "cfg.json").read_text())
    common = {"architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
              "reshape_activations", "metadata"}  # fmt: skip
    assert all(common <= set(content) for content in fields.values())
    assert fields["topk"]["k"] == 4
    assert fields["topk"]["rescale_acts_by_decoder_norm"] is False
    assert fields["transcoder"]["d_out"] == 8
    assert fields["jumprelu_skip_transcoder"]["architecture"] == "jumprelu_skip_transcoder"
    assert fields["matching_pursuit"]["residual_threshold"] == 0.2
    metadata = fields["transcoder"]["metadata"]
    assert (metadata["hook_name"], metadata["hook_name_out"]) == ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
    assert (metadata["context_size"], metadata["prepend_bos"], metadata["dataset_path"]) == (64, False, "corpus.txt")


def test_sparsify_names_the_folder_after_the_module(tmp_path: Path) -> None:
    ours("topk")[0].save(tmp_path / "sae", format="sparsify")
    ours("topk_transcoder")[0].save(tmp_path / "transcoder", format="sparsify")
    assert (tmp_path / "sae" / "layers.3" / "cfg.json").is_file()
    assert (tmp_path / "transcoder" / "layers.3.mlp" / "cfg.json").is_file()
    assert json.loads((tmp_path / "sae" / "config.json").read_text())["model"] == "EleutherAI/pythia-70m"


def test_a_new_density_replaces_the_old_one(tmp_path: Path) -> None:
    sae, _ = ours("topk")
    sae.metadata["density"] = [0.5] * F
    sae.save(tmp_path)
    del sae.metadata["density"]
    assert "density" not in SAE.load(sae.save(tmp_path)).metadata


def test_a_foreign_sae_is_converted_to_a_new_folder(tmp_path: Path) -> None:
    made = CASES["dl_topk"](tmp_path / "theirs")
    path = formats.convert(made.path, tmp_path / "deep" / "ours", "saelens")
    torch.testing.assert_close(SAE.load(path)(made.x), load(made)(made.x))
    assert formats.recognise(made.path) == "dictionary_learning"
    assert formats.recognise(path) == "saelens"
    with pytest.raises(ValueError, match="exists, expected a new folder"):
        formats.convert(made.path, path, "saelens")
    with pytest.raises(
        ValueError, match="format `onnx` cannot be written, expected one of saelens, dictionary_learning"
    ):
        formats.convert(made.path, tmp_path / "x", "onnx")
    with pytest.raises(ValueError, match="sparsify has no architecture `gated`"):
        formats.convert(CASES["dl_gated"](tmp_path / "gated").path, tmp_path / "y", "sparsify")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_the_page_of_formats_names_every_one_that_is_read_and_written() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows_by_name = {line.split("`")[1]: line.split("|") for line in page.splitlines() if line.startswith("| `")}
    known = {name for name, *_ in (*finding._FOLDERS, *finding._FILES)}
    assert known <= set(rows_by_name)
    assert {name for name in known if rows_by_name[name][4].strip()} == set(formats.FORMATS)

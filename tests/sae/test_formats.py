"""Every project's SAEs reconstruct here what they reconstruct there, and a damaged file is one line."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from foreign import CASES, D, F, Foreign, rows
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from sae import SAE, SAEConfig, formats
from sae.formats import finding, hooks

Case = Callable[[Path], Foreign]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def load(made: Foreign) -> SAE:
    return SAE.load(made.path, **made.options)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message
    assert "\n" not in message, message
    return message


# ---- reading ---------------------------------------------------------------------------------------------------------


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


# ---- writing ---------------------------------------------------------------------------------------------------------

OURS: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard_plain": {"architecture": "standard", "apply_b_dec_to_input": False},
    "gated": {},
    "gated_plain": {"architecture": "gated", "apply_b_dec_to_input": False},
    "topk": {"k": 4},
    "topk_plain": {"architecture": "topk", "k": 4, "apply_b_dec_to_input": False},
    "topk_layer_norm": {"architecture": "topk", "k": 4, "normalize_activations": "layer_norm"},
    "standard_constant_norm": {"architecture": "standard", "normalize_activations": "constant_norm_rescale"},
    "abstopk": {"k": 4},
    "jumprelu": {},
    "jumprelu_plain": {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    "matching_pursuit": {"residual_threshold": 0.2},
    "transcoder": {"activation": "relu", "d_out": 8},
    "jumprelu_transcoder": {"architecture": "transcoder", "activation": "jumprelu", "d_out": 8},
    "topk_transcoder": {"architecture": "transcoder", "activation": "topk", "k": 4},
    "skip_transcoder": {"activation": "relu", "d_out": 8},
    "jumprelu_skip_transcoder": {"architecture": "skip_transcoder", "activation": "jumprelu", "d_out": 8},
    "topk_skip_transcoder": {"architecture": "skip_transcoder", "activation": "topk", "k": 4},
    "crosscoder": {"activation": "relu", "n_sites": 2},
    "jumprelu_crosscoder": {"architecture": "crosscoder", "activation": "jumprelu", "n_sites": 2},
    "clt": {"activation": "topk", "k": 4, "n_sites": 2},
}
"""Every kind of SAE that we have, by name."""
WRITTEN = {
    "saelens": set(OURS) - {"topk_transcoder", "topk_skip_transcoder", "crosscoder", "jumprelu_crosscoder", "clt"},
    "dictionary_learning": {
        "standard", "standard_plain", "gated", "gated_plain", "topk", "topk_plain", "jumprelu", "jumprelu_plain",
    },
    "sparsify": {"topk", "topk_plain", "topk_transcoder", "topk_skip_transcoder"},
}  # fmt: skip
"""What each project has, so that it opens there."""
THEIRS = {
    "saelens": foreign.saelens_forward,
    "dictionary_learning": foreign.dictionary_learning_forward,
    "sparsify": foreign.sparsify_forward,
}


def ours(name: str) -> tuple[SAE, torch.Tensor]:
    """An SAE of ours with random weights, and rows for it."""
    settings = {"architecture": name, "normalize_activations": "none", **OURS[name]}
    config = SAEConfig(d_in=D, d_sae=F, **settings)
    data = {"source": "corpus.txt", "context_tokens": 64, "prepend_bos": False}
    metadata: dict[str, Any] = {"site": "resid_post.3", "model_name": "EleutherAI/pythia-70m", "data": data}
    if config.predicts_target and config.n_sites == 1:
        metadata |= {"site": "mlp_in.3", "target_sites": ["mlp_out.3"]}
    sae = SAE(config, metadata)
    generator = torch.Generator().manual_seed(0)
    for tensor_name, value in sae.named_parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.5
        if tensor_name == "threshold":
            value.data = value.data.abs() * 3
    if name == "matching_pursuit":
        sae.W_dec.data = torch.nn.functional.normalize(sae.W_dec.data, dim=1)
        sae.W_enc.data = sae.W_dec.data.clone()
    if name == "clt":
        sae.W_dec.data[F // 2 :, :D] = 0
    return sae, rows(foreign.N, 2, D) if config.n_sites == 2 else rows()


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
        foreign.saelens_forward(sae.save(tmp_path / "s"), x)


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


# ---- refusals --------------------------------------------------------------------------------------------------------


def weight_files(made: Foreign) -> list[Path]:
    """The tensor files that belong to a case (not those of the SAEs beside it)."""
    root = made.path if made.path.is_dir() else made.path.parent
    chosen = root / made.options["subfolder"] if "subfolder" in made.options else made.path
    if chosen.is_dir():
        found = [path for path in chosen.rglob("*") if path.suffix in (".safetensors", ".pt", ".pth", ".npz")]
    else:
        found = [path for path in root.iterdir() if path.name.split(".")[0] == chosen.name.split(".")[0]]
    return [path for path in found if path.name != "sparsity.safetensors"]


@every_case
def test_a_file_cut_off_anywhere_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    made = case(tmp_path)
    for file in weight_files(made):
        whole = file.read_bytes()
        for length in (0, 1, 3, 7, 9, 60, len(whole) // 3, len(whole) * 2 // 3, len(whole) - 30, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=str(file.name)) as error:
                load(made)
            assert "copy" in one_line(error.value)
        file.write_bytes(whole)
    load(made)


@every_case
def test_a_config_cut_off_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    made = case(tmp_path)
    folder = made.path if made.path.is_dir() else made.path.parent
    for file in (path for path in sorted(folder.rglob("*.json")) if path.name != "activation_scaler.json"):
        chosen = made.options.get("subfolder")
        if chosen and file.parent != folder and not file.is_relative_to(folder / chosen):
            continue
        whole = file.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="is no JSON") as error:
                load(made)
            one_line(error.value)
        file.write_bytes(whole)


IGNORED = {
    "stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "k", "group_sizes", "target_rms",
    "activation_global_scale", "code_normalization_id",
}  # fmt: skip


def tensors_of(file: Path) -> dict[str, Any]:
    content = formats.files.read_tensors(file)
    return content.get("ae", content)


def rewrite(file: Path, name: str, value: Any) -> None:
    """Replaces one tensor of a file, wherever it is in it."""
    if file.suffix == ".npz":
        arrays = {key: tensor.numpy() for key, tensor in tensors_of(file).items()}
        np.savez(file, **(arrays | {name: value.numpy()}))
    elif file.suffix == ".safetensors":
        save_file(load_file(file) | {name: value.contiguous()}, file)
    else:
        content = torch.load(file, weights_only=True)
        content.get("ae", content)[name] = value
        torch.save(content, file)


@every_case
def test_every_tensor_of_another_shape_is_refused(case: Case, tmp_path: Path) -> None:
    made = case(tmp_path)
    for file in weight_files(made):
        for name, tensor in tensors_of(file).items():
            unused = case is foreign.openmoss_token_wise and name.startswith("dataset_average")
            if unused or name.removeprefix("_orig_mod.") in IGNORED or not isinstance(tensor, torch.Tensor):
                continue
            original = tensor.clone()
            for other in [original[:-1] if original.ndim else torch.zeros(2), original[None]]:
                rewrite(file, name, other)
                with pytest.raises(ValueError, match="expected") as error:
                    load(made)
                one_line(error.value)
            rewrite(file, name, original)
    load(made)


@pytest.mark.parametrize(
    "name", ["saelens_jumprelu", "dl_gated", "gemma_residual", "circuit_clt", "goodfire", "openai_topk"]
)
def test_values_that_are_no_numbers_are_refused(name: str, tmp_path: Path) -> None:
    made = CASES[name](tmp_path)
    for file in weight_files(made):
        for key, tensor in tensors_of(file).items():
            if key in IGNORED or not isinstance(tensor, torch.Tensor):
                continue
            damaged = tensor.clone()
            damaged.view(-1)[3] = float("nan")
            rewrite(file, key, damaged)
            with pytest.raises(ValueError, match="non-finite values") as error:
                load(made)
            one_line(error.value)
            rewrite(file, key, tensor)


class Payload:
    """What a malicious pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("pickled code ran",))


@pytest.mark.parametrize("name", ["dl_topk", "openai_topk", "goodfire", "qwen_scope", "crosscoder_stacked"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_run(
    name: str, zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = CASES[name](tmp_path)
    for file in weight_files(made):
        content = torch.load(file, weights_only=True) | {"extra": Payload()}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"holds pickled code \(.*print\), expected tensors alone") as error:
        load(made)
    one_line(error.value)
    assert "pickled code ran" not in capsys.readouterr().out


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    made = CASES["gemma_residual"](tmp_path)
    np.savez(made.path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="holds pickled code") as error:
        load(made)
    one_line(error.value)


def changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "config", "changes", "message"),
    [
        ("saelens_topk", "cfg.json", {"architecture": "temporal"}, "architecture `temporal` is not available"),
        ("saelens_topk", "cfg.json", {"k": None}, "says k=None, expected a positive whole number"),
        ("saelens_topk", "cfg.json", {"k": F + 1}, "must lie between 1 and d_sae"),
        ("saelens_topk", "cfg.json", {"architecture": "gated"}, "holds b_enc, expected .* by architecture `gated`"),
        ("saelens_transcoder", "cfg.json", {"normalize_activations": "layer_norm"}, "for a transcoder, expected none"),
        ("saelens_5_standard", "cfg.json", {"activation_fn_str": "tanh-relu"}, "says activation_fn='tanh-relu'"),
        ("saelens_5_finetuned", "cfg.json", {"finetuning_scaling_factor": False}, "a scaling_factor that is not one"),
        ("dl_topk", "config.json", {"trainer": {"dict_class": "IdentityDict"}}, "class `IdentityDict` is not"),
        ("dl_topk", "config.json", {"trainer": None}, "names no trainer.dict_class"),
        ("sparsify_topk", "cfg.json", {"activation": "groupmax"}, "says activation='groupmax', expected topk"),
        ("gemma_2_sae", "config.json", {"type": "crosscoder"}, "says type='crosscoder'"),
        ("gemma_2_sae", "config.json", {"width": 7}, "holds 40 latents, expected 7"),
        ("openmoss_topk", "config.json", {"sae_type": "lorsa"}, "says sae_type='lorsa'"),
        ("openmoss_topk", "config.json", {"use_glu_encoder": True}, "says use_glu_encoder=True"),
        ("openmoss_topk", "config.json", {"norm_activation": "batch-wise"}, "says norm_activation='batch-wise'"),
        ("openmoss_topk", "config.json", {"act_fn": "batchtopk"}, "says act_fn='batchtopk'"),
        ("openmoss_topk", "config.json", {"hook_point_in": "elsewhere"}, "one number in dataset_average_activation"),
        ("crosscoder_stacked", "cfg.json", {"dict_size": 7}, "is 40 wide, expected dict_size=7"),
        ("qwen_scope_with_config", "config.json", {"d_sae": 7}, "is 40 wide, expected d_sae=7"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_exactly_is_refused_by_name(
    name: str, config: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = CASES[name](tmp_path)
    changed(made.path / config, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load(made)
    one_line(error.value)


def keys_of(content: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in content.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*above, key))


@pytest.mark.parametrize(
    "name",
    ["saelens_topk", "saelens_jumprelu_skip_transcoder", "saelens_matching_pursuit", "saelens_5_topk", "dl_topk",
     "sparsify_topk", "gemma_2_skip_transcoder", "gemma_2_clt", "openmoss_jumprelu", "llama_scope",
     "qwen_scope_with_config", "crosscoder_stacked"],
)  # fmt: skip
def test_no_value_of_a_config_can_crash_a_reader(name: str, tmp_path: Path) -> None:
    made = CASES[name](tmp_path)
    refusals: list[str] = []
    for file in sorted(tmp_path.rglob("*.json")):
        whole = file.read_text()
        for path in keys_of(json.loads(whole)):
            for value in ("word", -1, [1, 2], None):
                content = json.loads(whole)
                section = content
                for key in path[:-1]:
                    section = section[key]
                if value is None:
                    del section[path[-1]]
                else:
                    section[path[-1]] = value
                file.write_text(json.dumps(content))
                try:
                    load(made)
                except ValueError as error:
                    refusals.append(one_line(error))
        file.write_text(whole)
    assert len(refusals) > 2
    assert all("expected" in message for message in refusals)
    load(made)


def test_what_a_state_dict_says_is_refused_by_name_too(tmp_path: Path) -> None:
    made = CASES["openai_topk"](tmp_path / "a")
    rewrite(made.path, "activation", "Gelu")
    with pytest.raises(ValueError, match="says activation='Gelu'"):
        load(made)
    made = CASES["dl_batchtopk"](tmp_path / "b")
    rewrite(made.path / "ae.pt", "threshold", torch.tensor(-1.0))
    with pytest.raises(ValueError, match="threshold=-1, expected one that training has set"):
        load(made)
    made = CASES["dl_topk"](tmp_path / "c")
    rewrite(made.path / "ae.pt", "k", torch.tensor(9))
    with pytest.raises(ValueError, match=r"says k=5, expected 9 by the weights"):
        load(made)
    made = CASES["crosscoder_layered_batchtopk"](tmp_path / "d")
    rewrite(made.path / "model.safetensors", "code_normalization_id", torch.tensor(5))
    with pytest.raises(ValueError, match="normalises codes as `decoupled`"):
        load(made)
    made = CASES["circuit_clt_jumprelu"](tmp_path / "e")
    rewrite(made.path / "W_enc_1.safetensors", "threshold_1", -torch.ones(F))
    with pytest.raises(ValueError, match="negative thresholds"):
        load(made)
    made = CASES["gemma_2_clt"](tmp_path / "f")
    rewrite(made.path / "params_layer_1.safetensors", "affine_skip_connection", torch.ones(D, D))
    with pytest.raises(ValueError, match="expected a cross-layer transcoder without"):
        load(made)
    made = CASES["dl_topk"](tmp_path / "g")
    (made.path / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json beside it"):
        SAE.load(made.path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds weight, expected the tensors of a known format"):
        SAE.load(tmp_path / "other.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, expected named tensors"):
        SAE.load(tmp_path / "list.pt")


def test_missing_layers_of_a_cross_layer_transcoder_are_named(tmp_path: Path) -> None:
    made = CASES["circuit_clt"](tmp_path / "a")
    (made.path / "W_dec_2.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks W_dec_2"):
        load(made)
    made = CASES["gemma_2_clt"](tmp_path / "b")
    (made.path / "params_layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match="without gaps"):
        load(made)


def test_several_saes_are_listed_and_one_is_opened(tmp_path: Path) -> None:
    made = CASES["gemma_repository"](tmp_path)
    with pytest.raises(
        ValueError, match=r"holds 2 SAEs, expected one: choose by subfolder=layer_12/.*average_l0_22"
    ) as error:
        SAE.load(made.path)
    one_line(error.value)
    with pytest.raises(FileNotFoundError, match=r"has no SAE `layer_9`, expected one of layer_12") as missing:
        SAE.load(made.path, subfolder="layer_9")
    one_line(missing.value)
    (made.path / "layer_12/width_16k/average_l0_22/params.npz").unlink()
    assert SAE.load(made.path).site == "resid_post.12"


def test_no_folder_and_a_folder_without_saes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no SAE folder at"):
        SAE.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(FileNotFoundError, match=r"holds notes\.txt, expected cfg\.json and sae_weights"):
        SAE.load(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="holds no SAE of a known format"):
        SAE.load(tmp_path)


@pytest.mark.parametrize("name", ["saelens_topk", "dl_topk", "gemma_residual", "sparsify_topk", "crosscoder_stacked"])
def test_the_weights_file_alone_names_the_sae_too(name: str, tmp_path: Path) -> None:
    made = CASES[name](tmp_path)
    (file,) = weight_files(made)
    torch.testing.assert_close(SAE.load(file)(made.x), load(made)(made.x))


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.8.hook_resid_pre", "resid_pre.8"),
        ("blocks.0.hook_resid_mid", "resid_mid.0"),
        ("blocks.11.hook_resid_post", "resid_post.11"),
        ("blocks.2.hook_attn_out", "attn_out.2"),
        ("blocks.2.hook_mlp_out", "mlp_out.2"),
        ("blocks.2.attn.hook_z", "head_out.2"),
        ("blocks.2.mlp.hook_post", "mlp_act.2"),
        ("blocks.2.mlp.hook_in", "mlp_in.2"),
        ("hook_embed", "embed"),
    ],
)
def test_hooks_and_sites_translate_both_ways(hook: str, site: str) -> None:
    assert hooks.site_of(hook) == site
    assert hooks.saelens_hook(site) == hook


@pytest.mark.parametrize(
    ("name", "model", "site"),
    [
        ("blocks.4.ln2.hook_normalized", "gpt2", "mlp_in.4"),
        ("blocks.4.ln2.hook_normalized", "google/gemma-2-2b", "blocks.4.ln2.hook_normalized"),
        ("blocks.4.hook_mlp_in", None, "mlp_in.4"),
        ("blocks.4.attn.hook_q", None, "blocks.4.attn.hook_q"),
        ("model.layers.8", None, "resid_post.8"),
        ("gpt_neox.layers.3", None, "resid_post.3"),
        ("transformer.h.5", None, "resid_post.5"),
        ("layers.5.mlp", "meta-llama/Llama-3.2-1B", "mlp_out.5"),
        ("layers.5.mlp", "google/gemma-2-2b", "model.layers.5.mlp"),
        ("layers.0.attention", None, "attn_out.0"),
        ("h.11.attn", None, "attn_out.11"),
        ("model.layers.17.output", None, "resid_post.17"),
        ("model.layers.17.self_attn.o_proj.input", None, "head_out.17"),
        ("model.layers.17.pre_feedforward_layernorm.output", "google/gemma-3-1b-pt", "mlp_in.17"),
        ("model.layers.17.post_feedforward_layernorm.output", "google/gemma-3-1b-pt", "mlp_out.17"),
        ("model.layers.3.input_layernorm", None, "model.layers.3.input_layernorm"),
        ("resid_post_layer_8", None, "resid_post.8"),
        ("mlp_out_layer_3", None, "mlp_out.3"),
        ("embed_tokens", None, "embed"),
        ("gpt_neox.embed_in", None, "embed"),
        ("resid_post.3", None, "resid_post.3"),
        (None, None, None),
    ],
)
def test_other_names_translate_to_sites_or_stay(name: str | None, model: str | None, site: str | None) -> None:
    assert hooks.site_of(name, model) == site


def test_short_model_names_become_loadable_ones() -> None:
    names = {"gpt2-small": "gpt2", "gpt2-medium": "gpt2-medium", "pythia-70m": "EleutherAI/pythia-70m",
             "gemma-2-2b": "google/gemma-2-2b", "a/b": "a/b", "mine": "mine", None: None}  # fmt: skip
    assert {name: hooks.hub_model(name) for name in names} == names


def test_a_hookpoint_is_the_module_of_the_models_family() -> None:
    assert hooks.hookpoint("resid_post.3", "EleutherAI/pythia-70m") == "layers.3"
    assert hooks.hookpoint("attn_out.3", "EleutherAI/pythia-70m") == "layers.3.attention"
    assert hooks.hookpoint("attn_out.3", "meta-llama/Llama-3.2-1B") == "layers.3.self_attn"
    assert hooks.hookpoint("mlp_out.3", "gpt2") == "h.3.mlp"
    assert hooks.hookpoint("resid_pre.3", "gpt2") == "h.2"
    assert hooks.hookpoint("embed", "gpt2") == "embed"
    assert hooks.hookpoint(None, None) == "sae"


def test_saes_are_found_by_names_alone() -> None:
    names = [
        "README.md", "config.json", "layers.3/cfg.json", "layers.3/sae.safetensors", "layers.10/cfg.json",
        "layers.10/sae.safetensors", "run/cfg.json", "run/sae_weights.safetensors", "run/trainer_state.pt",
        "run/checkpoints/1/cfg.json", "run/checkpoints/1/sae_weights.safetensors", "other/model.bin",
    ]  # fmt: skip
    finds = finding.find(names)
    assert [item.path for item in finds] == ["layers.3", "layers.10", "run", "run/checkpoints/1"]
    assert {item.path: item.format for item in finds}["run"] == "saelens"
    chosen = finding.choose(finds, "layers.3", "repo")
    assert set(chosen.files) == {"layers.3/sae.safetensors", "layers.3/cfg.json", "config.json"}
    with pytest.raises(
        ValueError, match=r"holds 3 SAEs, expected one: choose by subfolder=layers\.3, layers\.10, run$"
    ):
        finding.choose(finds, None, "repo")
    assert finding.choose(finds, "run", "repo").path == "run"
    assert finding.choose(finds, "run/checkpoints", "repo").path == "run/checkpoints/1"


def test_a_gain_can_be_folded_into_an_encoder_that_reads_before_it(tmp_path: Path) -> None:
    made = CASES["gemma_transcoder"](tmp_path)
    sae, gain = load(made), torch.rand(D) + 0.5
    folded = formats.fold_input_gain(sae, gain, "mlp_in.5")
    torch.testing.assert_close(folded(made.x * gain), sae(made.x), rtol=1e-5, atol=1e-5)
    assert folded.site == "mlp_in.5"
    with pytest.raises(ValueError, match="gain has shape"):
        formats.fold_input_gain(sae, torch.ones(3), "mlp_in.5")
    with pytest.raises(ValueError, match="encodes x − b_dec"):
        formats.fold_input_gain(ours("topk")[0], torch.ones(D), "mlp_in.5")


# ---- converting ------------------------------------------------------------------------------------------------------


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


# ---- the hub ---------------------------------------------------------------------------------------------------------


@dataclass
class Hub:
    """Stands in for the hub: repositories are folders, and what is fetched and pushed is written down."""

    remote: Path
    cache: Path
    fetched: list[str] = field(default_factory=list)
    pushed: dict[str, Path] = field(default_factory=dict)
    created: list[tuple[str, bool]] = field(default_factory=list)
    offline: bool = False

    def model_info(self, name: str, revision: str | None = None) -> SimpleNamespace:
        if self.offline:
            raise ConnectionError("no route to the hub")
        if not (self.remote / name).is_dir() or revision == "gone":
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # pyright: ignore
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in finding.names(self.remote / name)])

    def snapshot_download(
        self, name: str, revision: str | None = None, allow_patterns: Any = None, local_files_only: bool = False
    ) -> str:
        folder = self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
        if local_files_only:
            if not folder.is_dir():
                raise LocalEntryNotFoundError("nothing cached")
            return str(folder)
        for file in finding.names(self.remote / name):
            if (self.remote / name / file).is_file() and any(fnmatch.fnmatch(file, one) for one in allow_patterns):
                self.fetched.append(file)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.remote / name / file, folder / file)
        return str(folder)

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        if self.offline:
            raise ConnectionError("no route to the hub")
        self.created.append((name, private))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.remote / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    made = Hub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return made


def test_only_the_files_of_the_chosen_sae_are_fetched(hub: Hub) -> None:
    made = CASES["gemma_repository"](hub.remote / "google")
    sae = SAE.load("google/gemma-scope-2b-pt-res", subfolder="layer_12/width_16k/average_l0_82")
    assert hub.fetched == ["layer_12/width_16k/average_l0_82/params.npz"]
    assert (sae.site, sae.metadata["model_name"]) == ("resid_post.12", "google/gemma-2-2b")
    torch.testing.assert_close(sae(made.x).detach(), made.expected, rtol=1e-5, atol=1e-4)


def test_several_saes_of_a_repository_are_listed_before_anything_is_fetched(hub: Hub) -> None:
    CASES["gemma_repository"](hub.remote / "google")
    with pytest.raises(ValueError, match="google/gemma-scope-2b-pt-res holds 2 SAEs") as error:
        SAE.load("google/gemma-scope-2b-pt-res")
    one_line(error.value)
    assert hub.fetched == []


def test_what_lies_above_a_hookpoint_is_fetched_with_it(hub: Hub) -> None:
    CASES["sparsify_root"](hub.remote / "EleutherAI" / "sae-pythia-70m-32k")
    sae = SAE.load("EleutherAI/sae-pythia-70m-32k", subfolder="layers.3")
    assert sorted(hub.fetched) == ["config.json", "layers.3/cfg.json", "layers.3/sae.safetensors"]
    assert (sae.site, sae.metadata["model_name"]) == ("resid_post.3", "EleutherAI/pythia-70m")


def test_without_a_network_the_cache_serves_and_nothing_else(hub: Hub) -> None:
    CASES["sparsify_root"](hub.remote / "a" / "b")
    SAE.load("a/b", subfolder="layers.3")
    hub.offline = True
    assert SAE.load("a/b", subfolder="layers.3").site == "resid_post.3"
    with pytest.raises(OSError, match=r"`c/d` is no local folder, and the hub cannot be reached \(no route") as error:
        SAE.load("c/d")
    one_line(error.value)


def test_an_unknown_repository_or_revision_is_named(hub: Hub) -> None:
    for name, revision in (("a/b", None), ("google/x", "gone")):
        with pytest.raises(FileNotFoundError, match=f"`{name}` is no local folder, and the hub has no such") as error:
            SAE.load(name, revision=revision)
        one_line(error.value)


def test_a_local_folder_goes_before_the_hub(hub: Hub) -> None:
    made = CASES["saelens_topk"](Path("org/name"))
    hub.offline = True
    torch.testing.assert_close(SAE.load("org/name")(made.x), SAE.load(made.path)(made.x))


def test_a_pushed_sae_has_a_card_and_comes_back(hub: Hub) -> None:
    sae, x = ours("topk")
    assert sae.push_to_hub("me/my-sae", subfolder="resid_post.3", private=True) == "https://hub/me/my-sae/commit/1"
    assert hub.created == [("me/my-sae", True)]
    card = (hub.remote / "me/my-sae" / "README.md").read_text()
    for words in ("library_name: saelens", "base_model: EleutherAI/pythia-70m", "| site | resid_post.3 |", "| k | 4 |",
                  'SAE.load("me/my-sae", subfolder="resid_post.3")', "| text | corpus.txt |"):  # fmt: skip
        assert words in card
    assert torch.equal(SAE.load("me/my-sae")(x), sae(x))


def test_a_push_that_cannot_be_is_refused_in_one_line(hub: Hub) -> None:
    sae, _ = ours("gated")
    with pytest.raises(ValueError, match="`my-sae` is no repository's name, expected org/name"):
        sae.push_to_hub("my-sae")
    with pytest.raises(ValueError, match="sparsify has no architecture `gated`"):
        sae.push_to_hub("me/my-sae", format="sparsify")
    hub.offline = True
    with pytest.raises(OSError, match="the hub cannot be reached") as error:
        sae.push_to_hub("me/my-sae")
    one_line(error.value)
    assert not hub.remote.exists()

"""A damaged, hostile or unknown file is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import CASES
from foreign.making import D, F, Foreign
from own_saes import load, one_line
from safetensors.torch import load_file, save_file

from sae import SAE, formats

Case = Callable[[Path], Foreign]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


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
            unused = case is CASES["openmoss_token_wise"] and name.startswith("dataset_average")
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

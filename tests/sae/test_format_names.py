"""Hooks, modules and folders of other projects are sites here, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign import CASES
from foreign.making import D
from own_saes import load, ours

from sae import formats
from sae.formats import finding, hooks


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

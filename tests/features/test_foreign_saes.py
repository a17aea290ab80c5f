"""SAEs of other projects are indexed and browsed as they are: what they read, and how, is in their own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import build, tokenizer
from safetensors.torch import save_file

from activations import LanguageModel
from features import Dictionary
from features.folder_runs import index_sae
from features.origin import check_site, settled
from sae import SAE, SAEConfig

D, LATENTS = 256, 48


def directions() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(LATENTS, D, generator=generator), dim=1)


def dictionary_learning(folder: Path) -> Path:
    trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": D, "dict_size": LATENTS, "k": 4,
               "layer": 1, "lm_name": "embedded", "submodule_name": "resid_post_layer_1"}  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}))
    w = directions()
    state = {"encoder.weight": w, "encoder.bias": torch.zeros(LATENTS), "decoder.weight": w.T.contiguous(),
             "b_dec": torch.zeros(D), "k": torch.tensor(4), "threshold": torch.tensor(-1.0)}  # fmt: skip
    torch.save(state, folder / "ae.pt")
    return folder


def sparsify(folder: Path) -> Path:
    inner = folder / "layers.1"
    inner.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": "embedded", "ctx_len": 64, "hookpoints": ["layers.1"]}))
    (inner / "cfg.json").write_text(json.dumps({"num_latents": LATENTS, "k": 4, "d_in": D, "expansion_factor": 1}))
    w = directions()
    tensors = {"encoder.weight": w, "W_dec": w.clone(), "encoder.bias": torch.zeros(LATENTS), "b_dec": torch.zeros(D)}
    save_file(tensors, inner / "sae.safetensors")
    return inner


def saelens(folder: Path) -> Path:
    metadata = {
        "model_name": "embedded",
        "hook_name": "blocks.1.hook_resid_post",
        "context_size": 64,
        "prepend_bos": True,
    }
    content = {"architecture": "jumprelu", "d_in": D, "d_sae": LATENTS, "dtype": "float32", "device": "cuda",
               "apply_b_dec_to_input": False, "normalize_activations": "none", "metadata": metadata}  # fmt: skip
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(content))
    w = directions()
    tensors = {"W_enc": w.T.contiguous(), "W_dec": w, "b_enc": torch.zeros(LATENTS), "b_dec": torch.zeros(D),
               "threshold": torch.full((LATENTS,), 0.5)}  # fmt: skip
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("write", [dictionary_learning, sparsify, saelens])
def test_a_foreign_sae_is_indexed_and_opened_without_editing(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs")
    text = tmp_path / "text.py"
    text.write_text("def read(path):\n    return open(path).read()\n" * 60)
    built = index_sae(folder, data=str(text), out=tmp_path / "dictionary", overrides=["total_tokens=600"])
    assert built.info["data"]["context_tokens"] == 64
    with torch.no_grad():
        opened = Dictionary.open(tmp_path / "dictionary", model=LanguageModel.load("embedded"))
        assert opened.sae.site == "resid_post.1"
        most = opened.sql("select feature, density from features order by density desc limit 1").to_pylist()[0]
        assert most["density"] > 0
        assert opened.feature(most["feature"]).examples
        assert opened.active_on("def read(path):")
        opened.close()


def test_a_transcoder_that_reads_before_the_norms_gain_is_moved_behind_it() -> None:
    lm = LanguageModel(build("gemma2"), tokenizer())
    layer, generator = lm.model.model.layers[1], torch.Generator().manual_seed(0)
    norm = layer.pre_feedforward_layernorm
    norm.weight.data = torch.rand(norm.weight.shape, generator=generator)  # a gain of one to two
    d = lm.d_model
    config = SAEConfig(
        architecture="transcoder", activation="jumprelu", d_in=d, d_sae=LATENTS, normalize_activations="none"
    )
    matrices = {name: torch.randn(LATENTS, d, generator=generator) for name in ("W_enc", "W_dec")}
    tensors = {**matrices, "b_enc": torch.zeros(LATENTS), "b_dec": torch.zeros(d), "threshold": torch.ones(LATENTS)}
    metadata = {"site": "blocks.1.ln2.hook_normalized", "target_sites": ["mlp_out.1"]}
    sae = SAE.from_tensors(config, tensors, metadata)
    moved = settled(sae, lm)
    assert moved.site == "mlp_in.1"
    check_site(moved, lm, Path("theirs"))
    tokens = torch.randint(0, 20, (2, 8), generator=generator)
    found = lm.capture(tokens, None, ["resid_mid.1", "mlp_in.1"])
    stream = found["resid_mid.1"].flatten(0, 1)
    before_gain = stream * torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + norm.eps)
    torch.testing.assert_close(moved(found["mlp_in.1"].flatten(0, 1)), sae(before_gain), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="has no RMS norm before the MLP of layer 9"):
        lm.mlp_norm_gain(9)
    with pytest.raises(ValueError, match="has no RMS norm before the MLP of layer 0"):
        LanguageModel(build("gpt2"), tokenizer()).mlp_norm_gain(0)

"""OpenAI's GPT-2 SAEs: one `.pt` file, a state dict that also names its activation.

`pre_bias [d_in]`, `encoder.weight [d_sae, d_in]`, `latent_bias`, `decoder.weight [d_in, d_sae]`, statistics, and
`activation` with `activation_state_dict {k, postact_fn}`. The encoder reads x − pre_bias; where the activation is TopK
the input is layer-normalised first ((x − mean) / (unbiased std + 1e-5)) and the output scaled back. Position and layer
are in the path alone (`resid_post_mlp_v5_32k/autoencoders/8.pt`). Source: openai/sparse_autoencoder, `model.py`,
`paths.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.formats.canonical import Reading, known
from sae.formats.files import number, section, take, text, width_of

_SITES = {
    "mlp_post_act": "mlp_act",
    "resid_delta_mlp": "mlp_out",
    "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_post",
}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def read(file: Path, tensors: dict[str, Any], origin: str) -> Reading:
    """Reads the state dict of `file`; `origin` is the path or hub address that says where the SAE belongs."""
    d_in, d_sae = width_of(tensors, "pre_bias", file), width_of(tensors, "latent_bias", file)
    shapes = {"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae), "pre_bias": (d_in,),
              "latent_bias": (d_sae,)}  # fmt: skip
    taken = take(tensors, shapes, file, besides=(*_STATISTICS, "activation", "activation_state_dict"))
    function, state = text(tensors, "activation", file) or "ReLU", section(tensors, "activation_state_dict", file)
    if function not in ("ReLU", "TopK") or (function == "TopK" and state.get("postact_fn", "ReLU") != "ReLU"):
        raise ValueError(
            f"{file} says activation={function!r} {state.get('postact_fn', '')}, expected ReLU or TopK with ReLU: such "
            "SAEs cannot be opened"
        )
    is_topk = function == "TopK"
    config: dict[str, Any] = {
        "architecture": "topk" if is_topk else "standard",
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm" if is_topk else "none",
    }
    if is_topk:
        k = state.get("k")
        config["k"] = number({"k": int(k.item())} if isinstance(k, Tensor) else state, "k", file)
    found = re.search(rf"({'|'.join(_SITES)})[^/]*/.*?(\d+)\.pt$", origin)
    metadata: dict[str, Any] = {"model_name": "gpt2", "data": {"context_tokens": 64}} if found else {}
    if found:
        metadata["site"] = f"{_SITES[found[1]]}.{found[2]}"
    frequency = tensors.get("latents_activation_frequency")
    if (
        isinstance(frequency, Tensor)
        and frequency.shape == (d_sae,)
        and bool((frequency.isfinite() & (frequency < 1)).all())
    ):
        metadata["density"] = frequency.float().tolist()
    canonical = {
        "W_enc": taken["encoder.weight"],
        "b_enc": taken["latent_bias"],
        "W_dec": taken["decoder.weight"].T.contiguous(),
        "b_dec": taken["pre_bias"],
    }
    return Reading(config, canonical, known(**metadata))

"""Goodfire: one `.pt` or `.pth` file of two linear layers with ReLU between.

The layers are `encoder_linear.{weight,bias}` and `decoder_linear.{weight,bias}`. Model and layer are in the file's name
(`Llama-3.1-8B-Instruct-SAE-l19.pth`). Source: Goodfire's releases and SAELens's loader of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae.formats import hooks
from sae.formats.canonical import Reading, known
from sae.formats.files import take, width_of


def read(file: Path, tensors: dict[str, Any], origin: str) -> Reading:
    """Reads the state dict of `file`."""
    d_in, d_sae = width_of(tensors, "decoder_linear.bias", file), width_of(tensors, "encoder_linear.bias", file)
    shapes = {"encoder_linear.weight": (d_sae, d_in), "decoder_linear.weight": (d_in, d_sae),
              "encoder_linear.bias": (d_sae,), "decoder_linear.bias": (d_in,)}  # fmt: skip
    taken = take(tensors, shapes, file, besides=())
    config = {
        "architecture": "standard",
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    canonical = {
        "W_enc": taken["encoder_linear.weight"],
        "b_enc": taken["encoder_linear.bias"],
        "W_dec": taken["decoder_linear.weight"].T.contiguous(),
        "b_dec": taken["decoder_linear.bias"],
    }
    found = re.search(r"([^/]+)-SAE-l(\d+)", origin)
    metadata = {"model_name": hooks.hub_model(found[1]), "site": f"resid_post.{found[2]}"} if found else {}
    return Reading(config, canonical, known(**metadata))

"""Qwen Scope: `layerN.sae.pt` for each layer, with `W_enc [d_sae, d_in]`, `W_dec [d_in, d_sae]`, `b_enc`, `b_dec`.

The k largest pre-activations stay, with nothing subtracted before encoding. k and the model are in the folder's
`config.json`, or in the repository's name (`SAE-Res-Qwen3-8B-Base-W64K-L0_50`). The files keep a negative value where a
row has fewer than k positive ones; here such a latent is silent. Source: the releases' own example code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae.formats.canonical import Reading, known
from sae.formats.files import number, read_json, take, text, width_of


def read(file: Path, tensors: dict[str, Any], origin: str) -> Reading:
    """Reads one layer's state dict."""
    d_in, d_sae = width_of(tensors, "b_dec", file), width_of(tensors, "b_enc", file)
    shapes = {"W_enc": (d_sae, d_in), "W_dec": (d_in, d_sae), "b_enc": (d_sae,), "b_dec": (d_in,)}
    taken = take(tensors, shapes, file, besides=())
    taken["W_dec"] = taken["W_dec"].T.contiguous()
    where = file.parent / "config.json"
    content = read_json(where) if where.is_file() else {}
    named = re.search(r"SAE-Res-(Qwen[^/]*?)-W\d+K-L0_(\d+)", origin)
    if "k" not in content and not named:
        raise ValueError(
            f"{file} does not say k, expected it in config.json beside it or in the folder's name (…-L0_50): copy the "
            "config or keep the name"
        )
    for name, width in (("d_sae", d_sae), ("d_model", d_in)):
        if name in content and number(content, name, where) != width:
            raise ValueError(
                f"{file} is {width} wide, expected {name}={content[name]} by config.json: they do not match"
            )
    config: dict[str, Any] = {
        "architecture": "topk",
        "d_in": d_in,
        "d_sae": d_sae,
        "k": number(content, "k", where) if "k" in content else int(named[2]) if named else None,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    layer = re.search(r"layer_?(\d+)", file.name)
    kind = text(content, "hook_point", where) or "resid_post"
    metadata = known(
        site=f"{kind}.{layer[1]}" if layer else None,
        model_name=text(content, "base_model", where) or (f"Qwen/{named[1]}" if named else None),
    )
    return Reading(config, taken, metadata)

"""Starting from a trained SAE: its weights in the units and the form that training continues from.

Any architecture may start from any other that has the same shapes, as far as they share tensors: a TopK SAE becomes a
JumpReLU one (thresholds start at their default), a JumpReLU SAE forgets its thresholds when BatchTopK goes on with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.architectures import Architecture, tensor_shapes
from sae.model import SAE

_PER_LATENT = ("W_enc", "b_enc", "threshold", "b_gate", "b_mag")


@torch.no_grad()
def training_tensors(source: SAE, architecture: Architecture, scale_in: Tensor, scale_out: Tensor) -> dict[str, Tensor]:
    """Returns the tensors to train on from, in training's units; those that `source` lacks are left out.

    Raises:
        ValueError: `source` has other widths, or gated and ungated weights would mix.
    """
    config = architecture.config
    theirs, ours = tensor_shapes(source.config), tensor_shapes(config)
    for name in ("W_enc", "W_dec", "b_dec"):
        if theirs[name] != ours[name]:
            raise ValueError(
                f"init_from holds {name} of shape {theirs[name]}, expected {ours[name]} as in this config: set "
                "the same d_in and d_sae"
            )
    if (source.config.mechanism == "gated") != (config.mechanism == "gated"):
        raise ValueError(
            f"init_from is `{source.config.architecture}`, this config says `{config.architecture}`: gated SAEs and "
            "others have no common form, start from one of the same kind"
        )
    tensors = {name: value.detach().clone() for name, value in source.tensors.items()}
    _, tensors = architecture.fold(config, tensors, 1 / scale_in, 1 / scale_out)
    if source.config.subtracts_b_dec != config.subtracts_b_dec and config.architecture not in ("clt",):
        sign = 1 if config.subtracts_b_dec else -1
        shift = sign * (tensors["W_enc"] @ tensors["b_dec"])
        if "b_gate" in tensors:
            tensors["b_gate"] = tensors["b_gate"] + shift
            tensors["b_mag"] = tensors["b_mag"] + tensors["r_mag"].exp() * shift
        else:
            tensors["b_enc"] = tensors["b_enc"] + shift
    if config.has_unit_decoder:
        norms = tensors["W_dec"].norm(dim=1).clamp(min=1e-12)
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
        for name in _PER_LATENT:
            if name in tensors:
                tensors[name] = tensors[name] * (norms[:, None] if name == "W_enc" else norms)
    return architecture.adopt(tensors)

"""What a reader of any format hands over, and the exact rewritings that bring it into the one form used in memory.

The form (see `sae.model`): row i of `W_enc` and of `W_dec` is latent i, inputs are raw activations, and whatever a
project keeps beside the weights (input scales, decoder norms, a bias subtracted before encoding) is folded into them.
Each fold leaves the reconstruction as it was; the docstrings say what it does to activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """An SAE as read from another project's files, in the form used in memory."""

    config: dict[str, Any]
    """Fields of `SAEConfig`; None stands for its default."""
    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    unscaled: str = ""
    """Why the input scale is not known, where the files leave it to the user; the SAE then needs `input_scale`."""


def fold_input_scale(
    config: dict[str, Any], tensors: dict[str, Tensor], scale_in: Tensor | float, scale_out: Tensor | float
) -> None:
    """Folds x → scale_in·x before encoding and ŷ → ŷ / scale_out after decoding; activations stay in scaled units.

    Matching pursuit chooses by its dictionary alone: there activations shrink, and the threshold that stops it.
    """
    if config["architecture"] == "matching_pursuit":
        config["residual_threshold"] = config["residual_threshold"] / float(scale_in)
        tensors["b_dec"] = tensors["b_dec"] / scale_out
        return
    tensors["W_enc"] = tensors["W_enc"] * scale_in
    tensors["W_dec"] = tensors["W_dec"] / scale_out
    tensors["b_dec"] = tensors["b_dec"] / scale_out
    if "W_skip" in tensors:
        over = scale_out[:, None] if isinstance(scale_out, Tensor) else scale_out
        tensors["W_skip"] = tensors["W_skip"] * scale_in / over


def site_scales(input_scale: float | Sequence[float], n_sites: int, d_in: int) -> Tensor | float:
    """Spreads one scale, or one for each site, over the columns of W_enc."""
    given: Sequence[float] = input_scale if isinstance(input_scale, Sequence) else (input_scale,)
    scales = [float(scale) for scale in given]
    if len(scales) not in (1, n_sites) or not all(0 < scale < float("inf") for scale in scales):
        raise ValueError(
            f"input_scale={input_scale} has {len(scales)} values, expected one positive number or one for each of "
            f"{n_sites} sites: give √d_in divided by the mean norm of the activations"
        )
    return scales[0] if len(scales) == 1 else torch.tensor(scales).repeat_interleave(d_in)


def fold_decoder_norm(tensors: dict[str, Tensor]) -> None:
    """Divides decoder rows by their norms n and multiplies pre-activations, so that latents are chosen by n·pre.

    Activations become n times as large; thresholds, already in units of n·pre, stay.
    """
    norm = tensors["W_dec"].norm(dim=1)
    tensors["W_enc"] = tensors["W_enc"] * norm[:, None]
    tensors["b_enc"] = tensors["b_enc"] * norm
    tensors["W_dec"] = torch.where(norm[:, None] > 0, tensors["W_dec"] / norm[:, None].clamp(min=1e-30), 0.0)


def move_b_dec(tensors: dict[str, Tensor], subtracts: bool, wanted: bool) -> dict[str, Tensor]:
    """Returns tensors whose encoder does or does not read x − b_dec, with the difference in its biases."""
    moved = dict(tensors)
    if subtracts == wanted:
        return moved
    offset = tensors["W_enc"] @ tensors["b_dec"] * (1.0 if wanted else -1.0)
    if "b_gate" in moved:
        moved["b_gate"] = moved["b_gate"] + offset
        moved["b_mag"] = moved["b_mag"] + moved["r_mag"].exp() * offset
    else:
        moved["b_enc"] = moved["b_enc"] + offset
    return moved


def known(**facts: Any) -> dict[str, Any]:
    """Returns the facts that are known: neither None nor empty."""
    return {name: value for name, value in facts.items() if value is not None and value != {} and value != []}

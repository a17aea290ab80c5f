"""LEACE: the smallest affine change of rows after which no linear probe can tell the labels.

    r(x) = x − W⁺ P W (x − μ),   W = Σ_xx^(−1/2),   P = the orthogonal projection onto the columns of W Σ_xz

with Σ_xx the rows' covariance, Σ_xz their covariance with the labels (one column a class) and μ their mean. On the rows
that it was fitted on, all classes then have one mean, so that the best linear probe of any convex loss is a constant;
r(r(x)) = r(x); and no other affine map with that property changes the rows less in the mean of ‖r(x) − x‖², measured
in any positive semi-definite norm. In float64.

On other rows a little is left, as class means were estimated. Non-linear probes may still read the label.

Source: Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form" (arXiv 2306.03819), theorem 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RANK_TOLERANCE = 1e-9
"""Directions in which rows vary less than this share of the largest count as constant."""


@dataclass(frozen=True)
class Eraser:
    """An affine map that takes labels out of rows: x − left·(right·(x − mean))."""

    mean: Float[Tensor, " d"]
    left: Float[Tensor, "d rank"]
    right: Float[Tensor, "rank d"]

    @property
    def rank(self) -> int:
        """Directions taken out: at most the number of classes less one."""
        return self.left.shape[1]

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Returns rows without the label, in their own type and on their device; computed in float32 at least."""
        wide = x if x.dtype == torch.float64 else x.float()
        mean, left, right = (each.to(wide) for each in (self.mean, self.left, self.right))
        return (wide - (wide - mean) @ right.T @ left.T).to(x.dtype)


def fit_eraser(x: Float[Tensor, "n d"], labels: Sequence[str]) -> Eraser:
    """Fits LEACE on rows and their labels (any number of classes).

    Raises:
        ValueError: another number of labels than rows, one class alone, rows that are not finite.
    """
    if len(labels) != len(x) or len(set(labels)) < 2:
        raise ValueError(
            f"got {len(labels)} labels of {len(set(labels))} classes for {len(x)} rows, expected one each of at least "
            "two classes: pair them again"
        )
    x = x.detach().double()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the rows hold numbers that are not finite, expected finite ones: check the model")
    classes = sorted(set(labels))
    z = torch.tensor([[each == label for each in classes] for label in labels], dtype=torch.float64, device=x.device)
    mean = x.mean(0)
    centred = x - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    real = values > RANK_TOLERANCE * values[-1].clamp(min=1e-300)
    basis, root = vectors[:, real], values[real].sqrt()
    whitened = (basis / root).T @ (centred.T @ (z - z.mean(0)) / len(x))
    directions, singular, _ = torch.linalg.svd(whitened, full_matrices=False)
    # the last class follows from the others, so that the columns span one direction less than there are classes
    kept = directions[:, : len(classes) - 1][:, singular[: len(classes) - 1] > 1e-10]
    return Eraser(mean, (basis * root) @ kept, (kept.T / root) @ basis.T)


def erasing(eraser: Eraser) -> Callable[[Tensor], Tensor]:
    """Returns an edit for `lm.intervene`: every token's row loses the label.

    The mean over tokens is linear, so a text's mean row loses exactly what `eraser` takes from it.
    """
    return lambda values: eraser(values.flatten(2)).view_as(values)

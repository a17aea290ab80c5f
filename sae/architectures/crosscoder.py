"""Crosscoders: one dictionary over several sites, or over one site of two models (Lindsey et al. 2024, "Sparse
crosscoders").

Rows of the sites stand side by side: encoder and decoder rows have a block a site, biases too, and one code serves all.
The encoder reads x itself. With an L1 penalty the decoder norms of the sites are summed (`Architecture.decoder_norms`);
with a choice of k the whole decoder row has unit norm, so that blocks show how a latent divides between sites.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sae.model import SAE

EXCLUSIVE_BELOW, SHARED_BELOW = 0.1, 0.3


def decoder_blocks(sae: SAE) -> Float[Tensor, "d_sae n_sites d_in"]:
    """Returns the decoder by site."""
    return sae.W_dec.detach().view(sae.config.d_sae, sae.config.n_sites, -1)


def norm_shares(sae: SAE) -> Float[Tensor, "d_sae n_sites"]:
    """Returns which share of a latent's summed decoder norm lies at each site."""
    norms = decoder_blocks(sae).norm(dim=2)
    return norms / norms.sum(1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class ModelDifference:
    """How the latents of a crosscoder over two sites divide between them."""

    exclusive_first: int
    """Latents whose share at the second site is below a tenth."""
    exclusive_second: int
    """Latents whose share at the first site is below a tenth."""
    shared: int
    """Latents whose shares differ by less than 0.4."""
    between: int
    shared_cosine: float
    """Mean cosine between the two decoder blocks of shared latents; not a number where none is shared."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record a figure."""
        return [{"statistic": name, "value": value} for name, value in asdict(self).items()]


def model_difference(sae: SAE) -> ModelDifference:
    """Returns shared-or-exclusive statistics of a crosscoder over two sites or models.

    Relative decoder norms as in Lindsey et al. 2024, section "Model diffing"; mind that L1 crosscoders shrink small
    blocks to zero and so call latents exclusive that are not (Minder et al. 2025, arXiv 2504.02922).

    Raises:
        ValueError: the SAE has not two sites.
    """
    if sae.config.n_sites != 2:
        raise ValueError(
            f"model_difference got an SAE of {sae.config.n_sites} sites, expected 2: compare two at a time"
        )
    second = norm_shares(sae)[:, 1]
    shared = (second - 0.5).abs() < 0.5 - SHARED_BELOW
    first, last = decoder_blocks(sae).unbind(1)
    cosine = torch.cosine_similarity(first[shared], last[shared], dim=1)
    exclusive_first = int((second < EXCLUSIVE_BELOW).sum())
    exclusive_second = int((second > 1 - EXCLUSIVE_BELOW).sum())
    n_shared = int(shared.sum())
    return ModelDifference(
        exclusive_first=exclusive_first,
        exclusive_second=exclusive_second,
        shared=n_shared,
        between=sae.config.d_sae - exclusive_first - exclusive_second - n_shared,
        shared_cosine=float(cosine.mean()) if n_shared else float("nan"),
    )

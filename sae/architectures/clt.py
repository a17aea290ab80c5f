"""Cross-layer transcoders: latents read one site and write to it and all later ones (Ameisen et al. 2025, "Circuit
tracing", section 3.1).

The latents of all sites share one index space, d_sae / n_sites of them for each site in turn. Latent i reads site
s(i) = i // (d_sae / n_sites): its encoder row is d_in wide. Its decoder row has a block for every site and is zero in
those before s(i). Codes are chosen among the latents of all sites together.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.config import SAEConfig


def decoder_mask(config: SAEConfig) -> Float[Tensor, "d_sae d_out"]:
    """Returns 1 where a latent may write: at its own site and those after it."""
    site_of_latent = torch.arange(config.d_sae) // (config.d_sae // config.n_sites)
    site_of_column = torch.arange(config.n_sites).repeat_interleave(config.output_width)
    return (site_of_column[None, :] >= site_of_latent[:, None]).float()


def encoder_product(
    config: SAEConfig, W_enc: Float[Tensor, "d_sae d_in"], rows: Float[Tensor, "n d_all"]
) -> Float[Tensor, "n d_sae"]:
    """Returns each latent's product with its own site's part of the row."""
    by_site = rows.view(len(rows), config.n_sites, config.d_in)
    encoders = W_enc.view(config.n_sites, -1, config.d_in)
    return torch.einsum("nsd,sfd->nsf", by_site, encoders).flatten(1)

"""Where an SAE stands in the model: what it reads together, and where and along which directions its features write.

Enters: an SAE of any architecture. Leaves: codes from activations by site, and decoder directions by site.

* An autoencoder reads and writes one site; a transcoder writes another one than it reads.
* A crosscoder reads several sites. Its feature is written where its decoder block is longest, among the sites of the
  first model: written at all of them it would count again what earlier sites have already passed on.
* A cross-layer transcoder's feature writes its own layer's target and all later ones, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from sae import SAE
    from sae.codes import Codes

RESIDUAL_WRITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "embed")
"""Kinds of sites whose rows are, or are added to, the residual stream."""


def encode_sites(sae: SAE, values: Mapping[str, Float[Tensor, "n _"]]) -> Codes:
    """Returns the codes of `n` tokens whose activations are given at every site that the SAE reads."""
    sites = sae.sites
    if len(sites) == 1:
        return sae.encode(values[sites[0]])
    return sae.encode(torch.stack([values[site] for site in sites], dim=1))


def written_sites(sae: SAE) -> list[str]:
    """Returns the sites that the SAE writes in the model that generates: none of a second model's."""
    return [site for site in sae.target_sites if not site.startswith("compare:")]


@torch.no_grad()
def write_directions(sae: SAE, features: Sequence[int] | Int[Tensor, " f"]) -> dict[str, Float[Tensor, "f d_out"]]:
    """Returns what one unit of each feature adds at each site that the SAE writes, in the order of those sites."""
    chosen = torch.as_tensor(features, device=sae.W_dec.device)
    blocks = sae.W_dec[chosen].view(len(chosen), sae.config.n_sites, -1)
    places = [place for place, site in enumerate(sae.target_sites) if not site.startswith("compare:")]
    if sae.config.architecture == "crosscoder":
        longest = blocks[:, places].norm(dim=2).argmax(dim=1)
        is_longest = torch.nn.functional.one_hot(longest, len(places)).to(blocks.dtype)
        blocks = blocks[:, places] * is_longest[:, :, None]
        places = list(range(len(places)))
    return {site: blocks[:, place] for site, place in zip(written_sites(sae), places, strict=True)}


@torch.no_grad()
def residual_directions(sae: SAE) -> Float[Tensor, "d_sae d_out"] | None:
    """Returns what one unit of each feature adds to the residual stream in all; None where it writes elsewhere."""
    sites = written_sites(sae)
    if not sites or any(site.split(".")[0] not in RESIDUAL_WRITES for site in sites):
        return None
    if sae.config.n_sites == 1:
        return sae.W_dec.detach()
    return torch.stack(list(write_directions(sae, range(sae.config.d_sae)).values())).sum(0)

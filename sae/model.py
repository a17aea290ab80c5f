"""The sparse autoencoder as a finished thing: encode, decode, save, load.

One canonical form in memory: row i of `W_enc` and of `W_dec` is latent i, inputs are raw activations (any scale learned
in training is folded into the weights), and the encoder reads x − b_dec.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.codes import Codes
from sae.config import SAEConfig
from sae.selection import select, strongest_latents


class SAE(nn.Module):
    """A sparse autoencoder over activations of width `d_in` with `d_sae` latents.

    `metadata` says where it comes from (model, site, data, training); it travels with the weights and is plain JSON.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, config: SAEConfig, metadata: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.W_enc = nn.Parameter(torch.zeros(config.d_sae, config.d_in))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, config.d_in))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def site(self) -> str:
        """The site whose activations this SAE reads.

        Raises:
            ValueError: the SAE does not say (it was trained on bare rows).
        """
        site = self.metadata.get("site")
        if not site:
            raise ValueError("this SAE names no site, expected metadata['site']: set it, for example 'resid_post.3'")
        return str(site)

    def encode(self, x: Float[Tensor, "n d_in"]) -> Codes:
        """Returns the codes of `n` rows: at most `k` latents each, padded with index −1 and value 0.

        Differentiable unless gradients are switched off, which is also what keeps memory small.

        Raises:
            ValueError: `x` has another shape than [n, d_in].
        """
        if x.ndim != 2 or x.shape[1] != self.config.d_in:
            raise ValueError(
                f"encode got rows of shape {tuple(x.shape)}, expected [n, {self.config.d_in}]: flatten batch and "
                "sequence, and check that the site is the SAE's"
            )
        centred, k = x.to(self.W_enc.dtype) - self.b_dec, self.config.active
        if torch.is_grad_enabled():
            values, indices = select(torch.addmm(self.b_enc, centred, self.W_enc.T), k)
        else:
            values, indices = strongest_latents(centred, self.W_enc, self.b_enc, k)
        return Codes(values, torch.where(values > 0, indices, -1), self.config.d_sae)

    def decode(self, codes: Codes) -> Float[Tensor, "n d_in"]:
        """Returns the reconstruction of codes; differentiable in values and weights."""
        bags = nn.functional.embedding_bag(
            codes.indices.clamp(min=0), self.W_dec, per_sample_weights=codes.values, mode="sum"
        )
        return bags + self.b_dec

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Returns decode(encode(x))."""
        return self.decode(self.encode(x))

    def save(self, path: str | Path, format: str = "saelens") -> Path:
        """Writes the SAE to the folder `path` and returns it; `cfg.json` comes last, so that a folder is whole or none.

        Raises:
            ValueError: an unknown format.
        """
        from sae import formats

        return formats.save(self, Path(path), format)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> SAE:
        """Opens an SAE folder of any supported format, recognised from its files.

        Raises:
            FileNotFoundError: no such folder, or no SAE in it.
            ValueError: files of an unknown or damaged format; the message names the field or tensor.
        """
        from sae import formats

        return formats.load(Path(path)).to(device)

"""Products with sparse codes on CPU and GPU: decode, code gradients, and the reduction of latents' gradients.

Enters: codes (`values`, `indices`, both [n, k]; every index valid, silent entries hold value 0) and dense matrices.
Leaves: dense results, each from one pass over the codes without a buffer of size n × d_sae or n × k × d.

The row layout (CSR over rows) serves decoding and code gradients; the latent layout (the same codes sorted by latent)
serves both weight gradients in one deterministic pass each, without atomics. Arithmetic as in OpenAI's sparse kernels
(openai/sparse_autoencoder, kernels.py), expressed as compressed-sparse-row products.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

# torch calls the whole layout beta; the products used here are tested against dense ones
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)


def decode(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], W_dec: Float[Tensor, "d_sae d"]
) -> Float[Tensor, "n d"]:
    """Returns Σ_j values[:, j] · W_dec[indices[:, j]] for every row."""
    return _by_row(values, indices, len(W_dec)) @ W_dec


def code_gradients(
    grad: Float[Tensor, "n d"], indices: Int[Tensor, "n k"], W_dec: Float[Tensor, "d_sae d"]
) -> Float[Tensor, "n k"]:
    """Returns ⟨W_dec[indices[n, j]], grad[n]⟩, the gradient of decoding with respect to the code values."""
    pattern = _by_row(torch.zeros_like(indices, dtype=grad.dtype), indices, len(W_dec))
    return torch.sparse.sampled_addmm(pattern, grad, W_dec.T, beta=0.0).values().view(indices.shape)


def _by_row(values: Tensor, indices: Tensor, width: int) -> Tensor:
    n, k = indices.shape
    starts = torch.arange(0, n * k + 1, k, device=indices.device)
    return torch.sparse_csr_tensor(starts, indices.reshape(-1), values.reshape(-1), (n, width), check_invariants=False)


class LatentLayout:
    """Codes sorted by latent: sums over the rows in which each latent is active."""

    def __init__(self, indices: Int[Tensor, "n k"], d_sae: int) -> None:
        self.n, self.k = indices.shape
        self.d_sae = d_sae
        flat = indices.reshape(-1)
        self.order = torch.argsort(flat, stable=True)
        self.counts = torch.bincount(flat, minlength=d_sae)
        self._starts = torch.nn.functional.pad(self.counts.cumsum(0), (1, 0))
        self._rows = self.order // self.k

    def reduce(self, values: Float[Tensor, "n k"], dense: Float[Tensor, "n d"]) -> Float[Tensor, "d_sae d"]:
        """Returns, for every latent i, Σ over its codes of value · dense[row]."""
        by_latent = torch.sparse_csr_tensor(
            self._starts,
            self._rows,
            values.reshape(-1)[self.order],
            (self.d_sae, self.n),
            check_invariants=False,
        )
        return by_latent @ dense

    def reduce_values(self, values: Float[Tensor, "n k"]) -> Float[Tensor, " d_sae"]:
        """Returns, for every latent, the sum of its values."""
        sums = values.reshape(-1)[self.order].double().cumsum(0)
        return torch.nn.functional.pad(sums, (1, 0))[self._starts].diff().to(values.dtype)

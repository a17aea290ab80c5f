"""Products with sparse codes on CPU and GPU: decode, code gradients, and the reduction of latents' gradients.

Enters: `RaggedCodes` (any number of codes a row) and dense matrices. Leaves: dense results, each from one pass over the
codes without a buffer of size n × d_sae or n × k × d.

The row layout (CSR over rows) serves decoding and code gradients; the latent layout (the same codes sorted by latent)
serves both weight gradients in one deterministic pass each, without atomics. Arithmetic as in OpenAI's sparse kernels
(openai/sparse_autoencoder, kernels.py), expressed as compressed-sparse-row products.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# torch calls the whole layout beta; the products used here are tested against dense ones
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)


class RaggedCodes(NamedTuple):
    """Codes in row order: those of row r stand from `starts[r]` to `starts[r + 1]`; silent entries hold value 0."""

    starts: Int[Tensor, " rows_and_1"]
    indices: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]

    @classmethod
    def of(cls, values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"]) -> RaggedCodes:
        """Returns codes that are k in every row."""
        n, k = indices.shape
        return cls(torch.arange(0, n * k + 1, k, device=indices.device), indices.reshape(-1), values.reshape(-1))

    @classmethod
    def of_rows(cls, rows: Int[Tensor, " nnz"], n: int, indices: Tensor, values: Tensor) -> RaggedCodes:
        """Returns codes whose row numbers are given, in ascending order."""
        counts = torch.bincount(rows, minlength=n)
        return cls(torch.nn.functional.pad(counts.cumsum(0), (1, 0)), indices, values)

    @property
    def n_rows(self) -> int:
        return len(self.starts) - 1

    def rows(self) -> Int[Tensor, " nnz"]:
        """Returns the row of every code."""
        return torch.repeat_interleave(self.starts.diff(), output_size=len(self.indices))


class RowPass(NamedTuple):
    """What one pass over a batch's codes gives (`sae.row_pass`)."""

    errors: Float[Tensor, "n d"]
    """target − reconstruction at the full width."""
    by_group: Float[Tensor, " groups"]
    """Σ‖target − reconstruction‖² at every nested width."""
    grad_shared: Float[Tensor, "n d"]
    """The gradient with respect to what all nested reconstructions have in common."""
    latents: dict[str, Tensor]
    """Gradients of W_enc, W_dec and b_enc."""


def decode(codes: RaggedCodes, W_dec: Float[Tensor, "d_sae d"]) -> Float[Tensor, "n d"]:
    """Returns Σ value · W_dec[index] over the codes of every row."""
    return _by_row(codes, codes.values, len(W_dec)) @ W_dec


def code_gradients(grad: Float[Tensor, "n d"], codes: RaggedCodes, W_dec: Float[Tensor, "d_sae d"]) -> Tensor:
    """Returns ⟨W_dec[index], grad[row]⟩, Float[nnz]: the gradient of decoding with respect to each code's value."""
    pattern = _by_row(codes, torch.zeros(len(codes.indices), dtype=grad.dtype, device=grad.device), len(W_dec))
    return torch.sparse.sampled_addmm(pattern, grad, W_dec.T, beta=0.0).values()


def _by_row(codes: RaggedCodes, values: Tensor, width: int) -> Tensor:
    return torch.sparse_csr_tensor(codes.starts, codes.indices, values, (codes.n_rows, width), check_invariants=False)


class LatentLayout:
    """Codes sorted by latent: sums over the rows in which each latent is active."""

    def __init__(self, codes: RaggedCodes, d_sae: int) -> None:
        self.n, self.d_sae = codes.n_rows, d_sae
        self.order = torch.argsort(codes.indices, stable=True)
        self.counts = torch.bincount(codes.indices, minlength=d_sae)
        self._starts = torch.nn.functional.pad(self.counts.cumsum(0), (1, 0))
        self._rows = codes.rows()[self.order]

    def reduce(self, values: Float[Tensor, " nnz"], dense: Float[Tensor, "m d"]) -> Float[Tensor, "d_sae d"]:
        """Returns, for every latent i, Σ over its codes of value · dense[row mod m]."""
        m = len(dense)
        by_latent = torch.sparse_csr_tensor(
            self._starts,
            self._rows if m == self.n else self._rows % m,
            values[self.order],
            (self.d_sae, m),
            check_invariants=False,
        )
        return by_latent @ dense

    def reduce_values(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " d_sae"]:
        """Returns, for every latent, the sum of its values."""
        sums = values[self.order].double().cumsum(0)
        return torch.nn.functional.pad(sums, (1, 0))[self._starts].diff().to(values.dtype)

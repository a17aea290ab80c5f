"""Matching pursuit's choices and their gradients on a CPU, by loops that numba compiles (`sae.compiled`).

Enters: decoder rows and centred rows. Leaves: what the chain of residuals in `sae.architectures.matching_pursuit`
gives, up to rounding and to which of equal correlations is taken.

    r_0 = x − b_dec;    i_t = argmax ⟨d_i, r_t⟩,  v_t = ⟨d_i, r_t⟩,  r_{t+1} = r_t − v_t d_i

A choice costs d_sae operations instead of d_in · d_sae: correlations with all latents are computed once and then
carried along by rows of the Gram matrix W_dec W_decᵀ (the batch variant of Rubinstein et al. 2008, "Efficient
Implementation of the K-SVD Algorithm using Batch Orthogonal Matching Pursuit"). The gradient goes back through the
chain, from the last choice to the first; with g_t = ∂L/∂r_t:

    g_t = g_{t+1} − ⟨d_i, g_{t+1}⟩ d_i          ∂d_i −= v_t g_{t+1} + ⟨d_i, g_{t+1}⟩ r_t
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import compiled

GRAM_MAX_LATENTS = 8192  # 256 MB of float32; beyond it choices by full products are the smaller evil
CHUNK_ROWS = 512  # of correlations, which stay in the processor's cache between the product and the choices
PARTS = 4  # of a batch, whose gradients are summed in this order: not more threads than that help


class Pursuit(NamedTuple):
    """The choices of every row in their order. A row's last choice may repeat a latent, which then ends it."""

    chosen: Int[Tensor, "n k"]
    """−1 after a row's end."""
    values: Float[Tensor, "n k"]
    residual: Float[Tensor, "n d"]
    """What is left unexplained."""

    def codes(self) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """Returns values and latents, each latent once; silent entries hold value 0 at latent 0."""
        values, indices = self.values.clone(), self.chosen.clamp(min=0)
        last = (self.chosen >= 0).sum(1, keepdim=True).sub(1).clamp(min=0)
        latent, added = indices.gather(1, last), values.gather(1, last)
        places = torch.arange(values.shape[1], device=values.device)
        is_repeated = (indices == latent) & (self.values > 0) & (places < last)
        values += is_repeated * added
        repeats = is_repeated.any(1, keepdim=True) & (places == last)
        return values.masked_fill(repeats, 0), indices.masked_fill(repeats, 0)


def is_pursued(W_dec: Float[Tensor, "d_sae d"]) -> bool:
    """Says whether the compiled loops serve a dictionary like this one."""
    return len(W_dec) <= GRAM_MAX_LATENTS and compiled.is_compiled(W_dec)


@torch.no_grad()
def pursue(W_dec: Float[Tensor, "d_sae d"], centred: Float[Tensor, "n d"], k: int, smallest: float) -> Pursuit:
    """Chooses up to `k` latents for every row, until its residual norm falls below `smallest`."""
    from sae import pursuit_kernels as kernels

    n, W_dec = len(centred), W_dec.detach().contiguous()
    residual = centred.detach().clone(memory_format=torch.contiguous_format)
    chosen, values = torch.empty(n, k, dtype=torch.int64), centred.new_empty(n, k)
    gram = W_dec @ W_dec.T
    for start in range(0, n, CHUNK_ROWS):
        part = slice(start, min(start + CHUNK_ROWS, n))
        compiled.divide(
            kernels.pursue,
            kernels.divided_pursue,
            part.stop - start,
            (centred[part] @ W_dec.T).numpy(),
            gram.numpy(),
            W_dec.numpy(),
            k,
            smallest,
            *(tensor[part].numpy() for tensor in (residual, chosen, values)),
        )
    return Pursuit(chosen, values, residual)


@torch.no_grad()
def pursuit_gradients(
    W_dec: Float[Tensor, "d_sae d"], pursuit: Pursuit, grad: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "d_sae d"], Float[Tensor, "n d"]]:
    """Returns ∂L/∂W_dec and ∂L/∂centred, given ∂L/∂residual."""
    from sae import pursuit_kernels as kernels

    by_part, grad = W_dec.new_zeros(PARTS, *W_dec.shape), grad.clone(memory_format=torch.contiguous_format)
    tensors = (pursuit.chosen, pursuit.values, W_dec.contiguous(), pursuit.residual.clone(), grad, by_part)
    compiled.in_parts(kernels.divided_unwind, PARTS, len(grad), *(tensor.numpy() for tensor in tensors))
    return by_part.sum(0), grad

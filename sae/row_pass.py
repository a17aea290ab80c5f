"""One pass over a batch's codes: decoding at every nested width, squared errors, and the gradients of latents.

Enters: codes, the decoder, what is to be written, what was read. Leaves: errors, and ∂L/∂W_enc, ∂L/∂W_dec, ∂L/∂b_enc
of L = −½ Σ_g scale_g Σ‖target − x̂_g‖², as `sae.step` derives them. Loops of `sae.compiled` do it on a CPU where they
can; here it is made of sparse products, in which row r and block b form the virtual row b·n + r.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import compiled, sparse
from sae.shares import first_latent, over_latents
from sae.sparse import RaggedCodes, RowPass


@torch.no_grad()
def row_pass(
    codes: RaggedCodes,
    W_dec: Float[Tensor, "d_sae d"],
    target: Float[Tensor, "n d"],
    centred: Float[Tensor, "n d_in"],
    scales: Float[Tensor, " groups"],
    *,
    blocks: Int[Tensor, " d_sae"] | None = None,
    is_signed: bool = False,
    slopes: Float[Tensor, " nnz"] | None = None,
) -> RowPass:
    """Decodes and gives gradients; latent i takes part from nested width `blocks[i]` on (default: the only one).

    `scales` are the factors of the errors in the gradient, one for each nested width. Only positive codes get
    gradients unless `is_signed`; `slopes` are added to these, where nothing is nested. Of divided latents
    (`sae.shares`) reconstructions are the whole ones.
    """
    if compiled.is_compiled(target) and first_latent() is None:
        return compiled.row_pass(codes, W_dec, target, centred, scales, blocks, is_signed, slopes)
    n, groups = len(target), len(scales)
    blocked = codes if blocks is None else _by_block(codes, blocks, groups)
    written = over_latents(sparse.decode(blocked, W_dec)).view(groups, n, -1)
    for group in range(1, groups):
        written[group] += written[group - 1]
    errors = target - written
    suffix = errors * scales[:, None, None]
    for group in range(groups - 1, 0, -1):
        suffix[group - 1] += suffix[group]
    grad = suffix.view(groups * n, -1)
    layout = sparse.LatentLayout(blocked, len(W_dec))
    dvalues = sparse.code_gradients(grad, blocked, W_dec)
    if not is_signed:
        dvalues = dvalues * (blocked.values > 0)
    if slopes is not None:
        dvalues = dvalues + slopes
    latents = {
        "W_enc": layout.reduce(dvalues, centred),
        "W_dec": layout.reduce(blocked.values, grad),
        "b_enc": layout.reduce_values(dvalues),
    }
    return RowPass(errors[-1], errors.pow(2).sum((1, 2)), suffix[0], latents)


def _by_block(codes: RaggedCodes, blocks: Tensor, groups: int) -> RaggedCodes:
    """Returns the codes with one virtual row for every block of latents and row."""
    rows = codes.rows() + codes.n_rows * blocks[codes.indices]
    order = torch.argsort(rows, stable=True)
    return RaggedCodes.of_rows(rows[order], codes.n_rows * groups, codes.indices[order], codes.values[order])

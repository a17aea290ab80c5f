"""How alike the directions of dictionaries are: cosines between decoder rows, in pieces.

Enters: matrices whose rows are directions. Leaves: for each row its strongest cosine, never a matrix of all pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

PAIRS_AT_ONCE = 1 << 24


def unit_rows(directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Returns the rows scaled to length 1; a row of zeros stays zero."""
    return torch.nn.functional.normalize(directions.float(), dim=1)


@torch.no_grad()
def nearest_rows(
    directions: Float[Tensor, "n d"], others: Float[Tensor, "m d"], *, is_same: bool = False, signed: bool = True
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Returns each row's strongest cosine among `others`, and whose it is.

    `is_same` says that both are one dictionary: a row is then no neighbour of itself. Without `signed` a direction and
    its opposite are the same (dictionaries whose values may be negative).
    """
    rows, columns = unit_rows(directions), unit_rows(others)
    best = torch.empty(len(rows), device=rows.device)
    whose = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    step = max(1, PAIRS_AT_ONCE // max(1, len(columns)))
    for start in range(0, len(rows), step):
        cosines = rows[start : start + step] @ columns.T
        if not signed:
            cosines.abs_()
        if is_same:
            own = torch.arange(len(cosines), device=cosines.device)
            cosines[own, own + start] = -torch.inf
        best[start : start + step], whose[start : start + step] = cosines.max(dim=1)
    return best, whose

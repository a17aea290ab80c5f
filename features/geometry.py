"""What the weights alone say about features: their nearest neighbours and the tokens they promote.

Enters: rows of `W_dec` or `W_enc`, and directions that read logits. Leaves: tables of neighbours and of logits.

* Neighbours: cosine of rows, all pairs in blocks, the k largest of each row.
* Logits: a residual direction d changes the logits by `logit_directions @ d`; the largest and smallest entries.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from features import schema

BLOCK_ENTRIES = 16_000_000


@torch.no_grad()
def neighbours(directions: Float[Tensor, "d_sae d"], k: int) -> pa.Table:
    """The `k` features whose rows have the largest cosine to each feature's, itself left out."""
    d_sae = directions.shape[0]
    k = min(k, d_sae - 1)
    unit = torch.nn.functional.normalize(directions.detach().float(), dim=1)
    values = np.empty((d_sae, k), dtype=np.float32)
    others = np.empty((d_sae, k), dtype=np.int32)
    block = max(1, BLOCK_ENTRIES // d_sae)
    for first in range(0, d_sae if k > 0 else 0, block):
        rows = unit[first : first + block]
        cosine = rows @ unit.T
        cosine[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = -torch.inf
        top = cosine.topk(k, dim=1)
        values[first : first + block] = top.values.cpu().numpy()
        others[first : first + block] = top.indices.cpu().numpy()
    return pa.table(
        [
            np.repeat(np.arange(d_sae, dtype=np.int32), k),
            np.tile(np.arange(k, dtype=np.int32), d_sae),
            others.reshape(-1),
            values.reshape(-1),
        ],
        schema=schema.TABLES["neighbours"].arrow_schema(),
    )


@torch.no_grad()
def logits(
    written: Float[Tensor, "d_sae d_model"], logit_directions: Float[Tensor, "vocab d_model"], k: int
) -> pa.Table:
    """The `k` tokens that each feature promotes, and the `k` that it suppresses most."""
    table = schema.TABLES["logit_ids"].arrow_schema()
    if k < 1:
        return table.empty_table()
    vocab, d_sae = logit_directions.shape[0], written.shape[0]
    k = min(k, vocab)
    directions = logit_directions.detach().float().to(written.device)
    values = np.empty((d_sae, 2, k), dtype=np.float32)
    tokens = np.empty((d_sae, 2, k), dtype=np.int32)
    block = max(1, BLOCK_ENTRIES // vocab)
    for first in range(0, d_sae, block):
        effect = written[first : first + block].detach().float() @ directions.T
        for side, largest in enumerate((True, False)):
            top = effect.topk(k, dim=1, largest=largest)
            values[first : first + block, side] = top.values.cpu().numpy()
            tokens[first : first + block, side] = top.indices.cpu().numpy()
    return pa.table(
        [
            np.repeat(np.arange(d_sae, dtype=np.int32), 2 * k),
            pa.array(np.tile(np.repeat(np.array(["top", "bottom"]), k), d_sae)),
            np.tile(np.arange(k, dtype=np.int32), 2 * d_sae),
            tokens.reshape(-1),
            values.reshape(-1),
        ],
        schema=table,
    )

"""What heads do on text that means nothing: scores of well-known roles, on repeated random tokens.

    head_roles(lm, seq_tokens=48, batch_rows=8, seed=0) -> HeadRoles

Enters: a model. Each sequence is a run of random tokens, and the same run again (behind the tokenizer's BOS where it
sets one). Leaves, for every head, the mean attention α at:

    previous_token   α[i, i−1]                          looks one back
    duplicate        α[i, i−n], in the repeat           looks at the same token, earlier
    induction        α[i, i−n+1], in the repeat         looks at what followed the same token
    first            α[i, 0]                            rests
    itself           α[i, i]
    positional       1 − the mean distance (half the absolute difference) between the patterns of two sequences of
                     different tokens: 1 looks by position alone

`chance` is what a head that looks at all tokens alike scores. A high score says what a head does on such input; on real
text it may do something else, and that it looks somewhere is no proof that it matters.

Source: Olsson et al. 2022 (2209.11895); TransformerLens `head_detector.py` for the idea of one detector per role.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.plain import to_json
from activations.attention import AttentionCall, attention_as

if TYPE_CHECKING:
    from activations.model import LanguageModel

ROLES = ("previous_token", "duplicate", "induction", "first", "itself", "positional")


@dataclass(frozen=True)
class HeadRoles:
    """Scores by role. Axes: layers, heads."""

    model: str
    seq_tokens: int
    """Tokens of one run; each sequence holds it twice."""
    batch_rows: int
    seed: int
    scores: dict[str, Float[np.ndarray, "layers heads"]] = field(repr=False)
    chance: dict[str, float]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each head, with the role that stands out most over chance."""
        layers, heads = next(iter(self.scores.values())).shape
        records = []
        for layer in range(layers):
            for head in range(heads):
                scores = {role: float(values[layer, head]) for role, values in self.scores.items()}
                over = {role: (score - self.chance[role]) / (1 - self.chance[role]) for role, score in scores.items()}
                best = max((role for role in over if role != "positional"), key=over.__getitem__)
                records.append({"layer": layer, "head": head, "role": best if over[best] > 0.2 else None, **scores})
        return records

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def head_roles(lm: LanguageModel, *, seq_tokens: int = 48, batch_rows: int = 8, seed: int = 0) -> HeadRoles:
    """Scores every head on repeated random tokens; runs shrink to half of the context where they must.

    Raises:
        ValueError: fewer than 2 sequences or tokens, a vocabulary without ordinary tokens, a model without patterns.
    """
    if seq_tokens < 2 or batch_rows < 2:
        raise ValueError(
            f"got seq_tokens={seq_tokens} and batch_rows={batch_rows}, expected at least 2 each: ask for more"
        )
    if lm.kind == "encoder-decoder":
        raise ValueError(f"{lm.name} has two stacks of layers, expected one: use a decoder or an encoder")
    bos = getattr(lm.tokenizer, "bos_token_id", None)
    has_bos = bos is not None and lm.encode(["a"])[0][0] == bos
    n = min(seq_tokens, (lm.context_tokens - int(has_bos)) // 2)
    ordinary = torch.tensor([token for token in range(len(lm.tokenizer)) if token not in lm.special_ids])
    if len(ordinary) < 2:
        raise ValueError(f"{lm.name} has {len(ordinary)} ordinary tokens, expected some: use another model")
    generator = torch.Generator().manual_seed(seed)
    # without repetition within a run where the vocabulary is large enough: else others than the twin look alike
    run = torch.stack([_drawn(ordinary, n, generator) for _ in range(batch_rows)])
    tokens = torch.cat([run, run], dim=1)
    if bos is not None and has_bos:
        tokens = torch.cat([torch.full((batch_rows, 1), int(bos)), tokens], dim=1)
    offset, total = int(has_bos), tokens.shape[1]
    query, key = torch.arange(total)[:, None], torch.arange(total)[None, :]
    in_repeat = query >= n + offset
    places = {
        "previous_token": (key == query - 1) & (query > 0),
        "duplicate": (key == query - n) & in_repeat,
        "induction": (key == query - n + 1) & in_repeat,
        "first": (key == 0) & (query > 0),
        "itself": (key == query) & (query > 0),
    }
    scores = {role: np.zeros((lm.n_layers, lm.site_map.stacks[-1].heads)) for role in ROLES}

    def score(call: AttentionCall) -> tuple[Tensor, Tensor]:
        out, pattern = call.compute(call.query, call.key, call.value)
        weights = pattern.double().cpu()
        for role, place in places.items():
            queries = batch_rows * int(place.any(1).sum())
            scores[role][call.layer] = (weights * place).sum((0, 2, 3)).numpy() / queries
        apart = 0.5 * (weights[1:] - weights[:-1]).abs().sum(-1)
        scores["positional"][call.layer] = 1 - apart.mean((0, 2)).numpy()
        return out, pattern

    with attention_as(lm, score):
        lm.forward(tokens.to(lm.device))
    reach = torch.where(key <= query, 1.0, 0.0) if lm.kind != "encoder" else torch.ones(total, total)
    uniform = reach / reach.sum(1, keepdim=True)
    chance = {role: float((uniform * place).sum() / place.any(1).sum()) for role, place in places.items()}
    return HeadRoles(
        model=lm.name,
        seq_tokens=n,
        batch_rows=batch_rows,
        seed=seed,
        scores=scores,
        chance=chance | {"positional": 0.0},
    )


def _drawn(ordinary: Tensor, n: int, generator: torch.Generator) -> Tensor:
    if n <= len(ordinary):
        return ordinary[torch.randperm(len(ordinary), generator=generator)[:n]]
    return ordinary[torch.randint(len(ordinary), (n,), generator=generator)]

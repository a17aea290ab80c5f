"""Attribution by other texts: a token left out, or others put in its place.

Enters: a `Metric`. Leaves: the parts of an `Attribution` (`activations.analyses.attribution` has the formulas and their
limits).

Source: Zeiler and Fergus 2013 (1311.2901).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from activations.analyses.baselines import groups, replaceable
from activations.analyses.inputs import token_id
from activations.analyses.targets import Metric


@torch.no_grad()
def leave_one_out(metric: Metric) -> dict[str, Any]:
    value = float(metric(metric.tokens))
    scores = np.zeros(metric.count)
    players = replaceable(metric)
    if metric.tokens.shape[1] == 1:
        raise ValueError("the text has one token, expected at least two to leave one out: give a longer text")
    ids = metric.tokens[0]
    for before in (True, False):
        # where the logits are read moves up when a token before it goes; the token there itself is read one before
        some = [each for each in players if (each <= metric.position) == before]
        for group in groups(some, len(ids)):
            rows = torch.stack([torch.cat([ids[:each], ids[each + 1 :]]) for each in group])
            place = max(0, metric.position - 1) if before else metric.position
            scores[group] = value - metric(rows, position=place).double().cpu().numpy()
    return {"scores": scores, "value": value, "settings": {}}


@torch.no_grad()
def substitution(
    metric: Metric, *, substitute: str | int | None = None, samples: int = 8, seed: int = 0
) -> dict[str, Any]:
    if samples < 1:
        raise ValueError(f"got samples={samples}, expected at least 1: ask for more")
    value = float(metric(metric.tokens))
    lm, players = metric.lm, replaceable(metric)
    if substitute is None:
        ordinary = torch.tensor([token for token in range(len(lm.tokenizer)) if token not in lm.special_ids])
        generator = torch.Generator().manual_seed(seed)
        # one draw for all tokens: their scores then differ by the tokens, not by the draw
        drawn = ordinary[torch.randint(len(ordinary), (samples,), generator=generator)].tolist()
        settings: dict[str, Any] = {"samples": samples, "seed": seed}
    else:
        drawn = [token_id(lm, substitute)]
        settings = {"substitute": lm.token_strings(drawn)[0]}
    changed = np.zeros((len(drawn), metric.count))
    for place, token in enumerate(drawn):
        for group in groups(players, metric.tokens.shape[1]):
            rows = metric.tokens.repeat(len(group), 1)
            rows[torch.arange(len(group)), torch.tensor(group)] = token
            changed[place, group] = value - metric(rows).double().cpu().numpy()
    errors = changed.std(0, ddof=1) / np.sqrt(len(drawn)) if len(drawn) > 1 else None
    return {"scores": changed.mean(0), "value": value, "standard_errors": errors, "settings": settings}

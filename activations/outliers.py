"""Rows of outlying norm, left out of training and evaluation on request.

Enters: rows of one or several sites. Leaves: the same rows without those whose norm at any of the sites exceeds a
multiple of the median norm there. In many models a few positions (the first token above all) carry norms a hundred
times the others', and a dictionary that is scored by squared error spends itself on them.

The medians are measured once, on the first tokens of the text, so that the limits belong to the run and not to the
order of its rows. A row that is outlying at one site is left out at all of them: rows of several sites stay aligned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from activations.harvesting import iter_row_batches

if TYPE_CHECKING:
    from activations.model import LanguageModel
    from activations.tokens import TokenRows

MEASURED_ROWS = 8192


def norm_limits(
    lm: LanguageModel,
    rows: TokenRows,
    sites: Sequence[str],
    multiple: float,
    batch_tokens: int = 8192,
    exclude_special_tokens: bool = True,
) -> dict[str, float]:
    """Returns the largest norm that a row may have at each site: `multiple` times the median of the first rows."""
    norms: dict[str, list[Tensor]] = {site: [] for site in sites}
    measured = 0
    for batch in iter_row_batches(lm, rows, list(sites), batch_tokens, exclude_special_tokens):
        for site, value in batch.values.items():
            norms[site].append(value.float().norm(dim=1).cpu())
        measured += len(batch.documents)
        if measured >= MEASURED_ROWS:
            break
    if not measured:
        raise ValueError("the token rows hold only special tokens, expected text: name another data source")
    return {site: multiple * float(torch.cat(found).median()) for site, found in norms.items()}


def within_limits(values: Mapping[str, Tensor], limits: Mapping[str, float]) -> Bool[Tensor, " rows"]:
    """Marks the rows that exceed no limit of a site that is at hand."""
    kept = [value.float().norm(dim=1) <= limits[site] for site, value in values.items() if site in limits]
    if not kept:
        first = next(iter(values.values()))
        return torch.ones(len(first), dtype=torch.bool, device=first.device)
    return torch.stack(kept).all(0)


class WithoutOutliers:
    """Rows by site without those beyond the limits; its state is that of the rows it reads, and the limits."""

    def __init__(self, rows: Any, limits: Mapping[str, float]) -> None:
        self._rows = rows
        self.limits = dict(limits)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for chunk in self._rows:
            kept = within_limits(chunk, self.limits)
            if bool(kept.all()):
                yield chunk
            elif bool(kept.any()):
                yield {site: value[kept] for site, value in chunk.items()}

    @property
    def mixing(self) -> dict[str, Any]:
        """Says how the rows read are mixed, outlying ones among them."""
        return dict(self._rows.mixing)

    def state(self) -> dict[str, Tensor]:
        """Returns the state of the rows read and the limits in force."""
        return {**self._rows.state(), "limits": torch.tensor(list(self.limits.values()), dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on under the limits that were in force."""
        if len(state.get("limits", ())) != len(self.limits):
            raise ValueError(
                f"the state holds {len(state.get('limits', ()))} limits of norms, expected {len(self.limits)}: resume "
                "with the same sites and data.exclude_outlier_norms"
            )
        self.limits = dict(zip(self.limits, state["limits"].tolist(), strict=True))
        self._rows.restore({name: value for name, value in state.items() if name != "limits"})

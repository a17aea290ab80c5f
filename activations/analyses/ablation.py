"""What a model loses without a component: every head, attention layer, MLP and token embedding taken out by itself.

    ablate_components(lm, text, target=None, *, how="mean", references=None) -> ComponentAblation
    compare_ablations(lm, text, target=None, *, references=None) -> AblationComparison

Enters: a model, a text, a target (`activations.analyses.targets`). Leaves, for each component, m(text) − m(text with
the component replaced at all positions): positive where it helped the target. What stands in its place:

    mean            its mean over the text's positions: what varies with the token is lost, what is constant stays
    zero            zero: also what later parts rely on as a constant is lost
    mean_reference  its mean over all positions of the reference texts
    resample        what it computes at the same positions of a reference text; the mean over these, with errors

Heads are replaced before the output projection, attention layers and MLPs in what they write, embeddings at one token.
`resample` keeps activations inside of what the model knows, `zero` leaves it the furthest; a component that only one of
them calls important is one whose constant part matters. `compare_ablations` puts them side by side.

It misleads where others take over: a model that has two heads for one thing misses neither. One pass a component, heads
of a layer side by side in one batch.

Source: Wang et al. 2022 (2211.00593) on mean and resample ablation; Li and Janson 2024 (2409.09951) on their choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.correlation import spearman
from activations.analyses.inputs import tokens_of
from activations.analyses.plain import plain, to_json
from activations.analyses.targets import Metric, Target
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel

BATCH_TOKENS = 2048
STRATEGIES = ("mean", "zero", "mean_reference", "resample")
WITH_REFERENCES = ("mean_reference", "resample")
KINDS = ("head_out", "attn_out", "mlp_out")
Replace = Callable[[str, Tensor], Tensor]
"""Takes a site and what stands there; returns what shall."""


@dataclass(frozen=True)
class ComponentAblation:
    """How much of the target's number each component makes."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    target: str
    how: str
    value: float
    """m(text), nothing taken out."""
    heads: Float[np.ndarray, "layers heads"]
    attention: Float[np.ndarray, " layers"]
    mlp: Float[np.ndarray, " layers"]
    embeddings: Float[np.ndarray, " tokens"]
    """Of each token's embedding, replaced at its position alone."""
    references: int = 0
    """Reference texts that were used."""
    standard_errors: dict[str, Float[np.ndarray, ...]] | None = None
    """Of `heads`, `attention`, `mlp`, `embeddings` over reference texts (`resample` with two or more)."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each component, the largest effect first."""
        records: list[dict[str, Any]] = []
        for name, values in self.by_kind().items():
            errors = None if self.standard_errors is None else self.standard_errors[name]
            for index in np.ndindex(values.shape):
                record = _named(name, index) | {"effect": float(values[index])}
                records.append(record | ({} if errors is None else {"standard_error": plain(errors[index])}))
        return sorted(records, key=lambda record: -abs(record["effect"]))

    def by_kind(self) -> dict[str, np.ndarray]:
        return {"heads": self.heads, "attention": self.attention, "mlp": self.mlp, "embeddings": self.embeddings}

    def to_json(self) -> str:
        return to_json(self)


def _named(name: str, index: tuple[int, ...]) -> dict[str, Any]:
    if name == "embeddings":
        return {"component": f"embedding at {index[0]}", "kind": "embedding", "layer": None}
    kind = {"heads": "head"}.get(name, name)
    return {"component": f"{kind} {'.'.join(map(str, index))}", "kind": kind, "layer": index[0]}


@torch.no_grad()
def ablate_components(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    target: Target = None,
    *,
    how: str = "mean",
    contrast: str | int | None = None,
    position: int | None = None,
    measure: str = "logit",
    references: Sequence[str] | None = None,
) -> ComponentAblation:
    """Takes out each head, attention layer, MLP and embedding by itself.

    Raises:
        ValueError: an unknown `how`, one that needs reference texts without any that is long enough, and whatever the
            target refuses.
    """
    if how not in STRATEGIES:
        raise ValueError(f"how={how!r} is unknown, expected {', '.join(STRATEGIES)}: choose one of these")
    metric = Metric(lm, text, target, contrast=contrast, position=position, measure=measure)
    value = float(metric(metric.tokens))
    if how in WITH_REFERENCES:
        kept = _references(metric, how, references)
        count = len(kept)
        ways = [_from_mean(kept)] if how == "mean_reference" else [_from(entry) for entry in kept]
    else:
        ways, count = [_in_place(how)], 0
    runs = [_effects(metric, value, way) for way in ways]
    mean = {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}
    errors = None
    if len(runs) > 1:
        errors = {name: np.std([run[name] for run in runs], axis=0, ddof=1) / np.sqrt(len(runs)) for name in mean}
    return ComponentAblation(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(metric.tokens[0, : metric.count].tolist())),
        target=metric.name,
        how=how,
        value=value,
        references=count,
        standard_errors=errors,
        **mean,
    )


def _effects(metric: Metric, value: float, replaced: Replace) -> dict[str, np.ndarray]:
    """m(text) less m without each component."""
    lm, heads = metric.lm, metric.lm.site_map.stacks[-1].heads
    found = {
        "heads": np.zeros((lm.n_layers, heads)),
        "attention": np.zeros(lm.n_layers),
        "mlp": np.zeros(lm.n_layers),
        "embeddings": np.zeros(metric.count),
    }
    size = max(1, BATCH_TOKENS // metric.tokens.shape[1])

    def left(site: str, edit: Callable[[Tensor], Tensor], rows: int = 1) -> np.ndarray:
        with lm.intervene({site: edit}):
            return value - metric(metric.tokens.expand(rows, -1)).double().cpu().numpy()

    for layer in range(lm.n_layers):
        site = str(Site("head_out", layer))
        for start in range(0, heads, size):
            some = list(range(start, min(start + size, heads)))
            found["heads"][layer, some] = left(site, _without_heads(site, some, replaced), len(some))
        for name, kind in (("attention", "attn_out"), ("mlp", "mlp_out")):
            site = str(Site(kind, layer))
            found[name][layer] = left(site, lambda x, site=site: replaced(site, x))[0]
    for start in range(0, metric.count, size):
        some = list(range(start, min(start + size, metric.count)))

        def edit(x: Tensor, some: list[int] = some) -> Tensor:
            other = replaced("embed", x[:1])
            x[range(len(some)), some] = other[0, some]
            return x

        found["embeddings"][some] = left("embed", edit, len(some))
    return found


def _without_heads(site: str, heads: list[int], replaced: Replace) -> Callable[[Tensor], Tensor]:
    """An edit that takes another head out of each row of a batch."""

    def edit(values: Tensor) -> Tensor:
        other = replaced(site, values[:1])
        for row, head in enumerate(heads):
            values[row, :, head] = other[0, :, head]
        return values

    return edit


def _in_place(how: str) -> Replace:
    def replaced(_site: str, values: Tensor) -> Tensor:
        return torch.zeros_like(values) if how == "zero" else values.mean(1, keepdim=True).expand_as(values).clone()

    return replaced


def _from(kept: dict[str, Tensor]) -> Replace:
    return lambda site, values: kept[site][:, : values.shape[1]].to(values).expand_as(values).clone()


def _from_mean(kept: list[dict[str, Tensor]]) -> Replace:
    means = {site: torch.cat([entry[site][0] for entry in kept]).double().mean(0) for site in kept[0]}
    return lambda site, values: means[site].to(values).expand_as(values).clone()


def _references(metric: Metric, how: str, references: Sequence[str] | None) -> list[dict[str, Tensor]]:
    """What each usable reference text makes the model compute at every site that is ablated."""
    lm = metric.lm
    if not references:
        raise ValueError(f"how={how!r} takes activations of other texts and got none, expected references: give some")
    rows = [tokens_of(lm, text) for text in references]
    length = metric.tokens.shape[1]
    if how == "resample":
        rows = [row[:, :length] for row in rows if row.shape[1] >= length]
    if not rows:
        raise ValueError(
            f"none of the {len(references)} reference texts has {length} tokens, expected at least as many as the "
            "text: give longer ones"
        )
    sites = ["embed", *(str(Site(kind, layer)) for layer in range(lm.n_layers) for kind in KINDS)]
    return [lm.capture(row, None, sites) for row in rows]


@dataclass(frozen=True)
class AblationComparison:
    """The same components taken out in several ways."""

    model: str
    text: str | None
    target: str
    value: float
    strategies: tuple[str, ...]
    components: tuple[str, ...]
    effects: Float[np.ndarray, "strategies components"]
    correlations: Float[np.ndarray, "strategies strategies"]
    """Spearman's ρ between the effects of two strategies."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each component, the largest mean effect first; `spread` is the range between ways."""
        records = [
            {"component": name}
            | {how: float(self.effects[row, column]) for row, how in enumerate(self.strategies)}
            | {"spread": float(np.ptp(self.effects[:, column]))}
            for column, name in enumerate(self.components)
        ]
        return sorted(records, key=lambda record: -max(abs(record[how]) for how in self.strategies))

    def to_json(self) -> str:
        return to_json(self)


def compare_ablations(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    target: Target = None,
    *,
    references: Sequence[str] | None = None,
    strategies: Sequence[str] | None = None,
    contrast: str | int | None = None,
    position: int | None = None,
    measure: str = "logit",
) -> AblationComparison:
    """Takes every component out by each strategy (default: all that the references allow).

    Raises:
        ValueError: as `ablate_components`.
    """
    chosen = tuple(strategies or [how for how in STRATEGIES if references or how not in WITH_REFERENCES])
    about = {"contrast": contrast, "position": position, "measure": measure, "references": references}
    found = [ablate_components(lm, text, target, how=how, **about) for how in chosen]  # pyright: ignore
    names = tuple(
        _named(name, index)["component"]
        for name, values in found[0].by_kind().items()
        for index in np.ndindex(values.shape)
    )
    effects = np.stack([np.concatenate([each.ravel() for each in entry.by_kind().values()]) for entry in found])
    return AblationComparison(
        model=lm.name,
        text=found[0].text,
        target=found[0].target,
        value=found[0].value,
        strategies=chosen,
        components=names,
        effects=effects,
        correlations=np.array([[spearman(a, b) for b in effects] for a in effects]),
    )

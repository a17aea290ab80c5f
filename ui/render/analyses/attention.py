"""Attention: a picture for each head, its way through all layers, the roles of heads, two texts beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ui.render.analyses.drawing import LISTED, Drawing, head_map, matrix, ranking
from ui.render.heatmap import Heatmap, pixels, token_label
from ui.render.html import highlighted

if TYPE_CHECKING:
    from activations.analyses import AttentionComparison, AttentionPatterns, AttentionRoutes, HeadRoles


def _attention(found: AttentionPatterns) -> str:
    cells = []
    for place, layer in enumerate(found.layers):
        for head, pattern in enumerate(found.patterns[place]):
            # the first token often takes nearly all: the scale is the largest among the others
            others = float(pattern[1:, 1:].max()) if len(pattern) > 1 else 1.0
            picture = pixels(pattern.tolist(), max(others, 0.05))
            cells.append(f'<figure class="head-map">{picture}<figcaption>{layer}.{head}</figcaption></figure>')
    grid = f'<div class="card"><div class="head-maps">{"".join(cells)}</div></div>'
    columns = ["layer", "head", "entropy", "mean_distance", "on_itself", "on_previous", "on_first", "most_read"]
    rows = found.rows()
    table = (
        ranking(rows, columns)
        if len(rows) <= LISTED
        else (f"<details><summary>All heads in numbers</summary>{_all(rows, columns)}</details>")
    )
    return grid + table


def _all(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    return "".join(ranking(rows[start : start + LISTED], columns) for start in range(0, len(rows), LISTED))


def _attention_maps(found: AttentionPatterns) -> list[Heatmap]:
    return [
        Heatmap(
            title=f"Attention of layer {layer}, mean of heads",
            x_label="is read",
            y_label="reads",
            unit="attention",
            columns=found.tokens,
            rows=[token_label(token) for token in found.tokens],
            values=matrix(found.patterns[place].mean(0)),
        )
        for place, layer in enumerate(found.layers)
    ]


def head_heatmap(found: AttentionPatterns, place: int, head: int) -> Heatmap:
    """Returns the map of one head: rows read, columns are read."""
    pattern = [
        [None if column > row and not value else value for column, value in enumerate(values)]
        for row, values in enumerate(matrix(found.patterns[place, head]))
    ]
    return Heatmap(
        title=f"Head {found.layers[place]}.{head}: a row is a token that reads, a column one that is read",
        x_label="is read",
        y_label="reads",
        unit="attention",
        columns=found.tokens,
        rows=[token_label(token) for token in found.tokens],
        values=pattern,
    )


def _routes(found: AttentionRoutes) -> str:
    parts = []
    for name, values in (("Rollout", found.rollout), ("Flow", found.flow)):
        text = highlighted(found.tokens, [float(value) for value in values], float(values.max()), unit="share")
        parts.append(f'<div class="card stack"><h3>{name}</h3>{text}</div>')
    return "".join(parts)


def _routes_map(found: AttentionRoutes) -> list[Heatmap]:
    return [
        Heatmap(
            title="Attention followed through all layers",
            x_label="token",
            y_label="method",
            unit="share",
            columns=found.tokens,
            rows=["rollout", "flow"],
            values=matrix([found.rollout, found.flow]),
        )
    ]


def _roles_map(found: HeadRoles) -> list[Heatmap]:
    layers, heads = next(iter(found.scores.values())).shape
    names = [f"{layer}.{head}" for layer in range(layers) for head in range(heads)]
    return [
        Heatmap(
            title="Roles of heads",
            x_label="head",
            y_label="role",
            unit="score",
            columns=names,
            rows=[role.replace("_", " ") for role in found.scores],
            values=matrix([scores.ravel() for scores in found.scores.values()]),
            is_token_axis=False,
        )
    ]


def _compared_map(found: AttentionComparison) -> list[Heatmap]:
    return [head_map("Change of attention", found.distances, found.layers, "of attention moved")]


DRAWINGS = {
    "attention": Drawing(
        heading="Attention",
        what=(
            "Each picture is a head: a row is a token that reads, a column one that is read, the first at the top "
            "left. Attention is not importance: see the ablation."
        ),
        body=_attention,
        maps=_attention_maps,
    ),
    "routes": Drawing(
        heading="Attention through all layers",
        what=(
            "Attention followed from the target's position through all layers: rollout multiplies the layers' mean "
            "patterns, flow asks how much could pass. Neither knows what values, MLPs or signs do."
        ),
        body=_routes,
        maps=_routes_map,
    ),
    "roles": Drawing(
        heading="Roles of heads",
        what=(
            "What heads do on repeated random tokens, which mean nothing: the share of attention at each kind of place."
        ),
        maps=_roles_map,
    ),
    "compared_attention": Drawing(
        heading="Attention on both texts",
        what="How differently each head looks, at the tokens that the two texts share.",
        maps=_compared_map,
    ),
}

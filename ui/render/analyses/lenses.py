"""The stream layer by layer: what can be read in it, what writes the logit, how large it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ui.render import html
from ui.render.analyses.drawing import Drawing, component_map, map_cards, matrix, ranking
from ui.render.figures import short
from ui.render.heatmap import Heatmap, token_label
from ui.render.html import escape, visible

if TYPE_CHECKING:
    from activations.analyses import ActivationNorms, DirectAttribution, LogitLens, StreamFlow

SIDE, LABELS = 170, 70
"""Pixels of the longest bar, and of the names on the left."""


def _lens(found: LogitLens) -> str:
    head = "".join(f"<th>{html.chip(token)}</th>" for token in found.tokens)
    lines = []
    for place, site in enumerate(found.sites):
        cells = []
        for position in range(len(found.tokens)):
            tops = found.top_tokens[place][position]
            shares = found.top_probabilities[place, position]
            told = ", ".join(f"{token_label(token)} {share:.0%}" for token, share in zip(tops, shares, strict=True))
            if found.target_tokens[position] is not None:
                rank = int(found.target_ranks[place, position]) + 1
                told += f" · next in the text: {token_label(found.target_tokens[position] or '')}, rank {rank}"
            told += f" · entropy {found.entropies[place, position]:.2f}, KL to the end "
            told += f"{found.divergences[place, position]:.2f} nats"
            mark = " settled" if place >= found.converged_at[position] else ""
            cells.append(
                f'<td class="t{mark}" style="--a:{0.08 + 0.75 * float(shares[0]):.2f}" title="{escape(told)}">'
                f"{visible(tops[0], spaces=True)}</td>"
            )
        lines.append(f'<tr><th scope="row">{escape(site)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="card scrolls"><table class="lens tight"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _lens_map(found: LogitLens) -> list[Heatmap]:
    common: dict[str, Any] = {"x_label": "token", "y_label": "after", "columns": found.tokens, "rows": found.sites}
    return [
        Heatmap(
            title="Probability of the expected token",
            unit="probability",
            values=matrix(found.target_probabilities),
            **common,
        ),
        Heatmap(title="Divergence from the end", unit="nats", values=matrix(found.divergences), **common),
        Heatmap(title="Entropy", unit="nats", values=matrix(found.entropies), **common),
    ]


def _direct(found: DirectAttribution) -> str:
    said = f"{escape(found.target)}" + (f" less {escape(found.contrast)}" if found.contrast else "")
    about = f"Logit of {said}: {short(found.logit)}; the sum of all parts misses it by {short(found.error)}."
    return (
        f'<p class="small">{about}</p>{map_cards(_direct_map(found))}{ranking(found.rows(), ["component", "effect"])}'
    )


def _direct_map(found: DirectAttribution) -> list[Heatmap]:
    return [component_map("Direct effect on the logit", found.heads, found.mlp, "logits")]


def _norms_map(found: ActivationNorms) -> list[Heatmap]:
    shares = found.norms / found.norms.max(1, keepdims=True).clip(1e-30)
    return [
        Heatmap(
            title="Length of activations",
            x_label="token",
            y_label="place",
            unit="of the row's largest",
            columns=found.tokens,
            rows=found.sites,
            values=matrix(shares),
        )
    ]


def _lens_rows(found: LogitLens) -> list[dict[str, Any]]:
    return [
        {
            "position": position,
            "token": token,
            "says": found.top_tokens[-1][position][0],
            "probability": float(found.top_probabilities[-1, position, 0]),
            "next": found.target_tokens[position],
            "settled after": found.sites[int(found.converged_at[position])],
            "before": found.top_tokens[max(0, int(found.converged_at[position]) - 1)][position][0],
        }
        for position, token in enumerate(found.tokens)
    ]


def _norms_rows(found: ActivationNorms) -> list[dict[str, Any]]:
    return [
        {
            "site": site,
            "mean length": float(found.norms[place].mean()),
            "largest": float(found.norms[place].max()),
            "at": found.tokens[int(found.norms[place].argmax())],
        }
        for place, site in enumerate(found.sites)
    ]


def _flow(found: StreamFlow) -> str:
    error = (
        "Here the sum is normed in every layer: what is added does not add up to the stream."
        if found.error is None
        else f"What is added is all there is: rounding is {short(found.error)} of a row at most."
    )
    return (
        f'<div class="card scrolls stack"><p class="small muted">Mean over the tokens. {error}</p>'
        f"{flow_svg(found)}</div>{map_cards(_flow_maps(found))}"
    )


def flow_svg(found: StreamFlow) -> str:
    """Returns the stream from the top down as inline SVG: a bar for its length between what attention adds on the left
    and what the MLP adds on the right; blue where that takes away from what is there."""
    rows = found.rows()
    largest = max(max(row["stream"], row["attention_adds"], row["mlp_adds"]) for row in rows) or 1e-30
    scale, middle, step = SIDE / largest, LABELS + SIDE + SIDE // 2, 30
    parts = []
    for row in rows:
        y = 26 + step * row["layer"]
        width = max(2.0, scale * row["stream"])
        parts.append(
            f'<text x="{LABELS - 8}" y="{y + 15}" text-anchor="end">layer {row["layer"]}</text>'
            f'<rect x="{middle - width / 2:.1f}" y="{y}" width="{width:.1f}" height="{step - 8}" fill-opacity="0.25">'
            f"<title>stream: length {short(row['stream'])}; {row['kept']:.2f} of its direction is kept</title></rect>"
        )
        for name, sign, said in (("attention", -1, "attention"), ("mlp", 1, "MLP")):
            added, cosine = row[f"{name}_adds"], row[f"{name}_cosine"]
            length = max(1.0, scale * added)
            edge = middle + sign * (SIDE // 2 + 4)
            colour = ' class="cold"' if cosine < 0 else ""
            parts.append(
                f'<rect{colour} x="{edge - length if sign < 0 else edge:.1f}" y="{y + 3}" width="{length:.1f}" '
                f'height="{step - 14}" fill-opacity="{0.35 + 0.65 * min(1.0, abs(cosine)):.2f}"><title>{said} adds '
                f"length {short(added)}, cosine {cosine:+.2f} with the stream</title></rect>"
            )
    heads = ((middle - SIDE, "attention adds"), (middle, "stream"), (middle + SIDE, "MLP adds"))
    names = "".join(f'<text x="{x}" y="14" text-anchor="middle">{name}</text>' for x, name in heads)
    wide, tall = LABELS + 3 * SIDE + 16, 34 + step * len(rows)
    return (
        f'<svg class="heat" style="width:{wide}px" viewBox="0 0 {wide} {tall}" role="img" '
        f'aria-label="What each layer adds to the stream">{names}{"".join(parts)}</svg>'
    )


def _flow_maps(found: StreamFlow) -> list[Heatmap]:
    common: dict[str, Any] = {"x_label": "token", "y_label": "layer", "columns": found.tokens}
    common["rows"] = [f"layer {layer}" for layer in range(len(found.entering))]
    # the embeddings are short: over the stream that leaves, the first layer does not drown the others
    leaving = found.leaving.clip(1e-30)
    parts = (
        ("What attention adds, over the length of the stream that leaves", "of it", found.attention / leaving),
        ("Attention along the stream", "cosine", found.attention_cosine),
        ("What the MLP adds, over the length of the stream that leaves", "of it", found.mlp / leaving),
        ("MLP along the stream", "cosine", found.mlp_cosine),
    )
    return [Heatmap(title=title, unit=unit, values=matrix(values), **common) for title, unit, values in parts]


DRAWINGS = {
    "tuned_lens": Drawing(
        heading="Tuned lens",
        what=(
            "The same through a trained translation of each layer into the last one's basis. It says what the model is "
            "on the way to; a translation can also add what usually follows."
        ),
        body=_lens,
        maps=_lens_map,
        rows=_lens_rows,
    ),
    "flow": Drawing(
        heading="What each layer adds",
        what=(
            "The residual stream from the first layer down: how long it is, what attention and MLP add to it, and "
            "whether that lies along it (orange) or takes away (blue). A large addition need not be read by anyone."
        ),
        body=_flow,
        maps=_flow_maps,
    ),
    "lens": Drawing(
        heading="Logit lens",
        what=(
            "What the model would predict if it stopped after each layer, from the top (embeddings) down; colour is"
            " the probability of the first choice. Hover to read more choices. Early layers are often unreadable "
            "this way."
        ),
        body=_lens,
        maps=_lens_map,
        rows=_lens_rows,
    ),
    "direct": Drawing(
        heading="Direct effect on the logit",
        what=(
            "What each head and MLP wrote directly into the logit, the final norm's scale held fixed. The parts sum"
            " to the logit; what later layers make of a part is not counted."
        ),
        body=_direct,
        maps=_direct_map,
    ),
    "norms": Drawing(
        heading="Length of activations",
        what="The length of what stands at each place, the largest of each row in full colour.",
        maps=_norms_map,
        rows=_norms_rows,
    ),
}

"""The page, the tables and the pictures of an analysis.

Enters: an `activations.analyses` result. Leaves: terminal tables, one self-contained HTML page with the JSON beside
it, or heat maps that `ui.render.heatmap` draws as plotly figures and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ui.render import html
from ui.render.figures import short
from ui.render.heatmap import Heatmap, heatmap_svg, pixels, token_label
from ui.render.html import chip, escape, explained, highlighted, visible
from ui.render.links import Link, plain
from ui.render.report import write_page
from ui.render.tables import records_table

if TYPE_CHECKING:
    from activations.analyses import (
        ActivationNorms,
        ActivationPatching,
        Agreement,
        Analysis,
        AttentionComparison,
        AttentionPatterns,
        AttentionRoutes,
        Attribution,
        ComponentAblation,
        DirectAttribution,
        HeadRoles,
        LogitLens,
    )
    from features.records import ActiveFeatures

SHOWN = 8
"""Records of a ranking in the terminal."""
LISTED = 20
"""Records of a ranking on the page."""
ATTRIBUTIONS = {
    "gradient_norm": "Gradient norm",
    "gradient_x_input": "Gradient × input",
    "integrated_gradients": "Integrated gradients",
    "leave_one_out": "Leave one out",
    "substitution": "Substitution",
}
WHAT = {
    "attributions": (
        "How much each token makes of the target's number, by different questions: how sensitive it is (gradient "
        "norm), what shrinking a token's embedding would do (gradient × input), what replacing it by padding adds "
        "up to (integrated gradients), what leaving it out or putting another in its place changes. Orange raises "
        "the number, blue lowers it; hover to read the value."
    ),
    "agreement": "Rank correlation of the methods' absolute scores: 1 ranks tokens alike, 0 has nothing in common.",
    "lens": (
        "What the model would predict if it stopped after each layer, from the top (embeddings) down; colour is "
        "the probability of the first choice. Hover to read more choices. Early layers are often unreadable this "
        "way."
    ),
    "direct": (
        "What each head and MLP wrote directly into the logit, the final norm's scale held fixed. The parts sum "
        "to the logit; what later layers make of a part is not counted."
    ),
    "attention": (
        "Each picture is a head: a row is a token that reads, a column one that is read, the first at the top left. "
        "Attention is not importance: see the ablation."
    ),
    "routes": (
        "Attention followed from the target's position through all layers: rollout multiplies the layers' mean "
        "patterns, flow asks how much could pass. Neither knows what values, MLPs or signs do."
    ),
    "ablation": (
        "How much the target falls when a component's output is replaced by its mean over the text; orange "
        "helped, blue hindered. Parts that back each other up both look unimportant."
    ),
    "norms": "The length of what stands at each place, the largest of each row in full colour.",
    "roles": (
        "What heads do on repeated random tokens, which mean nothing: the share of attention at each kind of place."
    ),
    "patching": (
        "The share of the difference between the two texts that comes back when one activation of the other text "
        "is put in its place: 1 is all of it."
    ),
    "compared_attention": "How differently each head looks, at the tokens that the two texts share.",
}


def write_analysis_report(result: Analysis, path: Path, extra: str = "") -> Path:
    """Writes the page of an analysis, and all of it as JSON beside it; returns the page's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path.with_suffix(".json"), result.to_json() + "\n")
    return write_page(path, analysis_page(result, extra))


def analysis_page(result: Analysis, extra: str = "") -> str:
    """Returns the page of an analysis; `extra` is HTML (already) that goes behind the rest."""
    facts = {"model": result.model, "tokens": f"{len(result.tokens):,}", "target": result.target}
    facts |= {"methods": str(len(result.results)), "seconds": f"{sum(result.time_s.values()):.1f}"}
    texts = _quoted(result.tokens)
    if result.compare is not None:
        texts += f'<p class="muted small">compared with</p><div class="text">{visible(result.compare)}</div>'
    left_out = "".join(
        f'<p class="notice">{escape(name)} was left out: {escape(why)}</p>' for name, why in result.left_out.items()
    )
    return html.page(
        "Glassbox: analysis",
        f'<header class="stack"><h3>Glassbox</h3><h1>Why did the model say that</h1>'
        f'<div class="card stack">{texts}</div>{html.facts(facts)}{left_out}</header>'
        f"{''.join(sections(result))}{extra}",
    )


def sections(result: Analysis) -> list[str]:
    """Returns a section of HTML for each method, attributions together."""
    scored = {name: found for name, found in result.results.items() if name in ATTRIBUTIONS}
    parts = [_section("Attribution", WHAT["attributions"], _attributions(scored))] if scored else []
    for name, found in result.results.items():
        if name not in scored:
            heading, draw = _DRAWN[name]
            parts.append(_section(heading, WHAT[name], draw(found)))
    return parts


def features_section(found: ActiveFeatures, link: Link = plain) -> str:
    """Returns the features that are active on the text, by their effect on the target."""
    rows = [
        {
            "feature": link(row["feature"], str(row["feature"])),
            "effect": f"{row['effect']:+.3g}",
            "activation": f"{row['activation']:.3g}",
            "token": chip(row["token"]),
            "explanation": explained(row["explanation"]),
        }
        for row in feature_rows(found)
    ]
    what = f"Features of the dictionary by their effect on the logit of {found.target!r} at the end of the text."
    columns = {"feature": "Feature", "effect": "Effect", "activation": "Activation", "token": "Strongest at"}
    listed = html.table(columns | {"explanation": "Explanation"}, rows, "list", numbers=("effect", "activation"))
    return _section("Features", what, f'<div class="scrolls">{listed}</div>')


def feature_rows(found: ActiveFeatures) -> list[dict[str, Any]]:
    """Returns a record for each feature that is active on a text, the largest effect first."""
    return [
        {"feature": entry.feature, "effect": entry.total, "activation": entry.max_activation}
        | {"token": found.tokens[entry.token], "explanation": entry.explanation}
        for entry in found.ranked
    ]


def heatmaps(name: str, found: Any) -> list[Heatmap]:
    """Returns the pictures of one method's result, for plotly and for files; none where it has no map."""
    return [] if name not in _MAPS else _MAPS[name](found)


def analysis_tables(result: Analysis) -> list[Table | Text]:
    """Returns the text in colours by the first attribution, and a table for each method, for the terminal."""
    parts: list[Table | Text] = []
    for name, found in result.results.items():
        if name in ATTRIBUTIONS:
            parts += [Text(f"{ATTRIBUTIONS[name]}: {_summary(found)}", style="bold"), overlay(found)]
    for name, found in result.results.items():
        if name not in ATTRIBUTIONS:
            heading = _DRAWN[name][0]
            rows = _TERMINAL.get(name, lambda found: found.rows())(found)
            more = f" (first {SHOWN} of {len(rows)}; all with --json or --out)" if len(rows) > 2 * SHOWN else ""
            parts.append(records_table(f"{heading}{more}", rows[:SHOWN] if more else rows))
    if result.left_out:
        parts.append(records_table("Left out", [{"method": k, "why": v} for k, v in result.left_out.items()]))
    return parts


def overlay(found: Attribution) -> Text:
    """Returns the text with its tokens coloured by score, for the terminal."""
    largest = max((abs(float(score)) for score in found.scores), default=0.0) or 1.0
    shown = Text()
    for token, score in zip(found.tokens, found.scores, strict=True):
        strength = round(200 * abs(float(score)) / largest)
        # orange raises, blue lowers; the ink stays dark enough to read on both
        colour = (
            f"rgb(255,{255 - strength // 2},{255 - strength})"
            if score > 0
            else (f"rgb({255 - strength},{255 - strength // 2},255)")
        )
        label = token.translate(html.UNSEEN | {9: "⇥", 10: "⏎", 13: "␍"})
        shown.append(label, style=f"black on {colour}" if strength > 12 else "")
    return shown


def _summary(found: Attribution) -> str:
    said = f"{found.target} is {short(found.value)}"
    if found.baseline_value is not None and found.error is not None:
        said += f", {short(found.baseline_value)} at the baseline, error {short(found.error)}"
        if (found.relative_error or 0) > 0.05:
            said += " (large: more steps, or another baseline)"
    return said


def _section(heading: str, what: str, body: str) -> str:
    return f'<section><h2>{escape(heading)}</h2><p class="muted">{escape(what)}</p>{body}</section>'


def _quoted(tokens: Sequence[str]) -> str:
    return f'<div class="text">{"".join(visible(token) for token in tokens)}</div>'


def _map(chart: Heatmap) -> str:
    return f'<div class="card scrolls stack"><p class="small muted">{escape(chart.title)}</p>{heatmap_svg(chart)}</div>'


def _maps(name: str) -> Callable[[Any], str]:
    return lambda found: "".join(map(_map, _MAPS[name](found)))


def _ranking(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    shown = [{column: _cell(column, row.get(column)) for column in columns} for row in rows[:LISTED]]
    numbers = [column for column in columns if isinstance(rows[0].get(column), float)] if rows else []
    names = {column: column.replace("_", " ") for column in columns}
    return f'<div class="card scrolls">{html.table(names, shown, "tight", numbers)}</div>'


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return escape(short(value))
    if column in {"token", "most_read"}:
        return html.chip(str(value))
    if column == "explanation":
        return html.explained(str(value))
    return escape(value)


def _attributions(scored: dict[str, Attribution]) -> str:
    parts = []
    for name, found in scored.items():
        largest = max((abs(float(score)) for score in found.scores), default=0.0)
        text = highlighted(found.tokens, [float(score) for score in found.scores], largest, unit="score")
        parts.append(
            f'<div class="card stack"><h3>{escape(ATTRIBUTIONS[name])}</h3>{text}'
            f'<p class="muted small">{escape(_summary(found))}</p></div>'
        )
    return "".join(parts)


def _agreement(found: Agreement) -> str:
    return _map(_agreement_map(found))


def _agreement_map(found: Agreement) -> Heatmap:
    names = [ATTRIBUTIONS.get(name, name) for name in found.methods]
    return Heatmap(
        title="Agreement of methods",
        x_label="method",
        y_label="method",
        unit="rank correlation",
        columns=names,
        rows=names,
        values=_values(found.correlations),
        is_token_axis=False,
    )


def _values(array: Any) -> list[list[float | None]]:
    # a number that does not exist (NaN) is the one that is not itself
    return [[float(value) if value == value else None for value in row] for row in array]


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
            values=_values(found.target_probabilities),
            **common,
        ),
        Heatmap(title="Divergence from the end", unit="nats", values=_values(found.divergences), **common),
        Heatmap(title="Entropy", unit="nats", values=_values(found.entropies), **common),
    ]


def _direct(found: DirectAttribution) -> str:
    said = f"{escape(found.target)}" + (f" less {escape(found.contrast)}" if found.contrast else "")
    about = f"Logit of {said}: {short(found.logit)}; the sum of all parts misses it by {short(found.error)}."
    return f'<p class="small">{about}</p>{_maps("direct")(found)}{_ranking(found.rows(), ["component", "effect"])}'


def _direct_map(found: DirectAttribution) -> list[Heatmap]:
    return [_component_map("Direct effect on the logit", found.heads, found.mlp, "logits")]


def _component_map(title: str, heads: Any, mlp: Any, unit: str, attention: Any = None) -> Heatmap:
    count = len(heads[0])
    columns = [*(f"head {head}" for head in range(count)), *(["all heads"] if attention is not None else []), "MLP"]
    values = [
        [*heads[layer], *([attention[layer]] if attention is not None else []), mlp[layer]]
        for layer in range(len(heads))
    ]
    return Heatmap(
        title=title,
        x_label="component",
        y_label="layer",
        unit=unit,
        columns=columns,
        rows=[f"layer {layer}" for layer in range(len(heads))],
        values=_values(values),
        is_token_axis=False,
    )


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
        _ranking(rows, columns)
        if len(rows) <= LISTED
        else (f"<details><summary>All heads in numbers</summary>{_all(rows, columns)}</details>")
    )
    return grid + table


def _all(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    return "".join(_ranking(rows[start : start + LISTED], columns) for start in range(0, len(rows), LISTED))


def _attention_maps(found: AttentionPatterns) -> list[Heatmap]:
    return [
        Heatmap(
            title=f"Attention of layer {layer}, mean of heads",
            x_label="is read",
            y_label="reads",
            unit="attention",
            columns=found.tokens,
            rows=[token_label(token) for token in found.tokens],
            values=_values(found.patterns[place].mean(0)),
        )
        for place, layer in enumerate(found.layers)
    ]


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
            values=_values([found.rollout, found.flow]),
        )
    ]


def _ablation(found: ComponentAblation) -> str:
    return f"{_maps('ablation')(found)}{_ranking(found.rows(), ['component', 'effect'])}"


def _ablation_map(found: ComponentAblation) -> list[Heatmap]:
    title = f"Fall of the {found.target} ({found.how} ablation)"
    return [_component_map(title, found.heads, found.mlp, "logits", found.attention)]


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
            values=_values(shares),
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
            values=_values([scores.ravel() for scores in found.scores.values()]),
            is_token_axis=False,
        )
    ]


def _patching_map(found: ActivationPatching) -> list[Heatmap]:
    titles = {
        "resid_pre": "Residual stream entering the layer",
        "attn_out": "Attention's output",
        "mlp_out": "MLP's output",
    }
    # words that differ are named by both texts
    columns = [
        ours if ours == theirs else f"{ours.strip()}/{theirs.strip()}"
        for ours, theirs in zip(found.tokens, found.corrupt_tokens, strict=True)
    ]
    maps = [
        Heatmap(
            title=titles[kind],
            x_label="token",
            y_label="layer",
            unit="of the difference",
            columns=columns,
            rows=[f"layer {layer}" for layer in range(len(values))],
            values=_values(values),
        )
        for kind, values in found.effects.items()
    ]
    heads = Heatmap(
        title="Heads, at all positions",
        x_label="head",
        y_label="layer",
        unit="of the difference",
        columns=[f"head {head}" for head in range(found.heads.shape[1])],
        rows=[f"layer {layer}" for layer in range(len(found.heads))],
        values=_values(found.heads),
        is_token_axis=False,
    )
    return [*maps, heads]


def _patching(found: ActivationPatching) -> str:
    said = (
        f"{found.target}: {short(found.clean_value)} on the text, {short(found.corrupt_value)} on the one it is "
        f"compared with ({found.direction})."
    )
    return f'<p class="small">{escape(said)}</p>{_maps("patching")(found)}'


def _compared_map(found: AttentionComparison) -> list[Heatmap]:
    return [
        Heatmap(
            title="Change of attention",
            x_label="head",
            y_label="layer",
            unit="of attention moved",
            columns=[f"head {head}" for head in range(found.distances.shape[1])],
            rows=[f"layer {layer}" for layer in found.layers],
            values=_values(found.distances),
            is_token_axis=False,
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


_MAPS: dict[str, Callable[[Any], list[Heatmap]]] = {
    "agreement": lambda found: [_agreement_map(found)],
    "lens": _lens_map,
    "direct": _direct_map,
    "attention": _attention_maps,
    "routes": _routes_map,
    "ablation": _ablation_map,
    "norms": _norms_map,
    "roles": _roles_map,
    "patching": _patching_map,
    "compared_attention": _compared_map,
}
_DRAWN: dict[str, tuple[str, Callable[[Any], str]]] = {
    "agreement": ("Agreement of the methods", _agreement),
    "lens": ("Logit lens", _lens),
    "direct": ("Direct effect on the logit", _direct),
    "attention": ("Attention", _attention),
    "routes": ("Attention through all layers", _routes),
    "ablation": ("Ablation", _ablation),
    "norms": ("Length of activations", _maps("norms")),
    "roles": ("Roles of heads", _maps("roles")),
    "patching": ("Activation patching", _patching),
    "compared_attention": ("Attention on both texts", _maps("compared_attention")),
}
_TERMINAL: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
    "lens": _lens_rows,
    "norms": lambda found: [
        {
            "site": site,
            "mean length": float(found.norms[place].mean()),
            "largest": float(found.norms[place].max()),
            "at": found.tokens[int(found.norms[place].argmax())],
        }
        for place, site in enumerate(found.sites)
    ],
}

"""The page that compares SAEs: frontier, figures, distributions, stability, probes.

Enters: a `features.evaluation_run.Evaluation`. Leaves: one HTML file that opens anywhere, offline, without a script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ui.render import figures, html
from ui.render.curves import Point, Scatter, legend, scatter_svg
from ui.render.figures import Chart
from ui.render.html import escape, table
from ui.render.report import NAMES, value_text, write_page

if TYPE_CHECKING:
    from features.evaluation_run import Evaluation

GROUPS = {
    "Reconstruction": ("explained_variance", "fvu", "mse", "cosine", "relative_norm", "relative_bias", "norm_"),
    "What the model keeps": ("ce_", "kl", "n_tokens"),
    "Sparsity": ("l0", "l1", "alive_frac", "dead_frac", "common_frac", "dense_frac", "consistent_", "n_rows"),
    "Activations and shrinkage": ("activation_", "negative_frac", "rescale_"),
    "Redundancy": ("decoder_", "duplicate_frac", "encoder_", "meta_"),
    "Probing": ("probe_",),
    "Absorption and concept removal": ("absorption_", "full_absorption", "main_latents", "tpp_", "scr_"),
}
LEAD = (
    "Held-out text, the same for every SAE of a model. Better is up and to the left: more kept with fewer active "
    "latents. Bars are one standard error."
)
DENSITIES = "How often latents fire, on a logarithmic axis: a peak at the right is latents that fire almost everywhere."
REDUNDANT = "How alike each decoder row is to its nearest other one: weight at the right is latents that say the same."
STABLE = (
    "Latents matched one to one by decoder cosine: MCC is the mean over the smaller dictionary, found again the share "
    "above 0.7. Only latents that fired on the held-out text take part. SAEs of one seed start from the same "
    "directions, which raises all of it: compare seeds."
)
PROBED = (
    "Accuracy on held-out texts, half of which carry the label; averaged over labels. Dense reads whole activations; "
    "coordinates, random and shuffled are controls with as many inputs as the k latents."
)


def write_evaluation_report(evaluation: Evaluation, path: Path) -> Path:
    """Writes the page that compares SAEs, and its numbers as JSON beside it; returns the page's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path.with_suffix(".json"), evaluation.to_json() + "\n")
    return write_page(path, evaluation_page(evaluation))


def evaluation_page(evaluation: Evaluation) -> str:
    """Returns the page that compares SAEs."""
    names = list(evaluation.metrics)
    facts = {"SAEs": str(len(names)), **_common(evaluation, "model", "model"), **_common(evaluation, "data", "text")}
    rows = max(metrics.n_rows for metrics in evaluation.metrics.values())
    facts["rows measured"] = f"{rows:,}"
    body = (
        f'<header class="stack"><h3>Glassbox</h3><h1>Evaluation</h1>{html.facts(facts)}</header>'
        f"{_frontier(evaluation)}{_summary(evaluation)}{_distributions(evaluation)}{_stability(evaluation)}"
        f"{_probing(evaluation)}{_refused(evaluation)}{_figures(evaluation)}"
    )
    return html.page("Glassbox: evaluation", body)


def _section(heading: str, text: str, content: str) -> str:
    said = f'<p class="muted">{text}</p>' if text else ""
    return f"<section><h2>{escape(heading)}</h2>{said}{content}</section>"


def _card(content: str) -> str:
    return f'<div class="card scrolls">{content}</div>'


def _common(evaluation: Evaluation, key: str, heading: str) -> dict[str, str]:
    values = {str(facts.get(key)) for facts in evaluation.facts.values() if facts.get(key)}
    return {heading: values.pop()} if len(values) == 1 else {}


def _frontier(evaluation: Evaluation) -> str:
    if len(evaluation.metrics) < 2:
        return ""
    panels = [_panel(evaluation, "explained_variance"), _panel(evaluation, "ce_recovered")]
    drawn = "".join(f'<div class="card">{panel}</div>' for panel in panels if panel)
    if not drawn:
        return ""
    key = legend(list(_series(evaluation)))
    return _section("Sparsity and fidelity", LEAD, f'{key}<div class="pair">{drawn}</div>')


def _series(evaluation: Evaluation) -> dict[str, list[str]]:
    """Gathers SAEs that differ in sparsity or seed alone: by architecture, and by site where there are several."""
    sites = {"+".join(facts["target_sites"]) for facts in evaluation.facts.values()}
    series: dict[str, list[str]] = {}
    for name, facts in evaluation.facts.items():
        place = f" at {'+'.join(facts['target_sites'])}" if len(sites) > 1 else ""
        series.setdefault(f"{facts['architecture']}{place}, {facts['d_sae']:,} latents", []).append(name)
    return series


def _panel(evaluation: Evaluation, figure: str) -> str:
    series: dict[str, list[Point]] = {}
    for title, names in _series(evaluation).items():
        points = series.setdefault(title, [])
        for name in names:
            metrics = evaluation.metrics[name]
            value, error = getattr(metrics, figure), getattr(metrics, f"{figure}_se")
            if value is not None and value == value and metrics.l0 > 0:
                points.append(Point(name, metrics.l0, value, error))
    chart = Scatter(
        title=f"{NAMES[figure]} against active latents per token",
        x_label="active latents per token (L0)",
        y_label=NAMES[figure].lower(),
        series=series,
        log_x=True,
    )
    return scatter_svg(chart)


def _summary(evaluation: Evaluation) -> str:
    chosen = ("l0", "explained_variance", "ce_recovered", "kl_score", "dead_frac", "dense_frac", "rescale_median")
    columns = {"name": "SAE", "what": "Architecture", "width": "Latents"} | {name: SHORT[name] for name in chosen}
    rows = []
    for name, metrics in evaluation.metrics.items():
        values = {row["metric"]: row["value"] for row in metrics.rows()}
        facts = evaluation.facts[name]
        known = {key: escape(value_text(key, values[key])) for key in chosen if key in values}
        named = {
            "name": f"<b>{escape(name)}</b>",
            "what": escape(facts["architecture"]),
            "width": f"{facts['d_sae']:,}",
        }
        rows.append(named | known)
    listed = table(columns, rows, numbers=("width", *chosen))
    return _section("At a glance", "", _card(listed))


SHORT = {
    "l0": "L0",
    "explained_variance": "Explained variance",
    "ce_recovered": "CE recovered",
    "kl_score": "KL score",
    "dead_frac": "Silent",
    "dense_frac": "Dense",
    "rescale_median": "Rescale",
}


def _distributions(evaluation: Evaluation) -> str:
    from sae.evaluation import COSINE_EDGES, LOG10_DENSITY_EDGES

    densities, redundant = [], []
    highest = max((max(each.redundancy_histogram, default=0) for each in evaluation.metrics.values()), default=0)
    for name, metrics in evaluation.metrics.items():
        if any(metrics.density_histogram):
            edges = [10**edge for edge in LOG10_DENSITY_EDGES]
            bars = Chart(
                title=f"{name}: latents by density",
                x_label="share of tokens on which a latent fires",
                y_label="latents",
                kind="bars",
                x=edges,
                y=metrics.density_histogram,
                log_x=True,
            )
            note = f"{value_text('dead_frac', metrics.dead_frac)} silent"
            densities.append(_small(name, note, bars))
        if highest and metrics.redundancy_histogram:
            bars = Chart(
                title=f"{name}: latents by largest decoder cosine",
                x_label="largest cosine with another decoder row",
                y_label="latents",
                kind="bars",
                x=list(COSINE_EDGES),
                y=metrics.redundancy_histogram,
            )
            mean = metrics.decoder_max_cosine
            redundant.append(_small(name, "" if mean is None else f"mean {mean:.2f}", bars))
    parts = []
    for heading, text, drawn in (("Densities", DENSITIES, densities), ("Redundancy", REDUNDANT, redundant)):
        if drawn:
            parts.append(_section(heading, text, f'<div class="gallery">{"".join(drawn)}</div>'))
    return "".join(parts)


def _small(name: str, note: str, chart: Chart) -> str:
    heading = f'<p class="small"><b>{escape(name)}</b> <span class="muted">{escape(note)}</span></p>'
    return f'<div class="card">{heading}{figures.svg(chart)}</div>'


def _stability(evaluation: Evaluation) -> str:
    if not evaluation.stability:
        return ""
    columns = {"first": "SAE", "second": "Compared with", "mcc": "MCC", "bar": "", "found": "Found again"}
    columns |= {"strict": "above 0.9", "nearest": "Nearest", "seeds": "Seeds", "method": "Matched by"}
    rows = [
        {
            "first": escape(pair.first),
            "second": escape(pair.second),
            "mcc": f"<b>{pair.stability.mcc:.3f}</b>",
            "bar": html.bar(pair.stability.mcc),
            "found": f"{pair.stability.above_07:.1%}",
            "strict": f"{pair.stability.above_09:.1%}",
            "nearest": f"{pair.stability.nearest:.3f}",
            "seeds": escape(_seeds(evaluation, pair.first, pair.second)),
            "method": escape(f"{pair.stability.method}, {pair.stability.matched:,} latents"),
        }
        for pair in sorted(evaluation.stability, key=lambda pair: -pair.stability.mcc)
    ]
    listed = table(columns, rows, "tight", numbers=("mcc", "found", "strict", "nearest"))
    return _section("Stability", STABLE, _card(listed))


def _seeds(evaluation: Evaluation, *names: str) -> str:
    known = [evaluation.facts[name].get("seed") for name in names]
    return "" if None in known else " and ".join(map(str, dict.fromkeys(known)))


def _probing(evaluation: Evaluation) -> str:
    shown = {
        "accuracy": "Latents",
        "auc": "AUC",
        "dense_accuracy": "Dense",
        "coordinates_accuracy": "Coordinates",
        "random_accuracy": "Random",
        "shuffled_accuracy": "Shuffled",
    }
    rows = [
        {"name": escape(name), "set": escape(f"{row['labelled']} ({row['labels']})"), "k": str(row["k"])}
        | {
            key: f"{'<b>' if key == 'accuracy' else ''}{row[key]:.3f}{'</b>' if key == 'accuracy' else ''}"
            for key in shown
        }
        for name, reports in evaluation.probing.items()
        for report in reports
        for row in report.rows()
    ]
    if not rows:
        return ""
    listed = table({"name": "SAE", "set": "Set (labels)", "k": "k"} | shown, rows, "tight", numbers=("k", *shown))
    return _section("Sparse probing", PROBED, _card(listed))


def _refused(evaluation: Evaluation) -> str:
    if not evaluation.refused:
        return ""
    items = "".join(
        f'<p class="small"><b>{escape(name)}</b> {escape(reason)}</p>'
        for name, reasons in evaluation.refused.items()
        for reason in reasons
    )
    return _section("Not measured", "", f'<div class="notice stack">{items}</div>')


def _figures(evaluation: Evaluation) -> str:
    names = list(evaluation.metrics)
    rows = evaluation.rows()
    columns = {"metric": ""} | {name: name for name in names}
    parts, left = [], list(rows)
    for heading, prefixes in GROUPS.items():
        chosen = [row for row in left if any(_belongs(row["metric"], prefix) for prefix in prefixes)]
        left = [row for row in left if row not in chosen]
        parts += _group(heading, chosen, names)
    parts += _group("More", left, names)
    listed = table(columns, parts, "tight", numbers=names)
    return _section("All figures", "", _card(listed))


def _title(metric: str) -> str:
    """Returns a figure's name for people; those of probes and removals are made of their parts."""
    if metric in NAMES:
        return NAMES[metric]
    kind, *middle, last = metric.split("_")
    about = " ".join(middle)
    if kind == "probe":
        return f"Probe on {about}, {'whole activations' if last == 'dense' else f'{last[1:]} latents'}"
    if kind in ("tpp", "scr"):
        return f"{kind.upper()} on {about}, {last[1:]} latents out"
    return metric.replace("_", " ")


def _belongs(metric: str, prefix: str) -> bool:
    if prefix.endswith("_"):
        return metric.startswith(prefix)
    return metric in (prefix, *(f"{prefix}_{ending}" for ending in ("se", "zero", "score")))


def _group(heading: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, str]]:
    if not rows:
        return []
    listed = [{"metric": f'<h3 class="group">{escape(heading)}</h3>'}]
    for row in rows:
        listed.append(
            {"metric": escape(_title(row["metric"]))}
            | {name: escape(value_text(row["metric"], row[name])) for name in names if name in row}
        )
    return listed

"""The page of experiments: every SAE of several runs in one table, its curve, and where it stands among the others.

Enters: `sae.experiments.Experiment`s. Leaves: one self-contained HTML page, and records for the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ui.render import html
from ui.render.curves import Point, Scatter, legend, scatter_svg
from ui.render.figures import short
from ui.render.html import escape
from ui.render.report import write_page

if TYPE_CHECKING:
    from sae.experiments import Experiment

COLUMNS = {
    "run": "Run",
    "sae": "SAE",
    "model": "Model",
    "architecture": "Architecture",
    "d_sae": "Latents",
    "rows": "Rows",
    "time_s": "Seconds",
    "explained_variance": "Explained variance",
    "l0": "L0",
    "dead_frac": "Dead",
    "ce_recovered": "Loss recovered",
    "state": "State",
}
NUMBERS = ("d_sae", "rows", "time_s", "explained_variance", "l0", "dead_frac", "ce_recovered")
CURVES = 6
"""Curves in one picture: there are no more colours that can be told apart."""
FRONTIERS = {"explained_variance": "Explained variance", "ce_recovered": "Loss recovered"}
PANELS = {"explained_variance": "Explained variance in training", "l0": "Active latents a row in training"}


def write_experiments_page(experiments: Sequence[Experiment], path: Path) -> Path:
    """Writes the page and returns its path; links to the runs' reports are relative to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, experiments_page(experiments, path.parent))


def experiments_page(experiments: Sequence[Experiment], folder: Path) -> str:
    """Returns the page as it will stand in `folder`."""
    runs = len({experiment.run for experiment in experiments})
    facts = {"runs": str(runs), "SAEs": str(len(experiments))}
    facts["unfinished"] = str(sum(not experiment.is_finished for experiment in experiments))
    return html.page(
        "Glassbox: experiments",
        f'<header class="stack"><h3>Glassbox</h3><h1>Experiments</h1>{html.facts(facts)}</header>'
        f"{_section('All of them', _TABLE, _table(experiments, folder))}"
        f"{_section('Fidelity and sparsity', _FRONTIER, _frontier(experiments))}{_curves(experiments)}",
    )


_TABLE = "Measures are those on held-out text where an SAE was evaluated; else they are the last that training logged."
_FRONTIER = (
    "Each point is an SAE: higher explains more of the activations, further left needs fewer latents for it. Points of "
    "one architecture are joined. Training's own figures, of SAEs that were not evaluated, lie a little higher."
)


def _section(heading: str, what: str, body: str) -> str:
    return f'<section class="stack"><h2>{heading}</h2><p class="muted">{what}</p>{body}</section>' if body else ""


def _table(experiments: Sequence[Experiment], folder: Path) -> str:
    rows = []
    for experiment in experiments:
        cells = {name: _cell(value) for name, value in experiment.row().items() if name in COLUMNS}
        if experiment.report is not None:
            address = quote(os.path.relpath(experiment.report, folder).replace(os.sep, "/"))
            cells["run"] = f'<a href="{escape(address)}">{cells["run"]}</a>'
        rows.append(cells)
    return f'<div class="scrolls">{html.table(COLUMNS, rows, "list", numbers=NUMBERS)}</div>'


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return short(value) if isinstance(value, float) else escape(value)


def _frontier(experiments: Sequence[Experiment]) -> str:
    pictures = ""
    for metric, title in FRONTIERS.items():
        series: dict[str, list[Point]] = {}
        for experiment in experiments:
            x, y = experiment.metrics.get("l0"), experiment.metrics.get(metric)
            if x is not None and y is not None:
                points = series.setdefault(experiment.architecture or "unfinished", [])
                points.append(Point(f"{experiment.run} {experiment.sae}", x, y))
        pictures += _picture(f"{title} by L0", "L0", title, series, log=True)
    return f'<div class="pair">{pictures}</div>' if pictures else ""


def _curves(experiments: Sequence[Experiment]) -> str:
    drawn = [experiment for experiment in experiments if experiment.curve]
    parts = []
    for start in range(0, len(drawn), CURVES):
        some = drawn[start : start + CURVES]
        pictures = "".join(
            _picture(title, "rows", title, {f"{e.run} {e.sae}": _points(e, name) for e in some})
            for name, title in PANELS.items()
        )
        parts.append(f'<div class="pair">{pictures}</div>')
    return _section("Training", "What training logged, by rows seen.", "".join(parts))


def _points(experiment: Experiment, name: str) -> list[Point]:
    return [
        Point(f"{experiment.run} {experiment.sae}", line["rows"], line[name])
        for line in experiment.curve
        if isinstance(line.get(name), int | float) and "rows" in line
    ]


def _picture(title: str, x: str, y: str, series: dict[str, list[Point]], log: bool = False) -> str:
    series = {name: points for name, points in series.items() if points}
    drawn = scatter_svg(Scatter(title=title, x_label=x, y_label=y, series=series, log_x=log))
    return f'<figure class="card stack"><h3>{title}</h3>{drawn}{legend(list(series))}</figure>' if drawn else ""

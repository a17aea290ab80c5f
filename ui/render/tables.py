"""Terminal tables (rich), and the formats in which SQL answers leave: table, csv, json, parquet, arrow.

Enters: results with `.rows()` and `.to_json()`, or Arrow tables. Text of the corpus is printed as it is, with control
characters made visible and without rich's markup.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ui.render.html import UNSEEN
from ui.render.report import HEADLINES

if TYPE_CHECKING:
    import pyarrow as pa

    from ui.diagnosis import Diagnosis

FORMATS = ("table", "csv", "json", "parquet", "arrow")
BINARY = ("parquet", "arrow")
ROWS_SHOWN = 200
SWEEP_TEXT = 160
"""Characters of a text that a sweep shows."""
_CONTROLS = UNSEEN | {9: "⇥", 10: "⏎", 13: "␍"}


def show(*parts: RenderableType) -> None:
    """Prints tables to the terminal; as wide as they need where there is none."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for part in parts:
        console.print(part)


def text(value: object, style: str = "") -> Text:
    """Returns a cell: plain text, controls visible, numbers short."""
    if isinstance(value, float):
        shown = f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    elif isinstance(value, bool) or value is None:
        shown = {True: "yes", False: "no", None: ""}[value]
    elif isinstance(value, int):
        shown = str(value)
    else:
        shown = str(value).translate(_CONTROLS)
    return Text(shown, style=style)


def records_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns any records as a table; columns in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title or None, title_justify="left", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[text(row.get(column)) for column in columns])
    return table


def scores_table(report: Any) -> Table:
    """Returns the mean scores of explanations beside their baselines."""
    title = f"Means over {report.scored:,} features ({report.unscored:,} not scored: no rule, or too few windows)"
    rows = [
        {"method": row["method"], "scorer": row["scorer"], "mean": round(row["mean"], 3)}
        | {"95 % interval": "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"}
        | {"features": row["features"], "failures": row["failures"]}
        for row in report.rows()
    ]
    return records_table(title, sorted(rows, key=lambda row: row["scorer"]))


def reader_tables(report: Any) -> list[Table]:
    """Returns what a reader wrote and judged, and what it cost."""
    written = (
        [] if report.written is None else [{"written": report.written, "without a usable answer": report.unwritten}]
    )
    found = [records_table(f"Explanations by {report.reader}", written)] if written else []
    if report.scores is not None:
        found.append(scores_table(report.scores))
    if report.cost is not None:
        found.append(records_table("Cost", report.cost.rows()))
    return found


def metrics_table(report: Any) -> Table:
    """Returns the metrics of a demo run beside their targets."""
    table = Table(title="On held-out text", title_justify="left", header_style="dim", box=None, pad_edge=False)
    for column, justify in (("metric", "left"), ("value", "right"), ("target", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    for row in report.metrics_rows():
        if row["metric"] not in HEADLINES:
            continue
        met = row.get("met")
        mark = Text("") if met is None else Text("ok", "green") if met else Text("missed", "red")
        table.add_row(text(row["metric"]), text(row["value"]), text(row.get("target") or ""), mark)
    return table


def timings_table(report: Any) -> Table:
    """Returns how long each step of a run took."""
    rows = [{"step": step, "time_s": round(time_s, 1)} for step, time_s in report.timings.items()]
    return records_table("Time", rows)


def drawn_table(report: Any) -> Table:
    """Returns the features that a demo drew: number, how often each fires, and what it seems to stand for."""
    rows = [
        {"feature": row["feature"], "density": f"{row['density']:.2%}", "explanation": row["explanation"]}
        for row in report.rows()
    ]
    return records_table(f"{len(rows)} features, drawn by seed", rows)


def evaluation_table(evaluation: Any) -> Table:
    """Returns the figures of several SAEs, a column each."""
    return records_table("Metrics on held-out text", evaluation.rows())


def comparison_tables(evaluation: Any) -> list[Table]:
    """Returns how SAEs of the same site agree, and what could not be measured; nothing where there is nothing."""
    tables = []
    if evaluation.stability:
        rows = [
            {"SAE": pair.first, "compared with": pair.second}
            | {row["metric"]: row["value"] for row in pair.stability.rows()}
            for pair in evaluation.stability
        ]
        tables.append(records_table("Stability", rows))
    if evaluation.refused:
        reasons = [{"SAE": name, "why": why} for name, each in evaluation.refused.items() for why in each]
        tables.append(records_table("Not measured", reasons))
    return tables


def steering_table(prompt: str, comparison: Any) -> Table:
    """Returns steered text beside the model's own."""
    table = Table(show_header=True, header_style="dim", expand=True, padding=(0, 1))
    table.add_column("left alone", ratio=1, overflow="fold")
    table.add_column("steered", ratio=1, overflow="fold")
    keep = {code: sign for code, sign in _CONTROLS.items() if code not in (9, 10)}
    cells = []
    for continuation in (comparison.unsteered, comparison.steered):
        cell = Text(prompt.translate(keep), style="dim")
        cell.append(continuation.translate(keep), style="not dim")
        cells.append(cell)
    table.add_row(*cells)
    if comparison.steered_perplexity is not None and comparison.unsteered_perplexity is not None:
        pair = (comparison.unsteered_perplexity, comparison.steered_perplexity)
        table.caption = f"perplexity under the model left alone: {pair[0]:.3g}, steered {pair[1]:.3g}"
    return table


def sweep_table(sweep: Any) -> Table:
    """Returns a row for every strength of a sweep: what it bought, what it cost, and how the text begins."""
    table = Table(header_style="dim", expand=True)
    for name in ("run", "factor", "concept", "perplexity", "distinct"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    table.add_column("text", ratio=1, overflow="fold")
    for row in sweep.rows():
        numbers = ["" if row[name] is None else f"{row[name]:.3g}" for name in ("concept", "perplexity", "distinct")]
        factor = f"{row['factor']:g}" if row["run"] == "steered" else ""
        text = row["text"].translate(_CONTROLS)
        table.add_row(row["run"], factor, *numbers, Text(text if len(text) <= SWEEP_TEXT else text[:SWEEP_TEXT] + "…"))
    table.caption = (
        "concept: the features' activation on the text, as the model left alone reads it, in maxima; "
        "perplexity: of the text under that model; distinct: share of different token pairs"
    )
    return table


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Returns a table for each topic the doctor looked at."""
    tables = []
    for topic, facts in diagnosis.topics.items():
        table = Table(
            title=topic, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
        )
        for fact in facts:
            advice = Text(fact.advice, style="dim" if fact.ok else "red")
            table.add_row(text(fact.name, "dim"), text(fact.value, "" if fact.ok else "red"), advice)
        tables.append(table)
    return tables


def check_format(name: str, out: Path | None) -> None:
    """Raises ValueError where a format is unknown or would put binary data on a terminal."""
    if name not in FORMATS:
        raise ValueError(f"--format got `{name}`, expected one of {', '.join(FORMATS)}: choose one of them")
    if name in BINARY and out is None and sys.stdout.isatty():
        raise ValueError(f"--format {name} is binary and stdout is a terminal, expected a file: give --out FILE")


def write_table(answer: pa.Table, format: str, out: Path | None, limit: int | None = None) -> None:
    """Writes an Arrow table in one of `FORMATS` to a file (whole or not at all) or to stdout.

    `limit` cuts the rows; without it a table on the screen has `ROWS_SHOWN` of them, everything else all.
    """
    if limit is None and format == "table" and out is None:
        limit = ROWS_SHOWN
    shown = answer if limit is None else answer.slice(0, limit)
    if format == "table" and out is None:
        rows = _records(shown)
        show(records_table("", rows) if rows else Text("no rows", "dim"))
    else:
        content = _encoded(shown, format)
        if out is not None:
            partial = out.with_name(f"{out.name}.partial")
            partial.write_bytes(content)
            os.replace(partial, out)
        elif sys.stdout.isatty():  # a terminal obeys controls that a file only holds
            print(content.decode().translate(UNSEEN), end="")  # noqa: T201
        else:
            sys.stdout.buffer.write(content)
            sys.stdout.flush()
    if shown.num_rows < answer.num_rows:
        print(f"{answer.num_rows:,} rows, {shown.num_rows:,} shown: --limit N shows more", file=sys.stderr)  # noqa: T201


def _records(answer: pa.Table) -> list[dict[str, Any]]:
    try:
        return answer.to_pylist()
    except OverflowError as error:
        raise ValueError(
            f"the answer holds a date or time that Python does not know ({error}), expected years 1 to 9999: "
            "cast it to varchar, or write parquet"
        ) from None


def _finite(value: Any) -> Any:
    """Returns the value as JSON can say it: null for what is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value


def _encoded(answer: pa.Table, format: str) -> bytes:
    import io

    buffer = io.BytesIO()
    if format == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(answer, buffer)
    elif format == "arrow":
        import pyarrow.ipc

        with pyarrow.ipc.new_stream(buffer, answer.schema) as writer:
            writer.write_table(answer)
    elif format == "csv":
        import csv

        lines = io.TextIOWrapper(buffer, encoding="utf-8", newline="")
        rows = csv.writer(lines)
        rows.writerow(answer.column_names)
        rows.writerows(row.values() for row in _records(answer))
        lines.flush()
        lines.detach()
    elif format == "json":
        rows = [_finite(row) for row in _records(answer)]
        buffer.write(json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False, default=str).encode() + b"\n")
    else:
        console = Console(file=io.StringIO(), width=160)
        console.print(records_table("", _records(answer)))
        buffer.write(console.file.getvalue().encode())  # pyright: ignore[reportAttributeAccessIssue]
    return buffer.getvalue()

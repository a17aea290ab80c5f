"""Fills in the tables of docs/performance.md from benchmarks/results: `python docs/performance.py`.

Numbers that no file holds are marked as not measured yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_suffix(".md")
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
MISSING = "not measured yet"
Row = dict[str, Any]


def rows_of(name: str, kind: str) -> list[Row]:
    """Returns the lines of one kind of a results file; none where there is no file."""
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [line for line in lines if line["kind"] == kind]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *(rows or [[MISSING] + [""] * (len(header) - 1)])]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(figures: dict[str, float] | None) -> str:
    """Returns a median with its range."""
    if not figures:
        return MISSING
    return f"{figures['median_ms']:g} ms ({figures['min_ms']:g} to {figures['max_ms']:g})"


def shape(row: Row) -> str:
    active = f"k{row['k']}" if "k" in row else f"L0 {row['target_l0']:g}"
    return f"{row.get('architecture', 'topk')} d{row['d_in']} F{row['d_sae']} {active} rows {row['batch_rows']}"


def where(rows: list[Row]) -> str:
    """Returns device, versions and commit of the measurement."""
    if not rows:
        return f"{MISSING}\n"
    told = [f"{name} {rows[0][name]}" for name in ("device", "torch", "triton", "commit") if rows[0].get(name)]
    return f"Measured with {', '.join(told)}.\n"


def cpu_steps() -> str:
    rows = rows_of("step_cpu", "case")
    body = [
        [
            shape(row),
            spread(row.get("sparse")),
            spread(row.get("dense")),
            f"{row['ratio']:g}×",
            f"{row['sparse_rows_per_s']:,}",
        ]
        for row in rows
    ]
    return where(rows) + "\n" + table(["case", "sparse step", "dense step", "ratio", "rows/s"], body)


def cpu_curve() -> str:
    rows = rows_of("curve_cpu", "case")
    return where(rows) + "\n" + _curve(rows, "sparse")


def cpu_harvest() -> str:
    rows = rows_of("harvest_cpu", "case")
    body = [
        [
            name,
            spread(case),
            f"{case['tokens_per_s']:,}",
            f"{case['share_of_bare']:.1%}" if "share_of_bare" in case else "",
        ]
        for row in rows
        for name, case in row["cases"].items()
    ]
    return where(rows) + "\n" + table(["what", "time", "tokens/s", "of the bare pass"], body)


def cpu_index() -> str:
    rows = rows_of("index_cpu", "case")
    body = [
        [
            f"d_sae {row['d_sae']:,}, k {row['k']}, {row['tokens']:,} tokens, {row['events']:,} events",
            spread(row["cases"]["forward + encode"]),
            spread(row["cases"]["index"]),
            f"{row['share_of_forward_and_encode']:.1%} ({row['share_in_processor_time']:.1%})",
        ]
        for row in rows
    ]
    return where(rows) + "\n" + table(["case", "forward + encode", "index", "share (in processor time)"], body)


def cpu_index_events() -> str:
    rows = rows_of("index_events_cpu", "case")
    told = {"examples": "statistics and examples", "all": "the same, all events sorted and written"}
    body = [
        [
            f"{told[row['what']]}: d_sae {row['d_sae']:,}, k {row['k']}, {row['events']:,} events",
            spread(row["time"]),
            f"{row['ns_per_event']:g} ns",
            f"{row['peak_mb']:,} MB",
            f"{row['bytes_per_event']:g}",
        ]
        for row in rows
    ]
    return where(rows) + "\n" + table(["case", "time", "an event", "peak memory", "bytes an event"], body)


def cpu_dictionary() -> str:
    rows = rows_of("dictionary_cpu", "case")
    body = [
        [name, spread(case), f"{case['p95_ms']:g} ms", f"{case['n']}"]
        for row in rows
        for name, case in row["cases"].items()
    ]
    size = "".join(
        f"{row['features']:,} features, {row['events']:,} events, {row['folder_bytes'] / row['events']:.1f} bytes an "
        f"event; {row['still_cached']:.1%} of the files stood in the cache when cold pages were asked for.\n"
        for row in rows
    )
    return where(rows) + size + "\n" + table(["what", "time", "95 % below", "times"], body)


BROWSER = {
    "first_render": "first render, nothing in the cache",
    "feature_page": "a feature's page, from click to paint",
    "search": "search, from the last letter to the list",
    "text_of_2000_tokens": "a stored text of 2,000 tokens, heat view and tokens",
}


def cpu_browser() -> str:
    rows = [row for kind in BROWSER for row in rows_of("browser_cpu", kind)]
    body = [[BROWSER[row["kind"]], spread(row), f"{row['goal_ms']:,} ms", f"{row['n']}"] for row in rows]
    size = f"{rows[0]['n_features']:,} features, {rows[0]['n_events']:,} events.\n" if rows else ""
    return where(rows) + size + "\n" + table(["what", "time", "goal", "times"], body)


def cpu_browser_load() -> str:
    rows = rows_of("browser_load_cpu", "case")
    kinds = [("all", row) for row in rows] + [(kind, told) for row in rows for kind, told in row["kinds"].items()]
    body = [
        [f"`{kind}`", f"{told['n']:,}", f"{told['median_ms']:,} ms", f"{told['p95_ms']:,} ms"] for kind, told in kinds
    ]
    said = "".join(
        f"{row['clients']} clients for {row['seconds']:g} s, {row['n_features']:,} features: {row['errors']} errors; "
        f"memory at first, in the middle, at last {', '.join(f'{size:,}' for size in row['memory_mib'])} MiB.\n"
        for row in rows
    )
    return where(rows) + said + "\n" + table(["action", "times", "median", "95 % below"], body)


def cpu_many() -> str:
    rows = rows_of("many_cpu", "case")
    body = [
        [
            f"{row['saes']} SAEs at {len(row['sites'])} sites, d_sae {row['d_sae']:,}, {row['rows']:,} rows",
            spread(row["one_pass"]),
            spread(row["harvest"]),
            spread(row["bare_steps"]),
            f"{row['ratio']:g}×",
        ]
        for row in rows
    ]
    return where(rows) + "\n" + table(["case", "one pass", "harvest", "bare steps", "ratio"], body)


def cpu_bits() -> str:
    rows = rows_of("eight_bits_cpu", "case")
    body = [
        [
            f"{dtype}, {row['tokens']:,} tokens at {row['site']}",
            f"{kind['bytes'] / row['tokens']:,.0f}",
            f"{kind['relative_error_median']:.2%} ({kind['relative_error_largest']:.2%})",
            f"{kind['variance_lost']:.2g}",
            f"{kind['explained_variance']:.4f}",
        ]
        for row in rows
        for dtype, kind in row["types"].items()
    ]
    header = [
        "store",
        "bytes a row",
        "error of a row, median (largest)",
        "variance lost",
        "EV of the SAE trained on it",
    ]
    return where(rows) + "\n" + table(header, body)


def gpu_steps() -> str:
    rows = rows_of("step_gpu", "step")
    body = [
        [
            shape(row),
            spread(row["fused"]),
            f"{row['of_roofline']:g}×",
            spread(row["dense"]),
            spread(row.get("compiled")),
            f"{row['over_compiled']:g}×" if row["over_compiled"] else MISSING,
        ]
        for row in rows
    ]
    header = ["case", "fused step", "of the roofline", "dense step", "compiled dense step", "over compiled"]
    return where(rows) + "\n" + table(header, body)


def gpu_memory() -> str:
    rows = rows_of("step_gpu", "memory")
    body = [
        [
            shape(row),
            f"{row['weights_and_moments_gb']:g} GB",
            f"{row['peak_gb']:g} GB",
            f"{row['over']:g}×",
            f"{row['reserved_gb']:g} GB",
        ]
        for row in rows
        if row["peak_gb"] is not None
    ]
    return table(["case", "weights and moments", "peak", "peak over these", "reserved"], body)


def gpu_variants() -> str:
    body = [
        [f"{shape(row)}, moments {row.get('moments', 'float32')}, compute {row['compute_dtype']}", spread(row["fused"])]
        for row in rows_of("step_gpu", "variant")
    ]
    return table(["case", "step"], body)


def gpu_density() -> str:
    body = [
        [
            f"{row['architecture']} d{row['d_in']} F{row['d_sae']} rows {row['batch_rows']}",
            f"{row['entries_per_row']:g} ({row['share']:.2%})",
            spread(row["dense"]),
            spread(row["sparse"]),
        ]
        for row in rows_of("step_gpu", "density")
    ]
    return table(["case", "entries a row (of all)", "dense pass", "sparse pass"], body)


def gpu_curve() -> str:
    return _curve(rows_of("step_gpu", "curve"), "fused")


def _curve(rows: list[Row], step: str) -> str:
    body = [
        [
            f"{row['d_sae']:,}",
            f"{row['batch_rows']:,}",
            spread(row[step]),
            _three_digits(1e9 * row[step]["median_ms"] / row["d_sae"] / row["batch_rows"]),
        ]
        for row in rows
    ]
    return table(["d_sae", "rows", "step", "ps for each latent and row"], body)


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def gpu_kernels() -> str:
    body = [[row["kernel"], spread(row["ours"]), spread(row["torch"])] for row in rows_of("step_gpu", "kernel")]
    body += [
        [f"encode in chunks of {row['chunk_mb']} MB", spread(row["encode"]), ""] for row in rows_of("step_gpu", "chunk")
    ]
    return table(["kernel", "ours", "plain torch"], body)


TABLES: dict[str, Callable[[], str]] = {
    "cpu steps": cpu_steps,
    "cpu curve": cpu_curve,
    "cpu harvest": cpu_harvest,
    "cpu index": cpu_index,
    "cpu index events": cpu_index_events,
    "cpu dictionary": cpu_dictionary,
    "cpu browser": cpu_browser,
    "cpu browser load": cpu_browser_load,
    "cpu many": cpu_many,
    "cpu bits": cpu_bits,
    "gpu steps": gpu_steps,
    "gpu memory": gpu_memory,
    "gpu variants": gpu_variants,
    "gpu density": gpu_density,
    "gpu curve": gpu_curve,
    "gpu kernels": gpu_kernels,
}


def markdown() -> str:
    """Returns the page with its tables as the results have them."""
    page = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        filled = make()
        page, count = marks.subn(lambda found, filled=filled: found[1] + filled + found[2], page)
        assert count == 1, f"{PAGE} has {count} places for `{name}`, expected one"
    return page


if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")

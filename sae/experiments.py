"""What was trained, read from run folders: settings, curves and measures of every SAE, beside each other.

Enters: run folders, or folders that hold some at any depth. Leaves: an `Experiment` for each SAE, those of one run
together. Files are read only; a run that is still going on, or was killed, counts with what it has logged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOG = "metrics.jsonl"
PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Experiment:
    """One SAE of a run."""

    run: str
    """The run folder's name; with as many folders above as tell it from the others."""
    sae: str
    """Site and name, or "" before anything was logged."""
    model: str
    architecture: str
    """Empty until the SAE is saved."""
    d_sae: int | None
    is_finished: bool
    """Whether the SAE was saved."""
    curve: tuple[dict[str, Any], ...]
    """Lines of the log: step, rows, loss, explained_variance, l0, dead_frac, lr, time_s, rows_per_s."""
    metrics: dict[str, float]
    """On held-out text, where it was evaluated; else the log's last line."""
    is_evaluated: bool
    commit: str
    """Of the code that ran."""
    report: str | None
    """The run's report, where there is one: its path."""

    def row(self) -> dict[str, Any]:
        """Returns the record of a table."""
        chosen = ("explained_variance", "l0", "dead_frac", "ce_recovered", "mse")
        last = self.curve[-1] if self.curve else {}
        return {
            "run": self.run,
            "sae": self.sae,
            "model": self.model,
            "architecture": self.architecture,
            "d_sae": self.d_sae,
            "rows": last.get("rows"),
            "time_s": last.get("time_s"),
            **{name: self.metrics.get(name) for name in chosen},
            "state": "evaluated" if self.is_evaluated else "trained" if self.is_finished else "unfinished",
        }


def read_experiments(folders: Sequence[str | Path]) -> list[Experiment]:
    """Returns the SAEs of all runs in `folders`, runs in the order of their paths.

    Raises:
        FileNotFoundError: a folder that is not there, or holds no run.
        ValueError: a file of a run that cannot be read, by its name and line.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder, expected a run folder or one that holds some")
        runs = sorted(path.parent for path in folder.rglob(LOG) if (path.parent / PROVENANCE).is_file())
        # an SAE's own state below a run has a log and a provenance, too
        runs = [run for run in runs if not any(parent in runs for parent in run.parents)]
        if not runs:
            raise FileNotFoundError(
                f"{folder} holds no run: expected folders with {LOG} and {PROVENANCE}, as `glassbox train` writes them"
            )
        found |= {run.resolve(): None for run in runs}
    names = _names(list(found))
    return [experiment for run, name in zip(found, names, strict=True) for experiment in _read_run(run, name)]


def to_json(experiments: Sequence[Experiment]) -> str:
    """Returns all of them, curves included."""
    return json.dumps([asdict(experiment) for experiment in experiments], ensure_ascii=False, indent=2)


def _names(runs: Sequence[Path]) -> list[str]:
    for parts in range(1, max(len(run.parts) for run in runs) + 1):
        names = ["/".join(run.parts[-parts:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _read_run(run: Path, name: str) -> Iterator[Experiment]:
    provenance = _json(run / PROVENANCE)
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in _log(run / LOG):
        curves.setdefault(str(line.pop("sae", "")), []).append(line)
    saved = {path.parent.relative_to(run / "sae").as_posix(): path for path in sorted((run / "sae").rglob("cfg.json"))}
    if set(curves) == {""} and len(saved) == 1:  # a run of one SAE does not name it in its log
        curves = {next(iter(saved)): curves[""]}
    report = run / "report.html"
    for sae in sorted(curves.keys() | saved.keys()):
        config = _json(saved[sae]) if sae in saved else {}
        about = config.get("metadata", {})
        measured = saved[sae].with_name("metrics.json") if sae in saved else None
        is_evaluated = measured is not None and measured.is_file()
        curve = tuple(curves.get(sae, ()))
        metrics = _json(measured) if measured is not None and is_evaluated else dict(curve[-1]) if curve else {}
        yield Experiment(
            run=name,
            sae=sae,
            model=str(about.get("model_name") or provenance.get("metadata", {}).get("model_name") or ""),
            architecture=str(about.get("training_architecture") or config.get("architecture") or ""),
            d_sae=config.get("d_sae"),
            is_finished=sae in saved,
            curve=curve,
            metrics={key: value for key, value in metrics.items() if isinstance(value, int | float)},
            is_evaluated=is_evaluated,
            commit=str(provenance.get("commit") or ""),
            report=str(report) if report.is_file() else None,
        )


def _log(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    # a line without its end is being written, or was when the run was killed
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        yield _object(line, f"line {number} of {path}")


def _json(path: Path) -> dict[str, Any]:
    return _object(path.read_text(encoding="utf-8"), str(path))


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is no JSON ({error}), expected an object: restore the file or leave the run out"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds a {type(found).__name__}, expected an object: is this a run folder?")
    return found

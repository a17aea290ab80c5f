"""Comparisons that were made, kept beside the first dictionary, so that the same question is answered at once.

Enters: two opened dictionaries and settings. Leaves: the `Comparison`. A kept one counts only for the same two builds,
the same settings and this `VERSION` of the method; what cannot be written (a folder for reading only) is made again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.comparison import CompareConfig, compare
from features.comparison_records import (
    Absorption,
    Comparison,
    DictionaryFacts,
    Match,
    PairedExample,
    Part,
    Shift,
    Split,
    Unique,
)
from features.dictionary import Dictionary
from features.store import write_json

FOLDER = "comparisons"
VERSION = 1


def kept_comparison(a: Dictionary, b: Dictionary, config: CompareConfig | None = None) -> Comparison | None:
    """The comparison that was made and kept, or None where there is none."""
    path = _path(a, b, config or CompareConfig())
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # cut short or not ours: it is made again
        return None
    return comparison_of(found)


def compare_and_keep(a: Dictionary, b: Dictionary, config: CompareConfig | None = None) -> Comparison:
    """The kept comparison, or a new one, which is kept then.

    Raises:
        ValueError: what `features.comparison.compare` refuses.
    """
    config = config or CompareConfig()
    found = kept_comparison(a, b, config)
    if found is None:
        found = compare(a, b, config)
        path = _path(a, b, config)
        try:
            path.parent.mkdir(exist_ok=True)
            write_json(path, asdict(found))
        except OSError:
            pass  # a dictionary for reading only
    return found


def comparison_of(content: dict[str, Any]) -> Comparison:
    """The comparison that `to_json` or `dataclasses.asdict` wrote."""

    def given(entry: dict[str, Any], **more: Any) -> dict[str, Any]:
        return entry | {"examples": [PairedExample(**example) for example in entry["examples"]]} | more

    known = {key: value for key, value in content.items() if key != "summary"}
    known["a"], known["b"] = DictionaryFacts(**content["a"]), DictionaryFacts(**content["b"])
    known["matched"] = [
        Match(**given(entry, shift=None if entry["shift"] is None else Shift(**entry["shift"])))
        for entry in content["matched"]
    ]
    known["unique"] = [Unique(**given(entry)) for entry in content["unique"]]
    known["splits"] = [
        Split(**given(entry, parts=[Part(**part) for part in entry["parts"]])) for entry in content["splits"]
    ]
    known["absorptions"] = [Absorption(**given(entry)) for entry in content["absorptions"]]
    return Comparison(**known)


def _path(a: Dictionary, b: Dictionary, config: CompareConfig) -> Path:
    builds = [[str(each.path.resolve()), each.info["build"], each.info.get("fingerprint")] for each in (a, b)]
    asked = json.dumps([VERSION, builds, asdict(config)], sort_keys=True)
    return a.path / FOLDER / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"

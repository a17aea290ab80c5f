"""Checks that Glassbox's five import packages come from one place.

Their names are generic, so a folder or module of the same name elsewhere on `sys.path` can stand in front of one of
them. Each package runs this file by its path (`runpy.run_path`), because `configs` itself may be the one shadowed.
`origins()` is what `glassbox doctor` prints.
"""

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("configs", "activations", "sae", "features", "ui")
HOME = Path(__file__).resolve().parents[1]


def origins() -> dict[str, str | None]:
    """Returns, for each package, the file that `import <package>` runs, or None where it finds nothing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        if loaded is not None:
            found[name] = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", [])), None)
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            found[name] = None
        else:
            found[name] = spec.origin or next(iter(spec.submodule_search_locations or []), None)
    return found


def check() -> None:
    """Raises ImportError naming the file that shadows one of the packages."""
    for name, origin in origins().items():
        expected = HOME / name / "__init__.py"
        if origin is None or Path(origin).resolve() != expected:
            raise ImportError(
                f"`import {name}` finds {origin or 'nothing'}, expected {expected}: rename the former, or run from a "
                "folder without it"
            )


if not globals().get("__spec__"):
    check()

"""The YAML files of complete runs and the one strict loader that reads them.

`load(config_class, path, overrides)` turns a file into a validated, frozen dataclass; an unknown key is an error.
"""

import pathlib
import runpy

runpy.run_path(str(pathlib.Path(__file__).parent / "import_guard.py"))

from configs.loader import ConfigError, dump, find, load, validate  # noqa: E402

__all__ = ["ConfigError", "dump", "find", "load", "validate"]

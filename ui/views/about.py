"""What the browser shows, what it cannot say, what it keeps: our own text, and the versions at work."""

from __future__ import annotations

import platform
from importlib import metadata

from ui.render import html
from ui.render.html import escape

PACKAGES = ("glassbox-sae", "torch", "transformers", "duckdb", "pyarrow", "gradio", "plotly")


def about() -> str:
    """Returns the page."""
    versions = {name: found for name in PACKAGES if (found := _version(name))} | {"python": platform.python_version()}
    rows = [{"name": escape(name), "version": f'<span class="mono">{escape(v)}</span>'} for name, v in versions.items()]
    return (
        f'<div class="gb"><article class="own-words about">{html.asset("about.html")}'
        f"<h2>Versions</h2>{html.table({'name': '', 'version': ''}, rows, 'tight')}</article></div>"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

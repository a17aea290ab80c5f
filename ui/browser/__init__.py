"""The Gradio browser: every page over one or more dictionaries, each with an address that restores what it shows.

Enters: opened dictionaries. Leaves: an application on the loopback address. One module for each page; what a page
shows is made by `ui.views`, the modules here only wire it.
"""

from __future__ import annotations

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported; without it the start-up calls out

from ui.browser.app import build, serve

__all__ = ["build", "serve"]

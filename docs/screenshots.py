"""Takes a picture of every page of the browser, over a real dictionary: those of the README and of docs/browser.md.

usage: python docs/screenshots.py DICT FEATURE [FOLDER]      (needs Chromium; FOLDER defaults to docs/pages)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from features import Dictionary
from ui import browser, serving

WIDTH, HEIGHT = 1200, 860
TALLEST = 1500  # where what is shown stands under what was asked
TEXT = "def read(path):\n    with open(path) as file:\n        return file.read()\n"
MODEL_MS = 60_000


def pages(feature: int) -> dict[str, tuple[dict[str, str], str | None, str | None]]:
    """Returns for each picture the address's words, the button to press, and what to wait for after it."""
    return {
        "overview": ({}, None, None),
        "features": ({"view": "features", "q": "import"}, None, None),
        "feature": ({"view": "feature", "feature": str(feature)}, None, None),
        "text": ({"view": "text", "text": TEXT}, None, "gb-heat"),
        "steer": ({"view": "steer", "features": f"{feature}=1", "prompt": "def "}, "#steer-run", ".continuation"),
        "compare": ({"view": "compare"}, None, None),
        "lists": ({"view": "lists"}, None, None),
        "analyse": (
            {"view": "analyse", "text": "for number in range(", "methods": "attributions,lens"},
            "#analyse-run",
            "#analyse-result [data-running=false]",
        ),
        "about": ({"view": "about"}, None, None),
    }


def take(page: Any, address: str, feature: int, folder: Path) -> None:
    """Opens every page and keeps a picture of it."""
    from urllib.parse import quote, urlencode

    for name, (words, button, shown) in pages(feature).items():
        page.goto(f"{address}/?{urlencode(words, quote_via=quote)}")
        page.wait_for_function("window.glassbox && window.glassbox.shown()")
        if button:
            page.click(button)
        if shown:
            page.wait_for_selector(shown, timeout=MODEL_MS)
        page.wait_for_timeout(6000 if button else 1500)
        box = {"x": 0, "y": 0, "width": WIDTH, "height": TALLEST if button else HEIGHT}
        page.screenshot(path=str(folder / f"{name}.png"), full_page=True, clip=box)


def main(dictionary: str, feature: str, folder: Path) -> None:
    """Serves the dictionary while the pictures are taken."""
    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    folder.mkdir(exist_ok=True)
    port = serving.claim_port(None)
    app = browser.serve([Dictionary.open(dictionary)], host=serving.LOOPBACK, port=port, block=False)
    with sync_playwright() as playwright:
        engine = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = engine.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        take(page, f"http://{serving.LOOPBACK}:{port}", int(feature), folder)
        engine.close()
    app.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(
        sys.argv[1],
        sys.argv[2],
        Path(sys.argv[3]) if len(sys.argv) == 4 else Path(__file__).with_name("pages"),
    )

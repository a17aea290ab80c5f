"""Takes the README's picture: a feature's page of a real dictionary, in the browser that people use.

usage: python docs/screenshot.py DICT FEATURE [OUT.png]      (needs Chromium; OUT defaults to docs/feature_page.png)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from features import Dictionary
from ui import browser, serving

WIDTH, HEIGHT = 1200, 860


def main(folder: str, feature: str, out: str) -> None:
    """Serves the dictionary, opens the feature's address and keeps a picture of it."""
    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    port = serving.claim_port(None)
    app = browser.serve([Dictionary.open(folder)], host=serving.LOOPBACK, port=port, block=False)
    with sync_playwright() as playwright:
        engine = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = engine.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5)
        page.goto(f"http://{serving.LOOPBACK}:{port}/?feature={int(feature)}")
        page.wait_for_selector(".feature-page")
        page.wait_for_timeout(1000)
        page.screenshot(path=out)
        engine.close()
    app.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(
        sys.argv[1],
        sys.argv[2],
        sys.argv[3] if len(sys.argv) == 4 else str(Path(__file__).with_name("feature_page.png")),
    )

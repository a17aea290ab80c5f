"""The application from a notebook: a model alone or with its dictionary, framed by a page of this machine."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import ROOT, WAIT_MS
from ui.browser.guard import Guard
from ui.dashboard import NOTEBOOKS, Dashboard, create_unified_dashboard

SERVE = """
import sys
from ui.dashboard import create_unified_dashboard
made = create_unified_dashboard(sys.argv[1], sys.argv[2:], height=700)
import json
print(json.dumps([made.url, made._repr_html_()]), flush=True)
sys.stdin.read()
made.close()
"""


@contextmanager
def dashboard(*given: object) -> Iterator[tuple[str, str]]:
    environment = os.environ | {"GLASSBOX_SHAPE_CHECKS": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVE, *map(str, given)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            url, shown = json.loads(server.stdout.readline())
            yield url, shown
        finally:
            server.terminate()


@contextmanager
def page_of(folder: Path) -> Iterator[str]:
    """Serves a folder at another port, as a notebook is."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_a_dashboard_shows_itself_escaped() -> None:
    shown = Dashboard('http://127.0.0.1:1/"><script>', 500, None)._repr_html_()
    assert "<script>" not in shown
    assert 'height="500"' in shown


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ValueError, match="height=0, expected at least 1 pixel"):
        create_unified_dashboard("embedded", height=0)
    with pytest.raises(ValueError, match="port 70000 does not exist"):
        create_unified_dashboard("embedded", port=70000)


def test_a_server_is_framed_by_nobody_unless_it_is_told() -> None:
    policies = [dict(Guard(None, frames=frames).headers)[b"content-security-policy"] for frames in ((), NOTEBOOKS)]
    assert policies[0].endswith(b"; frame-ancestors 'none'")
    assert policies[1].endswith(b"; frame-ancestors " + " ".join(NOTEBOOKS).encode())


@pytest.mark.browser
def test_a_model_alone_is_analysed_in_a_frame(chromium: Any, tmp_path: Path) -> None:
    with dashboard("embedded") as (url, shown), page_of(tmp_path) as notebook:
        assert url in shown
        shown = shown.replace(url, f"{url}?view=analyse&methods=lens")
        (tmp_path / "notebook.html").write_text(
            f"<!doctype html><link rel=icon href='data:,'><title>a notebook</title>{shown}"
        )
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(3 * WAIT_MS)
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(f"{notebook}/notebook.html")
        frame = page.frame_locator("iframe")
        frame.locator("#analyse-run").wait_for()
        assert frame.get_by_role("tab").all_inner_texts() == ["Analyse", "About"]
        assert frame.get_by_label("Features of the dictionary").count() == 0
        frame.locator("#analyse-run").click()
        frame.locator("#analyse-result svg").first.wait_for()
        assert "Logit lens" in frame.locator("#analyse-result").inner_text()
        frame.get_by_role("tab", name="About").click()
        frame.get_by_text("A feature is a hypothesis").wait_for()
        context.close()
        assert complaints == []


@pytest.mark.slow
def test_a_dictionary_brings_every_page_and_only_its_own_model(served_folder: Path) -> None:
    with (
        dashboard(served_folder / "model", served_folder / "3" / "stdlib") as (url, _),
        urllib.request.urlopen(url) as answer,
    ):
        assert b"Glassbox" in answer.read()
        assert answer.headers["content-security-policy"].count("frame-ancestors http://localhost:*") == 1
    done = subprocess.run(
        [sys.executable, "-c", SERVE, "embedded", str(served_folder / "3" / "stdlib")],
        env=os.environ | {"GLASSBOX_SHAPE_CHECKS": "0", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "open it with that model" in done.stderr

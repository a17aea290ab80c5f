"""The browser over two real small dictionaries (`tests/ui/served.py`), driven in Chromium.

One server for the session, a fresh browser context for each test. Set GLASSBOX_SCREENSHOTS to a folder to keep
pictures of every page, GLASSBOX_SERVED to one in which `python -m tests.ui.served PORT FOLDER` left the dictionaries.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.served import SEEDS, make

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
WAIT_MS = 20_000  # a loaded machine of two cores is slow, and no test waits longer than it needs
STREAM_S = 4.0  # Gradio keeps the stream of a page's answers open while it counts on more of them
CUT = ("AbortError: signal is aborted", "Connection errored out")  # what Gradio says of it where a page is left
TAB = "document.querySelector('[role=tab][aria-selected=true]').textContent.trim()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dictionaries of `tests.ui.served`, for reading."""
    if ready := os.environ.get("GLASSBOX_SERVED"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("served")
    make(folder)
    return folder


@pytest.fixture(scope="session")
def server_folder(served_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server works in: copies of these dictionaries, and a byte in `passes` for each pass."""
    folder = tmp_path_factory.mktemp("server")
    for seed in SEEDS:
        shutil.copytree(served_folder / str(seed), folder / str(seed))
    return folder


@pytest.fixture(scope="session")
def address(server_folder: Path) -> Iterator[str]:
    """The address of a server over them."""
    port, folder = free_port(), server_folder
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.ui.served", str(port), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if server.poll() is not None:
                pytest.fail(f"the server ended: {server.stderr.read() if server.stderr else ''}")
            time.sleep(0.2)
        else:
            return
    pytest.fail("the server did not answer within two minutes")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if not CHROMIUM:
        message = "no Chromium on this machine: install Debian's chromium"
        pytest.fail(message) if os.environ.get("GLASSBOX_REQUIRE_BROWSER") else pytest.skip(message)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, and everything it asked for and complained about."""

    def __init__(self, context: Any, address: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.address = address
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.is_leaving = False
        self.unanswered: set[Any] = set()
        for ended in ("requestfinished", "requestfailed"):
            context.on(ended, lambda request: self.unanswered.discard(request))
        context.on("request", lambda request: "/heartbeat/" in request.url or self.unanswered.add(request))
        context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))

    def complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.is_leaving and any(cut in text for cut in CUT)):
            self.complaints.append(f"{kind}: {text}")

    def settle(self) -> None:
        """Waits until every request is answered, and what is going on for some seconds."""
        began = time.monotonic()
        while time.monotonic() < began + WAIT_MS / 1000:
            open_s = time.monotonic() - began
            if not any(open_s < STREAM_S or "/queue/data" not in request.url for request in self.unanswered):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError([request.url for request in self.unanswered])

    def reload(self) -> None:
        self.settle()
        self.is_leaving = True
        self.page.reload()
        self.is_leaving = False

    def open(self, query: str = "") -> Visit:
        self.settle()
        self.is_leaving = True
        self.page.goto(f"{self.address}/{query}")
        self.is_leaving = False
        self.page.wait_for_function("window.glassbox && window.glassbox.shown && window.glassbox.shown()")
        return self

    def feature(self, number: int) -> None:
        """Waits until the page of that feature is shown."""
        self.page.wait_for_function(
            "n => (document.querySelector('.feature-page h2')?.textContent || '').startsWith(`Feature ${n} `)"
            " && document.querySelector('.feature-page').checkVisibility()",
            arg=number,
        )

    def tab(self, name: str) -> None:
        """Waits until that tab is the open one."""
        self.page.wait_for_function(f"name => {TAB} === name", arg=name)

    def keep(self, name: str) -> None:
        """Keeps a picture where a folder for them is named."""
        if folder := os.environ.get("GLASSBOX_SCREENSHOTS"):
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Visit]:
    """A visit that must leave nothing behind: no request elsewhere, no complaint, no canary."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context, address)
    yield visit
    visit.settle()
    fired = visit.page.evaluate("window.canary")
    visit.is_leaving = True
    context.close()
    elsewhere = [url for url in visit.requests if not url.startswith((f"{address}/", "data:", "blob:"))]
    assert elsewhere == []
    assert visit.complaints == []
    assert fired is None

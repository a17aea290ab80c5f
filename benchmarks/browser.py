"""What a visitor waits for: from a click, or a key, until the page has painted what was asked, in Chromium.

    python -m benchmarks.browser DICT [--repeats 10] [--write]

The server is `glassbox browse DICT` in a process of its own, the visitor a headless Chromium (`playwright`). A line for
each of `ASKED`: the median and range in milliseconds beside the goal. Time runs from just before the click until two
frames after the page shows what was asked, by the web browser's own clock. Everything is asked once before it is timed,
because a server serves many visits; the first render is that of a fresh visitor. To measure something else, add a
function to `ASKED`: it prepares the page and returns what to click or type, and what must stand there afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Records, spread
from benchmarks.serving import wait_for
from features import Dictionary
from ui import serving

WAIT_MS = 60_000
TEXT_TOKENS = 2_000
PAINTED = """async ([act, wanted]) => {
  const painted = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const is = new Function(`return (${wanted})`);
  const began = performance.now();
  new Function(act)();
  while (!is()) {
    if (performance.now() - began > 60000) throw new Error(`not there after a minute: ${wanted}`);
    await new Promise((done) => setTimeout(done, 4));
  }
  await painted();
  return performance.now() - began;
}"""

SEARCHED = "(word) => document.querySelector('#feature-list p b')?.textContent === word"
ARMED = f"""(word) => {{
  const is = {SEARCHED};
  window.took = new Promise((done) => addEventListener('keydown', () => {{
    const began = performance.now();
    const look = () => {{
      if (!is(word)) return setTimeout(look, 4);
      requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
    }};
    look();
  }}, {{ once: true, capture: true }}));
}}"""


@dataclass(frozen=True)
class Visitor:
    """A page of a web browser, and what is known of the dictionary."""

    page: Any
    address: str
    features: Sequence[int]
    words: Sequence[str]
    documents: Sequence[int]
    """Documents of `TEXT_TOKENS` tokens or more, else the longest."""

    def open(self, query: str = "") -> None:
        self.page.goto(f"{self.address}/{query}")
        self.page.wait_for_function("window.glassbox && window.glassbox.shown()", timeout=WAIT_MS)

    def timed(self, act: str, wanted: str) -> float:
        """Seconds from an action (JavaScript) until a condition holds and two frames were painted."""
        return self.page.evaluate(PAINTED, [act, wanted]) / 1e3


def first_render(visitor: Visitor, turn: int) -> float:
    """From the address until the overview stands there, without anything in the web browser's cache."""
    context = visitor.page.context.browser.new_context()
    page = context.new_page()
    began = time.perf_counter()
    page.goto(f"{visitor.address}/")
    page.wait_for_function("window.glassbox && window.glassbox.shown()", timeout=WAIT_MS, polling="raf")
    took = time.perf_counter() - began
    context.close()
    return took


def feature_page(visitor: Visitor, turn: int) -> float:
    """From one feature's page to another's."""
    before, number = visitor.features[0], visitor.features[1 + turn]
    visitor.open(f"?view=feature&feature={before}")
    act = f"window.glassbox.go('feature', {{feature: '{number}'}})"
    return visitor.timed(act, f"(document.querySelector('.feature-page h2')?.textContent || '').includes('{number}')")


def search(visitor: Visitor, turn: int) -> float:
    """From the last letter of a word, typed on the keyboard, until the list is that word's."""
    word = visitor.words[turn]
    visitor.open("?view=features")
    visitor.page.click("#search input, #search textarea")
    visitor.page.keyboard.type(word[:-1], delay=60)
    visitor.page.wait_for_function(SEARCHED, arg=word[:-1], timeout=WAIT_MS)
    visitor.page.evaluate(ARMED, word)
    visitor.page.keyboard.press(word[-1])
    return visitor.page.evaluate("window.took") / 1e3


def text_view(visitor: Visitor, turn: int) -> float:
    """From a document's link until its heat view and tokens stand there; from stored events, so no model is at work."""
    document = visitor.documents[turn % len(visitor.documents)]
    visitor.open("?view=text")
    act = f"window.glassbox.go('text', {{document: '{document}'}})"
    return visitor.timed(act, "document.querySelectorAll('gb-heat [data-i]').length && document.querySelector('.cell')")


ASKED: tuple[tuple[str, float, Callable[[Visitor, int], float]], ...] = (
    ("first_render", 1_500, first_render),
    ("feature_page", 300, feature_page),
    ("search", 200, search),
    ("text_of_2000_tokens", 1_000, text_view),
)
"""Name, goal in milliseconds, and what takes the time, in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionary")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", help="one of " + ", ".join(name for name, _, _ in ASKED))
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on this machine, expected one: install Debian's chromium")
    from playwright.sync_api import sync_playwright

    opened = Dictionary.open(given.dictionary)
    drawn = opened.sql("select feature from features where not is_dead using sample 200 (reservoir, 0)")
    words = opened.sql(
        "select trim(token) as word, sum(count) as n from vocabulary where regexp_matches(token, '^ ?[a-z0-9]{3,}$') "
        "group by word order by n desc limit 100"
    )
    long = opened.sql(
        f"select document, least(n_tokens, {TEXT_TOKENS}) as n from documents order by n desc, document limit 50"
    )
    facts = {"n_features": opened.n_features, "n_events": opened.info["n_events"], "text_tokens": long["n"][0].as_py()}
    opened.close()
    port = serving.claim_port(None)
    command = [sys.executable, "-m", "ui.cli", "browse", given.dictionary, "--port", str(port), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server, sync_playwright() as playwright:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, server)
            web_browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = web_browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(WAIT_MS)
            visitor = Visitor(
                page, address, drawn["feature"].to_pylist(), words["word"].to_pylist(), long["document"].to_pylist()
            )
            records = Records("browser", given.write)
            for name, goal_ms, measure in ASKED:
                if given.only not in (None, name):
                    continue
                times = [measure(visitor, turn) for turn in range(1 + given.repeats)][1:]
                records.add(name, goal_ms=goal_ms, n=len(times), **facts, **spread(times))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()

"""What stands before the browser: logins, hosts, sizes, policy, and what prompts may be."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ui import serving
from ui.browser import guard
from ui.browser.limits import Limits, read_patterns


class Server:
    """A guarded application that lets nobody in and reads whatever is sent."""

    def __init__(self, hosts: frozenset[str] | None = None, status: int = 400) -> None:
        self.reached = 0
        self.status = status
        self.guard = guard.Guard(self.app, hosts)

    async def app(self, _scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"read"})

    def ask(
        self,
        path: str = "/login",
        host: str = "127.0.0.1:7860",
        client: str = "10.0.0.9",
        method: str = "POST",
        parts: tuple[bytes, ...] = (b"",),
        length: bytes | None = None,
    ) -> tuple[int, dict[bytes, bytes]]:
        """Sends a request; returns the status and the headers of the answer."""
        sent: list[Any] = []
        bodies = iter([{"type": "http.request", "body": part, "more_body": True} for part in parts])

        async def receive() -> Any:
            return next(bodies, {"type": "http.request", "body": b"", "more_body": False})

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", host.encode())] + ([(b"content-length", length)] if length else [])
        scope = {"type": "http", "method": method, "path": path, "client": (client, 1), "headers": headers}
        # In a thread of its own: Playwright keeps a loop running in the thread of the tests.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, self.guard(scope, receive, send)).result()
        return sent[0]["status"], dict(sent[0]["headers"])


def test_an_address_that_guesses_is_made_to_wait_and_others_are_not() -> None:
    server = Server()
    now = [0.0]
    server.guard.logins.clock = lambda: now[0]
    for _ in range(guard.LOGINS):
        assert server.ask()[0] == 400
    status, headers = server.ask()
    assert (status, headers[b"retry-after"]) == (429, b"61")
    assert server.reached == guard.LOGINS
    assert server.ask(client="10.0.0.8")[0] == 400
    assert server.ask("/", method="GET")[0] == 400, "only logins wait"
    now[0] = guard.LOGIN_WINDOW_S + 1
    assert server.ask()[0] == 400


def test_logins_that_succeed_are_not_counted() -> None:
    server = Server(status=200)
    assert {server.ask()[0] for _ in range(3 * guard.LOGINS)} == {200}


def test_an_address_that_asks_without_pause_is_made_to_wait() -> None:
    throttle = guard.Throttle(3, 10.0, clock=lambda: 5.0)
    for _ in range(3):
        assert throttle.wait_s("a") == 0
        throttle.count("a")
    assert throttle.wait_s("a") == 10.0
    assert throttle.wait_s("b") == 0


def test_the_throttle_forgets_rather_than_grows() -> None:
    throttle = guard.Throttle(1, 10.0, clock=lambda: 0.0)
    for number in range(guard.ADDRESSES_KEPT + 50):
        throttle.count(str(number))
    assert len(throttle.times) == guard.ADDRESSES_KEPT


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "", "127.0.0.1.evil.example:7860"])
def test_a_server_of_this_machine_answers_for_no_other_name(host: str) -> None:
    server = Server(guard.hosts_for("127.0.0.1"))
    assert server.ask("/", host, method="GET")[0] == 421
    assert server.reached == 0


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860", "LOCALHOST:1"])
def test_a_server_of_this_machine_answers_for_its_own_names(host: str) -> None:
    assert Server(guard.hosts_for("::1"), 200).ask("/", host, method="GET")[0] == 200


def test_large_bodies_are_refused_whether_they_say_so_or_not() -> None:
    server = Server(status=200)
    assert server.ask("/x", length=str(guard.BODY_BYTES + 1).encode())[0] == 413
    assert server.ask("/x", length=b"-1")[0] == 413
    assert server.reached == 0
    assert server.ask("/x", parts=(b"x" * guard.BODY_BYTES, b"x"))[0] == 413
    assert server.ask("/x", parts=(b"x" * guard.BODY_BYTES,))[0] == 200


def test_every_answer_carries_the_policy() -> None:
    server = Server(guard.hosts_for("127.0.0.1"), 200)
    for headers in (server.ask("/", method="GET")[1], server.ask("/", "evil.example")[1]):
        assert b"connect-src 'self'" in headers[b"content-security-policy"]
        assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
        assert headers[b"referrer-policy"] == b"no-referrer"


def test_the_door_opens_to_name_and_password_together() -> None:
    opens = guard.door(("me", "pass:word"))
    assert opens is not None
    assert opens("me", "pass:word")
    for name, password in (("me", "pass"), ("you", "pass:word"), ("me", ""), ("", ""), ("mé", "pass:wörd")):
        assert not opens(name, password)
    assert guard.door(None) is None


def test_a_name_and_a_password_are_read_or_refused() -> None:
    assert serving.read_auth("me:pass:word") == ("me", "pass:word")
    assert serving.read_auth(None) is None
    for given in ("me", "me:", ":word", " :word"):
        with pytest.raises(ValueError, match="expected NAME:PASSWORD"):
            serving.read_auth(given)


def test_prompts_are_refused_by_length_and_by_pattern(tmp_path: Path) -> None:
    file = tmp_path / "patterns.txt"
    file.write_text("# what we do not take\n\nsecret\\s+plan\n")
    limits = Limits(prompt_characters=40, refused=read_patterns(file))
    limits.check("a plan", "no secret")
    with pytest.raises(ValueError, match="41 characters, expected at most 40"):
        limits.check("x" * 41)
    with pytest.raises(ValueError, match="refuse") as refused:
        limits.check("fine", "the SECRET  plan")
    assert "plan" not in str(refused.value)
    file.write_text("fine\n(\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is no regular expression"):
        read_patterns(file)
    file.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no pattern"):
        read_patterns(file)


def test_an_answer_ends_when_its_time_is_over_and_closes_what_writes_it() -> None:
    closed = []

    def words() -> Any:
        try:
            while True:
                yield "word"
        finally:
            closed.append(True)

    assert list(Limits(model_seconds=0.0).timed(words())) == ["word"]
    assert closed == [True]


@pytest.mark.browser
def test_a_guarded_browser_asks_for_name_and_password(chromium: Any, served_folder: Path) -> None:
    from features import Dictionary
    from tests.ui.served import SEEDS
    from ui import browser

    port = serving.claim_port(None)
    dictionary = Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")
    app = browser.serve([dictionary], host="127.0.0.1", port=port, auth=("me", "pass:word"), block=False)
    context = chromium.new_context()
    page = context.new_page()
    try:
        page.goto(f"http://127.0.0.1:{port}/?feature=3")
        for password in ("wrong", "pass:word"):
            page.get_by_label("username").fill("me")
            page.get_by_label("password").fill(password)
            page.get_by_role("button", name="Login").click()
            if password == "wrong":
                page.wait_for_selector("text=Incorrect Credentials")
                assert page.locator(".feature-page").count() == 0
        page.wait_for_function("document.querySelector('.feature-page h2')?.textContent.startsWith('Feature 3')")
    finally:
        context.close()
        app.close(verbose=False)
        dictionary.close()

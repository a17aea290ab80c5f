"""What stands before the application: who may log in how often, which hosts it answers for, how much may be sent.

`Guard` is an ASGI middleware around every request. It refuses

* hosts it was not started for, which ends DNS rebinding (a page elsewhere whose name is made to mean 127.0.0.1);
* more than `LOGINS` failed logins from one address within `LOGIN_WINDOW_S`, and more than `REQUESTS` requests from one
  address within `REQUEST_WINDOW_S`, with 429 and the seconds to wait;
* bodies above `BODY_BYTES`;

and gives every answer a policy under which a browser talks to this server alone: what a page of ours was made to ask
for elsewhere, the browser refuses to send.
"""

from __future__ import annotations

import hmac
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

LOGINS, LOGIN_WINDOW_S = 5, 60.0
REQUESTS, REQUEST_WINDOW_S = 3000, 10.0
BODY_BYTES = 2_000_000
ADDRESSES_KEPT = 10_000
NOBODY = "'none'"
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # gradio makes functions of its events' js
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    ]
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Throttle:
    """Counts events of each address within a sliding window."""

    def __init__(self, allowed: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.allowed, self.window_s, self.clock = allowed, window_s, clock
        self.times: dict[str, deque[float]] = {}

    def wait_s(self, address: str) -> float:
        """Returns the seconds until this address may come again, 0 where it may now."""
        times = self.times.get(address)
        if times is None:
            return 0.0
        now = self.clock()
        while times and times[0] <= now - self.window_s:
            times.popleft()
        if not times:
            del self.times[address]
        return times[0] + self.window_s - now if len(times) >= self.allowed else 0.0

    def count(self, address: str) -> None:
        """Notes an event."""
        if address not in self.times and len(self.times) >= ADDRESSES_KEPT:
            self.times.pop(next(iter(self.times)))  # the one that has been there longest
        self.times.setdefault(address, deque(maxlen=self.allowed)).append(self.clock())


class Guard:
    """The middleware; `hosts` are names and addresses that requests may be for, or None where any may be.

    `frames` are the origins of pages that may show this server's in a frame; none by default.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None = None, frames: Sequence[str] = ()) -> None:
        self.app = app
        self.hosts = hosts
        self.headers = [
            (b"content-security-policy", f"{POLICY}; frame-ancestors {' '.join(frames) or NOBODY}".encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]
        self.logins = Throttle(LOGINS, LOGIN_WINDOW_S)
        self.requests = Throttle(REQUESTS, REQUEST_WINDOW_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        address = (scope.get("client") or ("unknown", 0))[0]
        logs_in = scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login")
        refused = self._refused(scope, address, logs_in)
        if refused is not None:
            await self._answer(send, *refused)
            return
        self.requests.count(address)
        status = 200

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *self.headers]
            await send(message)

        if (taken := await self._run(scope, receive, answered)) is not None:
            await self._answer(send, *taken)
        elif logs_in and status >= 400:
            self.logins.count(address)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> tuple[int, str, float] | None:
        """Runs the application over a body of limited size; returns the refusal where more came."""
        seen, started = 0, False

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_BYTES:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, limited, noted)
        except _TooLargeError:
            if started:
                raise
            return _too_large()
        return None

    def _refused(self, scope: Scope, address: str, logs_in: bool) -> tuple[int, str, float] | None:
        headers = {name: value for name, value in scope["headers"] if name in (b"host", b"content-length")}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if self.hosts is not None and name not in self.hosts:
            return 421, "This server does not answer for that host: use the address that it printed.", 0.0
        wait = self.logins.wait_s(address) if logs_in else 0.0
        wait = wait or self.requests.wait_s(address)
        if wait:
            return 429, f"Too many attempts, wait {wait:.0f} seconds.", wait
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_BYTES:
            return _too_large()
        return None

    async def _answer(self, send: Send, status: int, text: str, wait_s: float) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), *self.headers]
        if wait_s:
            headers.append((b"retry-after", str(int(wait_s) + 1).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


class _TooLargeError(Exception):
    pass


def _too_large() -> tuple[int, str, float]:
    return 413, f"More than {BODY_BYTES:,} bytes were sent: send less.", 0.0


def hosts_for(host: str) -> frozenset[str] | None:
    """Returns the names under which a server on this loopback address is asked for."""
    return LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host}


def door(auth: tuple[str, str] | None) -> Callable[[str, str], bool] | None:
    """Returns the check of a name and a password, in constant time, or None where none is asked for."""
    if auth is None:
        return None
    name_wanted, password_wanted = (part.encode() for part in auth)

    def opens(name: str, password: str) -> bool:
        named = hmac.compare_digest(name.encode(), name_wanted)
        return hmac.compare_digest(password.encode(), password_wanted) and named

    return opens

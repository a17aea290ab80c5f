"""An OpenAI-compatible endpoint: asked politely, on this machine unless another host is named, and never twice.

Enters: a route and the body of a request. Leaves: the parts of the answer that its reader keeps, or None.

Explanations and pieces of the indexed text leave the machine with every request, so a host other than this machine must
be named with `allow_host`; neither proxies nor redirects are followed. The key comes from the environment
(`GLASSBOX_API_KEY`) and is written nowhere. Answers are kept in a folder by a hash of the request, so that a run that
was stopped goes on without paying twice.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from features.store import write_json

KEY_VARIABLE = "GLASSBOX_API_KEY"
RETRIED = (408, 409, 429, 500, 502, 503, 504)
LONGEST_WAIT_S = 60.0
REQUESTS_PER_MINUTE = 600.0


@dataclass
class Cost:
    """What asking an endpoint took."""

    requests: int = 0
    """Requests sent, retries included."""
    cached: int = 0
    """Questions answered from the folder."""
    retries: int = 0
    failures: int = 0
    """Questions without a usable answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(self)]


@dataclass(kw_only=True)
class Endpoint:
    """Sends requests to one model behind an endpoint."""

    url: str
    """Base address, for instance http://127.0.0.1:8000/v1."""
    model: str
    """Name of the model there."""
    cache: Path
    """Folder of answers."""
    allow_host: str | None = None
    """A host other than this machine that may be asked."""
    requests_per_minute: float = REQUESTS_PER_MINUTE
    attempts: int = 5
    """Tries of one request before it counts as failed."""
    timeout_s: float = 120.0
    first_wait_s: float = 1.0
    """Wait before the second try; doubled each time, unless the endpoint says how long."""
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"endpoint {self.url!r} is no address, expected http://host:port/v1: correct it")
        if not _is_loopback(parts.hostname) and parts.hostname != self.allow_host:
            raise ValueError(
                f"endpoint {self.url} is on {parts.hostname}, expected this machine or a host allowed by name: "
                "text would leave the machine; allow that host, or choose an endpoint here"
            )
        if not self.requests_per_minute > 0:
            raise ValueError(
                f"{self.requests_per_minute:g} requests in a minute were allowed, expected more than 0: raise the limit"
            )
        self.name = f"{self.model} at {parts.netloc.rpartition('@')[2]}"
        self._next_at = 0.0

    def ask(
        self, route: str, body: dict[str, Any], keep: Callable[[dict[str, Any]], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """What `keep` takes from the answer to `POST {url}/{route}`; None where it finds nothing of use in it.

        `keep` may raise ValueError, KeyError, IndexError, TypeError or AttributeError on a malformed answer, which is
        the same. Only what was of use is kept in the folder.

        Raises:
            ValueError: the endpoint refuses.
            OSError: it cannot be reached.
        """
        body = {"model": self.model, **body}
        key = hashlib.sha256(json.dumps([self.url, route, body], sort_keys=True).encode()).hexdigest()
        path = self.cache / key[:2] / f"{key}.json"
        if path.exists():
            self.cost.cached += 1
            return json.loads(path.read_text(encoding="utf-8"))
        answer = self._send(route, json.dumps(body).encode())
        reply = None if answer is None else self._kept(answer, keep)
        if reply is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, reply)
        return reply

    def _send(self, route: str, body: bytes) -> bytes | None:
        """One answer, tried again while the endpoint is busy or out of reach; None where none came."""
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{route}", body, headers)
        wait = self.first_wait_s
        for attempt in range(self.attempts):
            self._pace()
            self.cost.requests += 1
            asked = None
            try:
                with _OPENER.open(request, timeout=self.timeout_s) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                if error.code not in RETRIED:
                    reason = error.read(200).decode("utf-8", "replace").strip().replace("\n", " ")
                    raise ValueError(
                        f"endpoint {self.url} answered {error.code} ({reason}), expected 200: check its address, the "
                        f"model's name and {KEY_VARIABLE}"
                    ) from None
                asked = error.headers.get("Retry-After")
            except (OSError, http.client.HTTPException) as error:
                if attempt + 1 == self.attempts:
                    raise OSError(
                        f"endpoint {self.url} cannot be reached ({error}), expected an answer: start it, or correct "
                        "the address; what was answered is kept"
                    ) from None
            if attempt + 1 < self.attempts:
                self.cost.retries += 1
                time.sleep(min(float(asked) if asked and asked.isdecimal() else wait, LONGEST_WAIT_S))
                wait *= 2
        return None

    def _pace(self) -> None:
        now = time.monotonic()
        if now < self._next_at:
            time.sleep(self._next_at - now)
        self._next_at = max(now, self._next_at) + 60.0 / self.requests_per_minute

    def _kept(self, answer: bytes, keep: Callable[[dict[str, Any]], dict[str, Any] | None]) -> dict[str, Any] | None:
        try:
            content = json.loads(answer)
            usage = content.get("usage") or {}  # what was paid for counts, of use or not
            self.cost.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.cost.completion_tokens += int(usage.get("completion_tokens") or 0)
            return keep(content)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead off this machine: it is an error, as any other status."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


# neither proxies of the environment nor redirects stand between this program and the host that was named
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

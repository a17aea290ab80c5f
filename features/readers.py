"""Language models that write and judge explanations: one on this machine, or one behind an OpenAI-compatible endpoint.

Enters: prompts. Leaves: for each the probabilities of a few answers, or a text. Both kinds have `name`, `choose` and
`write`; what could not be answered is a row of NaN, or None, and is counted, never guessed.

The endpoint is asked on this machine only, unless another host is named with `allow_host`: explanations and pieces of
the indexed text leave the machine with every request. Its key comes from the environment (`GLASSBOX_API_KEY`). Answers
are kept in a folder by a hash of the request, so that a run that was stopped goes on without paying twice.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.store import write_json

if TYPE_CHECKING:
    from activations import LanguageModel

KEY_VARIABLE = "GLASSBOX_API_KEY"
RETRIED = (408, 409, 429, 500, 502, 503, 504)
LONGEST_WAIT_S = 60.0


class LocalReader:
    """Asks a language model of this process; answers are read off its logits."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.name = lm.name

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        """float64 [prompts, choices]: probability of each answer among the choices."""
        from activations.choices import choice_probabilities

        if not prompts:
            return np.zeros((0, len(choices)))
        return choice_probabilities(self.lm, list(prompts), list(choices)).double().numpy()

    def write(self, prompt: str, max_new_tokens: int = 60) -> str | None:
        """The first line that the model writes after the prompt; None where it writes nothing."""
        text = self.lm.generate(prompt, max_new_tokens=max_new_tokens, stop="\n").strip()
        return text.splitlines()[0].strip() if text else None


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
class EndpointReader:
    """Asks an OpenAI-compatible endpoint (`POST {url}/chat/completions`)."""

    url: str
    """Base address, for instance http://127.0.0.1:8000/v1."""
    model: str
    """Name of the model there."""
    cache: Path
    """Folder of answers."""
    allow_host: str | None = None
    """A host other than this machine that may be asked."""
    requests_per_minute: float = 600.0
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
        self.name = f"{self.model} at {parts.netloc.rpartition('@')[2]}"
        self._next_at = 0.0

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        """float64 [prompts, choices]: 0 or 1, or what the endpoint's log-probabilities say; NaN rows without answer."""
        found = np.full((len(prompts), len(choices)), np.nan)
        for number, prompt in enumerate(prompts):
            reply = self._ask(prompt, 4, {"logprobs": True, "top_logprobs": 10})
            row = None if reply is None else _chosen(reply, choices)
            if row is None:
                self.cost.failures += 1
            else:
                found[number] = row
        return found

    def write(self, prompt: str, max_new_tokens: int = 60) -> str | None:
        """The first line of the answer; None where none came."""
        reply = self._ask(prompt, max_new_tokens, {})
        lines = [] if reply is None else [line.strip() for line in reply["text"].splitlines() if line.strip()]
        if not lines:
            self.cost.failures += 1
            return None
        return lines[0]

    def _ask(self, prompt: str, max_tokens: int, more: dict[str, Any]) -> dict[str, Any] | None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            **more,
        }
        key = hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
        path = self.cache / key[:2] / f"{key}.json"
        if path.exists():
            self.cost.cached += 1
            return json.loads(path.read_text(encoding="utf-8"))
        reply = self._send(json.dumps(body).encode())
        if reply is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, reply)
        return reply

    def _send(self, body: bytes) -> dict[str, Any] | None:
        """One answer, tried again while the endpoint is busy or out of reach; None where none of use came."""
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        wait = self.first_wait_s
        for attempt in range(self.attempts):
            self._pace()
            self.cost.requests += 1
            asked = None
            try:
                with _OPENER.open(request, timeout=self.timeout_s) as response:
                    return self._read(response.read())
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

    def _read(self, answer: bytes) -> dict[str, Any] | None:
        """The parts of an answer that are used; None where it is malformed."""
        try:
            content = json.loads(answer)
            choice = content["choices"][0]
            text = choice["message"]["content"]
            usage = content.get("usage") or {}
            self.cost.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.cost.completion_tokens += int(usage.get("completion_tokens") or 0)
            places = ((choice.get("logprobs") or {}).get("content") or [])[:1]
            first = [[top["token"], float(top["logprob"])] for place in places for top in place["top_logprobs"]]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None
        return {"text": text, "first": first} if isinstance(text, str) else None


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


def _chosen(reply: dict[str, Any], choices: Sequence[str]) -> list[float] | None:
    """Probabilities of the choices in an answer; None where it names none of them."""
    mass = [sum(math.exp(p) for token, p in reply["first"] if token.strip() == choice) for choice in choices]
    if sum(mass) > 0:
        return [share / sum(mass) for share in mass]
    said = reply["text"].strip().strip(".'\"`*")
    return [float(said == choice) for choice in choices] if said in choices else None


def reader_for(
    where: str, model: str | None, cache: Path, allow_host: str | None = None, device: str = "auto"
) -> LocalReader | EndpointReader:
    """The reader at `where`: an address, where `model` is the name there, or a local folder or hub name of a model."""
    if where.startswith(("http://", "https://")):
        if not model:
            raise ValueError(f"endpoint {where} was given without a model, expected its name there: name one")
        return EndpointReader(url=where, model=model, cache=cache, allow_host=allow_host)
    from activations import LanguageModel

    return LocalReader(LanguageModel.load(where, device=device))

"""An OpenAI-compatible endpoint on this machine that answers what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fake(BaseHTTPRequestHandler):
    """Answers what the test has put into `script`, and "1" after that."""

    script: list[tuple[int, str | bytes]] = []
    seen: list[dict[str, Any]] = []
    keys: list[str | None] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        self.keys.append(self.headers.get("Authorization"))
        status, answer = self.script.pop(0) if self.script else (200, "1")
        if isinstance(answer, str):
            usage = {"prompt_tokens": 10, "completion_tokens": 1}
            answer = json.dumps({"choices": [{"message": {"content": answer}}], "usage": usage}).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        if status == 302:
            self.send_header("Location", "http://192.0.2.1/")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    """Serves `Fake` while the block runs; yields its address."""
    Fake.script, Fake.seen, Fake.keys = [], [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

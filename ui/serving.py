"""Finds an address for the browser and keeps it safe, before anything heavy is loaded.

Without `--port` the browser takes 7860 or the next free port; a port asked for by name that is taken is an error. An
address that others can reach needs a password.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 7860
PORTS_TRIED = 40
SHORTEST_PASSWORD = 10


def claim_port(port: int | None, host: str = LOOPBACK) -> int:
    """Returns the port to listen on, or raises an OSError that names the occupied one."""
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port {port} does not exist, expected 1 to 65535: choose another --port")
    candidates = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if port is None else [port]
    for candidate in candidates:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                if error.errno == errno.EACCES:
                    raise PermissionError(
                        f"port {candidate} on {host} is reserved for the system, expected one above 1023: "
                        "choose another --port"
                    ) from None
                raise OSError(f"cannot listen on {host}: {error.strerror}: choose another --host") from None
            return candidate
    if port is None:
        raise OSError(
            f"ports {DEFAULT_PORT} to {DEFAULT_PORT + PORTS_TRIED - 1} on {host} are all occupied, expected a free "
            "one: choose one with --port"
        )
    raise OSError(
        f"port {port} on {host} is occupied, expected a free one: choose another --port, or leave it out to take the "
        "next free one"
    )


def is_loopback(host: str) -> bool:
    """Tells whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_auth(given: str | None) -> tuple[str, str] | None:
    """Returns the name and the password of NAME:PASSWORD; a password may hold colons itself."""
    if not given:
        return None
    name, colon, password = given.partition(":")
    if not (name.strip() and colon and password):
        raise ValueError("--auth has no name or no password, expected NAME:PASSWORD: give both")
    return name.strip(), password


def check_host(host: str, auth: tuple[str, str] | None) -> None:
    """Raises ValueError where others could reach the browser and no password of some length guards it."""
    if is_loopback(host):
        return
    if auth is None:
        raise ValueError(
            f"--host {host} lets others reach the browser and nothing guards it, expected a password: give --auth "
            "NAME:PASSWORD or set GLASSBOX_AUTH"
        )
    if len(auth[1]) < SHORTEST_PASSWORD:
        raise ValueError(
            f"--host {host} lets others reach the browser and the password has {len(auth[1])} characters, expected at "
            f"least {SHORTEST_PASSWORD}: choose a longer one"
        )


def browse(
    dictionaries: Sequence[Path],
    *,
    model: str | None = None,
    host: str = LOOPBACK,
    port: int | None = None,
    auth: str | None = None,
    refuse: Path | None = None,
    open_page: bool = False,
) -> None:
    """Opens the dictionaries in the browser and serves until interrupted.

    `auth` is NAME:PASSWORD; `refuse` is a file of patterns, one a line: prompts in which one is found are not taken.
    """
    who = read_auth(auth)
    check_host(host, who)
    free = claim_port(port, host)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from features import Dictionary
    from ui import browser
    from ui.browser.limits import Limits, read_patterns

    limits = Limits(refused=read_patterns(refuse) if refuse else ())
    opened = [Dictionary.open(folder, model=model) for folder in dictionaries]
    browser.serve(opened, host=host, port=free, auth=who, limits=limits, open_page=open_page)

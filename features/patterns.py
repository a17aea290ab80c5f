"""Regular expressions of people, in bounded time.

Enters: a pattern in Python's syntax, and strings. Leaves: where it matches.

Some patterns take longer than the universe has time, and nothing interrupts Python's matcher. So it runs in a process
of its own, which needs only the standard library, reads the strings from a pipe, and is ended when its time is up.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TIMEOUT_S = 10.0
MATCHES = 200_000
"""Most matches; what comes behind them is not looked at."""

_MATCHER = """
import array, re, struct, sys, warnings
warnings.simplefilter("ignore")
read = sys.stdin.buffer.read
pattern_bytes, text_bytes, n_strings, most = struct.unpack("<4q", read(32))
pattern = read(pattern_bytes).decode("utf-8", "surrogatepass")
text = read(text_bytes).decode("utf-8", "surrogatepass")
ends = array.array("q")
ends.frombytes(read(8 * n_strings))
found = array.array("q")
try:
    compiled = re.compile(pattern)
except (re.error, RecursionError, OverflowError, ValueError, MemoryError) as error:
    sys.stdout.buffer.write(b"E" + str(error).encode("utf-8", "replace"))
    sys.exit()
start = 0
for number, end in enumerate(ends):
    # a string of its own, so that ^ and $ and what looks around see its borders
    for match in compiled.finditer(text[start:end]):
        if match.end() > match.start():
            found.extend((number, match.start(), match.end()))
            if len(found) >= 3 * most:
                break
    if len(found) >= 3 * most:
        break
    start = end
sys.stdout.buffer.write(b"M" + found.tobytes())
"""


class Matches(NamedTuple):
    """Where a pattern matches: string number, first character and the one behind the last, in order."""

    strings: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def matches(pattern: str, text: str, ends: Sequence[int] | np.ndarray, timeout_s: float = TIMEOUT_S) -> Matches:
    """Finds all matches (not the empty ones) in the strings whose ends in `text` are `ends`.

    Raises:
        ValueError: a pattern that is broken, or slower than `timeout_s`.
    """
    pattern_bytes, text_bytes = pattern.encode("utf-8", "surrogatepass"), text.encode("utf-8", "surrogatepass")
    lengths = struct.pack("<4q", len(pattern_bytes), len(text_bytes), len(ends), MATCHES)
    given = b"".join([lengths, pattern_bytes, text_bytes, np.asarray(ends, dtype="<i8").tobytes()])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHER], input=given, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"the pattern {pattern!r} was stopped after {timeout_s:g} s, expected matches within that time: "
            "write it without repeats inside repeats, or search for a plain text"
        ) from None
    kind, answer = done.stdout[:1], done.stdout[1:]
    if kind == b"E":
        reason = answer.decode("utf-8", "replace")
        raise ValueError(
            f"the pattern {pattern!r} is broken ({reason}), expected a regular expression in Python's syntax: "
            "correct it, or put a backslash before signs that stand for themselves"
        )
    if kind != b"M":
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"code {done.returncode}"]
        raise ValueError(f"the pattern {pattern!r} could not be matched ({reason[0]}), expected matches: simplify it")
    found = np.frombuffer(answer, dtype="<i8").reshape(-1, 3)
    return Matches(found[:, 0], found[:, 1], found[:, 2])

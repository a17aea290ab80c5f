"""The text of single tokens, faithfully.

Enters: a tokenizer. Leaves: for every id a string that people can read: the marks by which vocabularies spell spaces
and bytes are undone, bytes that are no UTF-8 on their own are written `\\xNN`, and special tokens stay as they are.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, Literal

Spelling = Literal["bytes", "metaspace", "wordpiece", "plain"]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def vocabulary_strings(tokenizer: Any, size: int) -> list[str]:
    """Returns the text of the ids below `size`; ids that the tokenizer lacks read `<unused N>`."""
    known = min(size, len(tokenizer))
    pieces = tokenizer.convert_ids_to_tokens(list(range(known)))
    added = {int(i): str(token) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    spelling = spelling_of(tokenizer, pieces)
    strings = []
    for index, piece in enumerate(pieces):
        if index in added:
            strings.append(added[index])
        elif piece is None:
            strings.append(f"<unused {index}>")
        else:
            strings.append(_text(piece, spelling))
    return strings + [f"<unused {index}>" for index in range(known, size)]


def spelling_of(tokenizer: Any, pieces: list[str | None]) -> Spelling:
    """Tells how a vocabulary writes spaces and bytes, from its decoder, or for slow tokenizers from its pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts = json.loads(backend.to_str())
        described = json.dumps([parts.get("decoder"), parts.get("pre_tokenizer")], ensure_ascii=False)
        if '"ByteLevel"' in described:
            return "bytes"
        if '"WordPiece"' in described or (parts.get("model") or {}).get("type") == "WordPiece":
            return "wordpiece"
        return "metaspace" if "\u2581" in described or '"Metaspace"' in described else "plain"
    marks = [piece[0] for piece in pieces if piece]
    if marks.count("\u0120") > len(marks) // 20:
        return "bytes"
    if marks.count("\u2581") > len(marks) // 20:
        return "metaspace"
    return "wordpiece" if any((piece or "").startswith("##") for piece in pieces) else "plain"


def _text(piece: str, spelling: Spelling) -> str:
    if spelling == "bytes":
        table = byte_characters()
        if all(character in table for character in piece):
            return readable(bytes(table[character] for character in piece))
        return piece
    if spelling == "metaspace":
        if found := _BYTE_TOKEN.fullmatch(piece):
            return readable(bytes([int(found[1], 16)]))
        return piece.replace("\u2581", " ")
    if spelling == "wordpiece":
        # a word's first piece stands for the space before it, so that joined tokens read as text
        return piece[2:] if piece.startswith("##") else f" {piece}"
    return piece


def readable(raw: bytes) -> str:
    """Decodes UTF-8, writing each byte that is none as `\\xNN`."""
    return raw.decode("utf-8", errors="backslashreplace")


@cache
def byte_characters() -> dict[str, int]:
    """Returns the printable stand-ins by which byte-level vocabularies (GPT-2 and after) spell the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}

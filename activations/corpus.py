"""Text with provenance: the embedded corpus, local files and hub datasets as one stream of documents.

Enters: a data source. Leaves: `Document`s, each with a name that tells a reader where it came from.

The embedded corpus is the Python standard library as found on this machine (`sysconfig.get_path("stdlib")`), read as
UTF-8 without its tests and caches. Documents are divided into training and held-out ones by a hash of their name, so
that every machine, every command and every model divides them alike.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout", "all"]

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
DOCUMENTATION_SUFFIXES = (".py", ".rst", ".md")


@dataclass(frozen=True)
class Document:
    """One text and the name under which its features' examples are shown (for files: the relative path)."""

    name: str
    text: str


@dataclass
class ReadReport:
    """What a walk over files read and what it left out."""

    documents: int = 0
    characters: int = 0
    undecodable: int = 0
    empty: int = 0


def in_split(name: str, split: Split, heldout_percent: int) -> bool:
    """Says whether the document `name` belongs to `split`; `heldout_percent` of all names are held out."""
    if split == "all":
        return True
    bucket = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % 100
    return (bucket < heldout_percent) == (split == "heldout")


def walk_files(root: Path, suffixes: tuple[str, ...], skip_folders: frozenset[str] = SKIPPED_FOLDERS) -> list[Path]:
    """Returns the files below `root` with one of `suffixes`, sorted by relative path, without `skip_folders`."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in skip_folders)
        found += [Path(folder) / name for name in names if name.endswith(suffixes)]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def read_documents(paths: Iterable[Path], root: Path, report: ReadReport | None = None) -> Iterator[Document]:
    """Reads files as UTF-8 documents named by their path below `root`; counts what it leaves out in `report`."""
    report = ReadReport() if report is None else report
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            report.undecodable += 1
            continue
        if not text.strip():
            report.empty += 1
            continue
        report.documents += 1
        report.characters += len(text)
        yield Document(path.relative_to(root).as_posix(), text)


def standard_library(
    split: Split = "all", heldout_percent: int = 8, report: ReadReport | None = None
) -> Iterator[Document]:
    """Yields the standard library's Python files in the order of their names: the embedded corpus."""
    root = Path(sysconfig.get_path("stdlib"))
    kept = (
        path
        for path in walk_files(root, (".py",))
        if in_split(path.relative_to(root).as_posix(), split, heldout_percent)
    )
    return read_documents(kept, root, report)


def installed_packages(
    max_file_bytes: int, accept: Callable[[Document], bool], report: ReadReport | None = None
) -> Iterator[Document]:
    """Yields source and documentation of the installed packages in an order scrambled by hash, for pretraining only.

    `accept` lets the caller refuse documents, for instance copies of held-out ones.
    """
    root = Path(sysconfig.get_path("purelib"))
    paths = [
        path
        for path in walk_files(root, DOCUMENTATION_SUFFIXES, SKIPPED_FOLDERS - {"site-packages", "dist-packages"})
        if path.stat().st_size <= max_file_bytes
    ]
    paths.sort(key=lambda path: hashlib.blake2b(path.relative_to(root).as_posix().encode()).digest())
    return (document for document in read_documents(paths, root, report) if accept(document))

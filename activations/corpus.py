"""Text with provenance: the embedded corpus, local files and hub datasets as one stream of documents.

Enters: a data source. Leaves: `Document`s, each with a name that tells a reader where it came from.

The embedded corpus is the Python standard library as found on this machine (`sysconfig.get_path("stdlib")`), read as
UTF-8 without its tests and caches. Documents are divided into training and held-out ones by a hash of their name, so
that every machine, every command and every model divides them alike.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from activations.chat import checked_messages

Split = Literal["train", "heldout", "all"]

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
DOCUMENTATION_SUFFIXES = (".py", ".rst", ".md")


@dataclass(frozen=True)
class Document:
    """One text and the name under which its features' examples are shown (for files: the relative path)."""

    name: str
    text: str
    messages: tuple[dict[str, Any], ...] = ()
    """A conversation in place of the text, which the tokenizer's chat template makes of it (`activations.chat`)."""


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


TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
ROW_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
EMBEDDED = "embedded"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, how it becomes rows of tokens, and what is held out."""

    __pydantic_config__ = {"extra": "forbid"}

    source: str = EMBEDDED
    """`embedded` (the standard library), a folder or file (.txt .md .rst .py .jsonl .json .csv .parquet, .gz too), or
    the name of a hub dataset."""
    subset: str | None = None
    """Configuration of a hub dataset."""
    split: str = "train"
    """Split of a hub dataset."""
    text_column: str = "text"
    """Column or key that holds the text, where a source has columns."""
    name_column: str | None = None
    """Column that names a document; without one it is called by file and row number."""
    messages_column: str | None = None
    """Column that holds conversations (lists of messages with `role` and `content`), read instead of `text_column`
    through the chat template of the model's tokenizer."""
    roles: list[str] = field(default_factory=list)
    """Roles whose messages are trained on, evaluated and indexed, such as `[assistant]`; the model reads all. Empty for
    every token, those that the template adds too."""
    context_tokens: int = 256
    """Length of a row of tokens."""
    prepend_bos: bool = False
    """Put one BOS before each document, unless the tokenizer did so by itself."""
    exclude_special_tokens: bool = True
    """Leave activations at BOS, EOS, PAD and other control tokens out of training, evaluation and index."""
    exclude_outlier_norms: float | None = None
    """Leave rows out of training and evaluation whose norm exceeds this multiple of the site's median; default none."""
    heldout_percent: int = 8
    """Share of documents, by hash of the name, that is never trained on."""
    total_tokens: int | None = None
    """Stop after this many training tokens."""
    heldout_tokens: int = 200_000
    """Tokens of held-out documents to evaluate on."""

    def __post_init__(self) -> None:
        if self.context_tokens < 2:
            raise ValueError(f"context_tokens={self.context_tokens}, expected 2 or more: raise it")
        if not 0 <= self.heldout_percent < 100:
            raise ValueError(f"heldout_percent={self.heldout_percent}, expected 0 to 99: correct it")
        if self.exclude_outlier_norms is not None and not self.exclude_outlier_norms > 1:
            raise ValueError(
                f"exclude_outlier_norms={self.exclude_outlier_norms}, expected a multiple of the median above 1: try 10"
            )
        if self.roles and self.messages_column is None:
            raise ValueError(f"roles={self.roles} was given for plain text, expected messages_column beside it: set it")
        if self.messages_column is not None and self.source == EMBEDDED:
            raise ValueError(
                f"messages_column={self.messages_column!r} was given for the embedded text, expected a source with "
                "rows: set source to a .jsonl or .parquet file or a hub dataset"
            )
        for name in ("total_tokens", "heldout_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}, expected 1 or more: raise it")


def documents(config: DataConfig, split: Split = "train") -> Iterator[Document]:
    """Yields the documents of a source that belong to `split`.

    Files come in an order scrambled by the hash of their name, so that the first tokens of a corpus are a fair sample
    of it; rows of one file keep their order. A source without a document raises ValueError once that is known.
    """
    found = False
    for document in _source(config, split):
        found = True
        yield document
    if not found:
        held = f" (heldout_percent={config.heldout_percent})" if split != "all" else ""
        raise ValueError(
            f"data source {config.source!r} has no documents with text in split {split!r}{held}, expected some: "
            "name another source or change the share held out"
        )


def _source(config: DataConfig, split: Split) -> Iterator[Document]:
    if config.source == EMBEDDED:
        yield from sorted(
            standard_library(split, config.heldout_percent), key=lambda document: _scramble(document.name)
        )
        return
    path = Path(config.source).expanduser()
    if path.exists():
        chosen = _local_documents(path, config, split)
    elif config.source.startswith((".", "~", os.sep)) or config.source.count("/") > 1 or not config.source:
        raise FileNotFoundError(
            f"no data at {config.source!r}, expected `embedded`, a file, a folder or a hub dataset: correct the path"
        )
    else:
        chosen = _hub_documents(config, split)
    yield from chosen


def _scramble(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8, person=b"order").digest()


def _local_documents(path: Path, config: DataConfig, split: Split) -> Iterator[Document]:
    known = (*TEXT_SUFFIXES, *ROW_BUILDERS)
    if path.is_file():
        files, root = [path], path.parent
        if _suffix(path) not in known:
            raise ValueError(
                f"{path} is no text file that can be read, expected {', '.join(known)} (.gz too): convert it"
            )
    else:
        root = path
        suffixes = tuple(f"{suffix}{packed}" for suffix in known for packed in ("", ".gz"))
        files = walk_files(path, suffixes, frozenset({"__pycache__", ".git"}))
    files.sort(key=lambda file: _scramble(file.relative_to(root).as_posix()))
    texts = [file for file in files if _suffix(file) in TEXT_SUFFIXES and file.stat().st_size > 0]
    wanted = [file for file in texts if in_split(file.relative_to(root).as_posix(), split, config.heldout_percent)]
    if wanted and config.messages_column is not None:
        raise ValueError(
            f"{wanted[0]} is plain text and has no column {config.messages_column!r}, expected files with rows "
            f"({', '.join(ROW_BUILDERS)}): leave out data.messages_column, or name such files"
        )
    if wanted:
        rows = _local_rows("text", [str(file) for file in wanted], sample_by="document")
        current = wanted[0]
        try:
            for current in wanted:
                text = next(rows)["text"]
                if text.strip():
                    yield Document(current.relative_to(root).as_posix(), text)
        except (UnicodeDecodeError, StopIteration, OSError) as error:
            reason = str(error) or "it holds no text"
            raise ValueError(
                f"{current} cannot be read ({reason}), expected UTF-8 text: convert or remove it"
            ) from error
    for file in files:
        builder = ROW_BUILDERS.get(_suffix(file))
        if builder is not None and file.stat().st_size > 0:
            name = file.relative_to(root).as_posix()
            yield from _row_documents(_local_rows(builder, [str(file)]), name, config, split)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _local_rows(builder: str, files: list[str], **options: Any) -> Iterator[dict[str, Any]]:
    """Streams local files through `datasets` without the usage count that it would send to the hub."""
    import datasets
    from datasets import config as settings

    previous = settings.HF_UPDATE_DOWNLOAD_COUNTS
    settings.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        loaded = datasets.load_dataset(builder, data_files=files, split="train", streaming=True, **options)
    finally:
        settings.HF_UPDATE_DOWNLOAD_COUNTS = previous
    yield from loaded  # pyright: ignore


def _hub_documents(config: DataConfig, split: Split) -> Iterator[Document]:
    import datasets

    try:
        rows = datasets.load_dataset(config.source, config.subset, split=config.split, streaming=True)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FileNotFoundError(
            f"data {config.source!r} cannot be opened ({reason}), expected `embedded`, a local file or folder, or a "
            "reachable hub dataset: correct the name or give local files"
        ) from error
    yield from _row_documents(iter(rows), config.source, config, split)  # pyright: ignore


def _row_documents(rows: Iterator[dict[str, Any]], source: str, config: DataConfig, split: Split) -> Iterator[Document]:
    number = -1
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except (OSError, ValueError, UnicodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{source} cannot be read at row {number} ({reason}): repair or remove it") from error
        content_column = config.messages_column or config.text_column
        for column in (content_column, config.name_column):
            if column is not None and column not in row:
                near = difflib.get_close_matches(column, row, n=1)
                hint = f" (nearest: {near[0]!r})" if near else ""
                raise ValueError(
                    f"{source} has no column {column!r}{hint}, expected one of {', '.join(map(str, row))}: "
                    "set data.text_column, data.messages_column or data.name_column"
                )
        name = f"{source}:{number}" if config.name_column is None else str(row[config.name_column])
        if config.messages_column is not None:
            given = row[config.messages_column]
            messages = checked_messages(given, f"{source} row {number}, column {content_column!r}") if given else ()
            if messages and in_split(name, split, config.heldout_percent):
                yield Document(name, "", messages)
            continue
        text = row[config.text_column]
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        if not isinstance(text, str):
            raise ValueError(
                f"{source} row {number}: column {config.text_column!r} holds {type(text).__name__}, expected text: "
                "set data.text_column"
            )
        if in_split(name, split, config.heldout_percent):
            yield Document(name, text)

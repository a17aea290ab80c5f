"""The activation store: rows of several sites on disk, written once, read shuffled at the speed of memory.

    store/
      manifest.json               what the store holds: sites, widths, dtype, shards to come, provenance
      shards-00000.jsonl          one line per finished shard of process 0: name, rows, bytes, sha256
      shard-00000.safetensors     all sites' rows of one range of token rows, with their document and position; of int8
                                  rows also `<site>/scale`

A shard is written under another name, flushed to disk and renamed, and only then entered in the list: what the list
names is whole. Which rows a shard holds depends on the token rows alone, not on who writes it or when, so a killed
harvest goes on where it stopped and any number of processes writes the same files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from activations.quantized import dequantized

if TYPE_CHECKING:
    from activations.store_rows import StoreRows

FORMAT = "glassbox-activations-1"
FORMAT_INT8 = "glassbox-activations-2"
"""Of stores whose rows are integers with scales: readers that know only the first would take them for activations."""
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "int8": torch.int8,
}
ROW_DTYPES = DTYPES | {"int8": torch.bfloat16}
"""Type of the rows that readers get, by the type in which they are kept."""


def scale_name(site: str) -> str:
    """Returns the name of the tensor that holds the scales of an int8 site's rows."""
    return f"{site}/scale"


@runtime_checkable
class ResumableRows(Protocol):
    """Rows for a trainer that can be left and taken up again."""

    def __iter__(self) -> Iterator[Any]: ...

    def state(self) -> dict[str, Tensor]:
        """Returns all that is needed to go on after the last chunk that was yielded."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on, in the next iteration, exactly after the chunk that `state` was taken behind."""
        ...


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds. Two harvests with equal manifests write equal bytes."""

    sites: dict[str, int]
    """Width of a row by site."""
    dtype: str
    n_shards: int
    """Shards of the finished store."""
    shard_token_rows: int
    """Rows of tokens whose activations one shard holds."""
    batch_token_rows: int
    """Rows of tokens in one forward pass (it decides the last bits)."""
    provenance: dict[str, Any]
    """Model, its weight hash, data, tokens' fingerprint."""
    format: str = FORMAT


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One finished shard."""

    index: int
    rows: int
    size_bytes: int
    sha256: str

    @property
    def file(self) -> str:
        return shard_file(self.index)


def shard_file(index: int) -> str:
    """Returns the name of a shard's file."""
    return f"shard-{index:05d}.safetensors"


class ActivationStore:
    """A folder of activations. `open` an existing one; `create` (or go on with) one to write."""

    def __init__(self, path: Path, manifest: Manifest, shards: dict[int, ShardEntry]) -> None:
        self.path = path
        self.manifest = manifest
        self.shards = shards

    @classmethod
    def create(cls, path: str | Path, manifest: Manifest) -> ActivationStore:
        """Starts a store, or goes on with the same one; ValueError if the folder holds another."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        if (path / "manifest.json").exists():
            store = cls.open(path, partial=True)
            differing = _difference(asdict(store.manifest), asdict(manifest))
            if differing:
                key, got, expected = differing
                raise ValueError(
                    f"{path} holds another store: {key} is {got!r}, this harvest has {expected!r}: "
                    "choose another `out` or delete the store"
                )
            return store
        strangers = [entry.name for entry in path.iterdir() if not entry.name.endswith(".partial")]
        if strangers:
            raise ValueError(
                f"{path} holds {sorted(strangers)[0]} and no store, expected an empty folder: choose another"
            )
        _write_atomically(path / "manifest.json", json.dumps(asdict(manifest), indent=2).encode())
        return cls(path, manifest, {})

    @classmethod
    def open(cls, path: str | Path, *, partial: bool = False) -> ActivationStore:
        """Opens a store and checks that all its shards are there whole (`verify` checks their bytes too)."""
        path = Path(path)
        if not (path / "manifest.json").exists():
            raise FileNotFoundError(f"{path} holds no manifest.json, expected an activation store: harvest one first")
        try:
            stored = json.loads((path / "manifest.json").read_text())
            if stored.get("format") not in (FORMAT, FORMAT_INT8):
                raise ValueError(f"format {stored.get('format')!r}")
            manifest = Manifest(**stored)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no activation store of format {FORMAT} ({error}): harvest again") from error
        shards: dict[int, ShardEntry] = {}
        for listing in sorted(path.glob("shards-*.jsonl")):
            for entry in _entries(listing):
                shards[entry.index] = entry
        store = cls(path, manifest, dict(sorted(shards.items())))
        store._check_sizes()
        if not partial and len(shards) < manifest.n_shards:
            raise ValueError(
                f"store at {path} holds {len(shards)} of {manifest.n_shards} shards: its harvest is not finished; "
                "run it again to go on"
            )
        return store

    def _check_sizes(self) -> None:
        for entry in self.shards.values():
            file = self.path / entry.file
            size = file.stat().st_size if file.exists() else -1
            if size != entry.size_bytes:
                got = "is missing" if size < 0 else f"has {size} bytes"
                raise ValueError(
                    f"{file} {got}, expected {entry.size_bytes} bytes: the store is damaged; "
                    "delete it and harvest again"
                )

    @property
    def sites(self) -> list[str]:
        return list(self.manifest.sites)

    @property
    def dtype(self) -> torch.dtype:
        """Type in which rows are kept."""
        return DTYPES[self.manifest.dtype]

    @property
    def row_dtype(self) -> torch.dtype:
        """Type of the rows that `rows` gives."""
        return ROW_DTYPES[self.manifest.dtype]

    @property
    def n_rows(self) -> int:
        return sum(entry.rows for entry in self.shards.values())

    @property
    def is_complete(self) -> bool:
        return len(self.shards) == self.manifest.n_shards

    def d_in(self, site: str) -> int:
        """Returns the width of a site's rows; ValueError if the store does not hold the site."""
        if site not in self.manifest.sites:
            raise ValueError(
                f"store at {self.path} holds no site {site!r}, expected one of {', '.join(self.sites)}: "
                "harvest again with it"
            )
        return self.manifest.sites[site]

    def verify(self) -> None:
        """Compares every shard with its checksum; ValueError names the first that differs."""
        for entry in self.shards.values():
            with (self.path / entry.file).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry.sha256:
                raise ValueError(
                    f"{self.path / entry.file} does not match its checksum: the store is damaged; "
                    "delete it and harvest again"
                )

    def read(self, index: int, name: str) -> Tensor:
        """Returns one tensor of a shard: a site's rows, or each row's `document` or `position`."""
        if self.manifest.dtype == "int8" and name in self.manifest.sites:
            return dequantized(self._read(index, name), self._read(index, scale_name(name)), self.row_dtype)
        return self._read(index, name)

    def _read(self, index: int, name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        file = self.path / shard_file(index)
        try:
            with safe_open(file, framework="pt") as stored:
                return stored.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged ({error}), expected a whole shard: delete the store, harvest again"
            ) from error

    def read_rows(self, index: int, sites: Sequence[str]) -> dict[str, Tensor]:
        """Returns the rows of some sites of a shard."""
        return {site: self.read(index, site) for site in sites}

    def rows(
        self,
        site: str | Sequence[str],
        *,
        seed: int = 0,
        epochs: int | None = 1,
        chunk_rows: int = 8192,
        shuffle: bool = True,
        window_rows: int = 262_144,
    ) -> StoreRows:
        """Returns the rows of a site: shards in random order, rows mixed within windows of whole shards.

        Windows hold as many shards as fit in `window_rows`, and at least one; `StoreRows.mixing` says how many rows.

        Of several sites: dicts by site, whose tensors hold the same tokens in the same order, which is that of each of
        the sites alone. `epochs=None` goes round without end. Without `shuffle` rows come in the order of the corpus.
        """
        from activations.store_rows import StoreRows

        return StoreRows(self, site, seed, epochs, chunk_rows, shuffle, window_rows)

    def write(self, index: int, tensors: dict[str, Tensor], process: int = 0) -> ShardEntry:
        """Writes a shard and makes it visible; OSError if it cannot be written, with nothing left behind."""
        parts = _safetensors(tensors)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        rows = next(iter(tensors.values())).shape[0]
        size = sum(len(part) for part in parts)
        entry = ShardEntry(index=index, rows=rows, size_bytes=size, sha256=digest.hexdigest())
        _write_atomically(self.path / entry.file, *parts)
        line = json.dumps(asdict(entry)) + "\n"
        listing = self.path / f"shards-{process:05d}.jsonl"
        try:
            with listing.open("a+b") as file:
                # an earlier writer may have been killed within its line
                if file.tell() and _last_byte(file) != b"\n":
                    file.write(b"\n")
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _disk_error(listing, error) from error
        self.shards[index] = entry
        return entry


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _entries(listing: Path) -> Iterator[ShardEntry]:
    for line in listing.read_text().splitlines():
        try:
            yield ShardEntry(**json.loads(line))
        except (ValueError, TypeError):
            continue  # a line that its writer did not finish: its shard is written again


def _difference(got: Any, expected: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(got, dict) and isinstance(expected, dict):
        for key in [*got, *(key for key in expected if key not in got)]:
            found = _difference(got.get(key), expected.get(key), f"{where}.{key}" if where else str(key))
            if found:
                return found
        return None
    return None if got == expected else (where, got, expected)


def _safetensors(tensors: dict[str, Tensor]) -> list[bytes | memoryview]:
    """Lays tensors out as a safetensors file without copying them: the library's own `save` copies all twice."""
    names = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16", torch.int32: "I32", torch.int8: "I8"}
    header: dict[str, Any] = {}
    parts: list[bytes | memoryview] = []
    place = 0
    # widest items first, so that every tensor is aligned
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().data
        header[name] = {
            "dtype": names[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [place, place + len(data)],
        }
        parts.append(data)
        place += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _disk_error(path, error) from error


def _disk_error(path: Path, error: OSError) -> OSError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return OSError(f"the disk is full: {path} could not be written; free space and run again, it goes on from here")
    return OSError(f"{path} could not be written ({error.strerror}): make the folder writable or choose another")


def check_space(path: Path, needed_bytes: int) -> None:
    """OSError before any work if the disk of `path` lacks `needed_bytes`."""
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise OSError(
            f"the disk of {path} has {free / 1e9:.2f} GB free, the activations take {needed_bytes / 1e9:.2f} GB: "
            "free space, harvest fewer tokens or sites, or set harvest.store=false"
        )

"""Features to share, in every format: to a path, or as one download that leaves nothing behind.

Enters: an opened dictionary and numbers of features. Leaves: files. A download is written into a private folder, which
only this user may enter, read, and removed: nothing stays where another session could fetch it.
"""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features import Dictionary
    from features.sharing.neuronpedia import Upload

FORMATS = ("html", "json", "csv", "parquet", "neuronpedia", "saedashboard")
DOWNLOAD_FEATURES = 2_000
DOWNLOAD_BYTES = 64 << 20
ONE_PAGE_FEATURES = 20
"""Features up to which a download of HTML is one file."""


@dataclass(frozen=True)
class Download:
    """A file to hand out."""

    name: str
    content: bytes


def write_export(
    dictionary: Dictionary,
    features: Sequence[int],
    kind: str,
    out: Path,
    name: str | None = None,
    upload: Upload | None = None,
) -> Path:
    """Writes features, those of the list `name` where one is given, as one of `FORMATS`; returns the path to open."""
    from features.sharing import dashboard, documents, flat_tables, neuronpedia
    from ui.render import dictionary_pages

    if kind == "html":
        return dictionary_pages.write_pages(dictionary, features, out, dictionary.lists.get(name) if name else None)
    if kind == "json":
        return documents.write_json(dictionary, features, out, name)
    if kind in ("neuronpedia", "saedashboard"):
        write = neuronpedia.write_upload if kind == "neuronpedia" else dashboard.write_dashboard
        return write(dictionary, features, out, upload)
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r} is unknown, expected one of {', '.join(FORMATS)}: choose one of these")
    return flat_tables.write_flat(dictionary, features, out, kind, name)


def download(dictionary: Dictionary, kind: str, name: str | None = None) -> Download:
    """Returns a list, or everything, as one file; folders are packed as a zip archive.

    Raises:
        ValueError: an unknown format or list, or more than a browser should be sent.
    """
    from features.sharing.reading import select_features

    chosen = select_features(dictionary, None, name)
    if len(chosen) > DOWNLOAD_FEATURES:
        raise ValueError(
            f"{len(chosen):,} features to download, expected at most {DOWNLOAD_FEATURES:,}: export a list, or use "
            f"`glassbox dict export DICT --format {kind} --out PATH`"
        )
    title = re.sub(r"[^\w.-]+", "-", name or dictionary.name, flags=re.ASCII).strip("-.")[:60] or "features"
    is_file = kind == "json" or (kind == "html" and len(chosen) <= ONE_PAGE_FEATURES)
    with tempfile.TemporaryDirectory(prefix="glassbox-") as private:
        out = Path(private) / (f"{title}.{kind}" if is_file else title)
        write_export(dictionary, chosen, kind, out, name)
        content = out.read_bytes() if is_file else _zipped(out)
    if len(content) > DOWNLOAD_BYTES:
        raise ValueError(
            f"the download has {len(content) >> 20} MiB, expected at most {DOWNLOAD_BYTES >> 20}: export a list, or "
            f"use `glassbox dict export DICT --format {kind} --out PATH`"
        )
    return Download(out.name if is_file else f"{title}-{kind}.zip", content)


def _zipped(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, Path(folder.name) / path.relative_to(folder))
    return packed.getvalue()

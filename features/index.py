"""The index: one pass of text through the language model and its SAEs, for all features at once.

Enters: one or many SAEs of any architecture, the language model they read, and rows of tokens with their documents.
Leaves: a dictionary folder for each SAE (`features.store`).

1. Forward up to the deepest site of all, once for each batch; every SAE encodes. The non-zero codes at counted tokens
   are the events (feature, token number, activation). They gather in `features.events`, which turns them from the order
   of the text into that of the features.
2. Range by range of features: the table of all events, counts, mean, standard deviation, maximum, a histogram of
   quarter octaves, the examples (`features.examples`), and the tokens that hold most of each feature's activation.
   With `events="examples"`, and above `event_limit`, of the events themselves only those around examples are kept.
3. From the weights: neighbours (`features.geometry`) and effects on logits (`features.logit_effects`).
4. The build folder is complete when `dictionary.json` names it, which happens in one step at the end. A killed build
   is never opened; the same call goes on from its last complete chunk of events.

Algorithm: statistics are exact, over every event; nothing is estimated from a sample. Where activations may be
negative, events and examples keep the sign, and everything that says how strong a feature is goes by the size.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from activations.buckets import capture_tokens
from activations.processes import current
from activations.progress import progress
from features import coactivation, geometry, logit_effects, wiring
from features.corpus import Corpus, arrange_corpus, write_corpus_tables
from features.event_tables import FEATURE_ROW_GROUP, write_event_tables, write_table
from features.events import EventSpill
from features.pages import write_pages
from features.relations import PAGE_TABLES
from features.store import (
    FORMAT,
    MANIFEST,
    SPILL,
    BuildLock,
    describe_files,
    read_manifest,
    remove_build,
    write_json,
)
from features.text_events import write_text_events
from sae.formats.saelens import stored_name

if TYPE_CHECKING:
    from features.dictionary import Dictionary

SPILL_BYTES_PER_EVENT = 8
STORED_BYTES_PER_EVENT = 13
"""Bytes that an event takes in the table events, at most about that many."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How a dictionary is built from text."""

    __pydantic_config__ = {"extra": "forbid"}

    total_tokens: int | None = None
    """Tokens of the text to index; default all."""
    batch_tokens: int = 8192
    """Tokens in one forward pass."""
    examples: int = 20
    """Strongest windows to keep of each feature."""
    per_document: int = 3
    """Most of these strongest windows that may come from one document."""
    window_tokens: int = 16
    """Length of the windows of which at most one example is taken, in tokens."""
    strata: int = 4
    """Equal parts into which the weaker windows are cut, from strong to weak, to be sampled."""
    stratum_examples: int = 5
    """Windows sampled from each of these parts."""
    neighbours: int = 10
    """Nearest features by cosine of decoder rows, and as many by cosine of encoder rows."""
    coactivations: int = 10
    """Features kept of those that are active on the same tokens most."""
    coactivation_tokens: int = 131_072
    """Tokens on which these are counted: all where the text has no more, else a sample of this size."""
    logits: int = 15
    """Most promoted, and as many most suppressed, tokens."""
    histogram_bins: int = 48
    """Most bins of a feature's histogram (quarter octaves of activation; smaller values join the lowest bin)."""
    feature_tokens: int = 64
    """Tokens kept for search of each feature, those with most of its activation."""
    events: Literal["all", "examples"] = "all"
    """Which events (non-zero activations) stay: all, or only those shown around examples, which takes a small part of
    the room; statistics and examples are the same, but what asks about all events is refused (docs/indexing.md)."""
    event_limit: int = 5_000_000_000
    """Above this number of events only those around examples stay, also with events=all."""
    seed: int = 0
    """Seed of the sampled examples."""

    def __post_init__(self) -> None:
        least = ("batch_tokens", "examples", "per_document", "window_tokens", "histogram_bins", "feature_tokens")
        for name in (*least, "coactivation_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"index.{name}={getattr(self, name)}, expected at least 1: raise it")
        for name in ("strata", "stratum_examples", "neighbours", "coactivations", "logits"):
            if getattr(self, name) < 0:
                raise ValueError(f"index.{name}={getattr(self, name)}, expected 0 or more: raise it")
        if self.total_tokens is not None and self.total_tokens < 1:
            raise ValueError(f"index.total_tokens={self.total_tokens}, expected at least 1: raise it or leave it out")


class Codes(NamedTuple):
    """What an SAE makes of the counted tokens of a batch, [n, k] each, padded with index −1."""

    indices: np.ndarray
    values: np.ndarray


def encode_events(
    saes: Sequence[Any], lm: Any, corpus: Corpus, batch_tokens: int, wanted: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, dict[int, Codes], np.ndarray, int]]:
    """Yields batch after batch: its number, codes by SAE, the numbers of the tokens encoded, and how many there are.

    `wanted` says for each batch, by its number, which of the SAEs need it. The model runs once for all of these, up to
    the deepest site that one of them reads.

    Raises:
        ValueError: activations that are not finite; the message names site, row and document.
    """
    tokens = np.asarray(corpus.rows.tokens)
    batch_rows = max(1, batch_tokens // tokens.shape[1])
    indexed = np.zeros(corpus.ordinal_of.shape, dtype=bool)
    indexed[corpus.ordinal_of >= 0] = corpus.is_indexed
    for number, chosen in wanted.items():
        rows = slice(number * batch_rows, (number + 1) * batch_rows)
        is_token, counted = corpus.ordinal_of[rows] >= 0, indexed[rows]
        ordinals = corpus.ordinal_of[rows][counted]
        sites = list(dict.fromkeys(site for place in chosen for site in saes[place].sites))
        codes: dict[int, Codes] = {}
        with torch.no_grad():
            captured = capture_tokens(lm, tokens[rows], is_token, counted, sites)
            for site, x in captured.items():
                _check_finite(x, site, ordinals, corpus)
            for place in chosen:
                sae = saes[place]
                device = next(sae.parameters()).device
                found = wiring.encode_sites(sae, {site: captured[site].to(device) for site in sae.sites})
                codes[place] = Codes(found.indices.cpu().numpy(), found.values.float().cpu().numpy())
        yield number, codes, ordinals, int(is_token.sum())


def _check_finite(x: torch.Tensor, site: str, ordinals: np.ndarray, corpus: Corpus) -> None:
    # a sum is finite unless an entry is not (or it overflows, which the second look tells apart)
    if not torch.isfinite(x.float().sum()):
        bad = (~torch.isfinite(x)).any(1).nonzero()
        if len(bad):
            ordinal = int(ordinals[int(bad[0])])
            raise ValueError(
                f"activations at {site} are not finite at position {corpus.positions[ordinal]} of document "
                f"{corpus.rows.names[corpus.documents[ordinal]]!r}: expected finite numbers; check the model's weights "
                "or load it with dtype=float32"
            )


def build_index(
    sae: Any,
    lm: Any,
    rows: Any,
    out: str | Path,
    config: IndexConfig | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    exclude_special_tokens: bool = True,
    name: str | None = None,
    on_exists: Literal["resume", "error", "replace"] = "resume",
    other_model: bool = False,
) -> Dictionary:
    """Builds the dictionary of `sae` over `rows` (TokenRows) in the folder `out` and returns it opened.

    `build_indexes` with one SAE; see there.
    """
    return build_indexes(
        [sae],
        lm,
        rows,
        [out],
        config,
        data=data,
        exclude_special_tokens=exclude_special_tokens,
        names=None if name is None else [name],
        on_exists=on_exists,
        other_model=other_model,
    )[0]


def build_indexes(
    saes: Sequence[Any],
    lm: Any,
    rows: Any,
    outs: Sequence[str | Path],
    config: IndexConfig | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    exclude_special_tokens: bool = True,
    names: Sequence[str] | None = None,
    on_exists: Literal["resume", "error", "replace"] = "resume",
    other_model: bool = False,
) -> list[Dictionary]:
    """Builds the dictionaries of many SAEs over `rows` (TokenRows) in one pass, and returns them opened.

    SAEs of any kinds and widths at any sites of one model; the dictionary of each goes into the folder of `outs` in its
    place, and is the one that it would be alone. With `on_exists="resume"` a killed build goes on, of each SAE with the
    batches that it lacks, and a finished one of the same inputs is returned; a folder that holds another dictionary is
    refused unless `on_exists="replace"`. `other_model` admits a model that the SAEs were not trained
    on, to compare the two. `data` is recorded as the source of the text. Of several processes
    (`activations.processes`) each encodes its part of the batches; the first makes the tables.

    Raises:
        ValueError: no SAE, a folder named twice, no tokens, another model or width than an SAE's, activations that are
            not finite.
        FileExistsError: a folder holds a dictionary of other inputs.
        OSError: the disk is full, or will be.
    """
    from features.dictionary import Dictionary

    config = config or IndexConfig()
    started = time.perf_counter()
    folders = [Path(out) for out in outs]
    if not saes or len(saes) != len(folders) or (names is not None and len(names) != len(saes)):
        raise ValueError(
            f"got {len(saes)} SAEs, {len(folders)} folders and {len(saes) if names is None else len(names)} names, "
            "expected one of each for every SAE: pass lists of the same length"
        )
    resolved = [folder.resolve() for folder in folders]
    if doubled := [folder for folder in resolved if resolved.count(folder) > 1]:
        raise ValueError(f"{doubled[0]} is given for two dictionaries, expected a folder for each: name another one")
    for sae in saes:
        _check_sae(sae, lm, other_model)
    special = frozenset(lm.special_ids) if exclude_special_tokens else frozenset()
    corpus = arrange_corpus(rows, special, config.total_tokens)
    facts = {"data": dict(data or {}), "exclude_special_tokens": exclude_special_tokens}
    builds = [
        _Build(sae, lm, corpus, config, folder, facts, names[place] if names else folder.resolve().name)
        for place, (sae, folder) in enumerate(zip(saes, folders, strict=True))
    ]
    open_builds = [build for build in builds if not build.is_finished(on_exists)]
    _check_room(open_builds, corpus, config)
    processes = current()
    try:
        with _tells_full_disk(open_builds):
            processes.on_first(lambda: [build.prepare() for build in open_builds])
            n_batches = -(-len(corpus.ordinal_of) // _batch_rows(corpus, config))
            missing = [build.begin(n_batches, len(open_builds)) for build in open_builds]
            processes.wait()  # all have seen what is missing before one writes
            _fill(open_builds, missing, lm, corpus, config)
            processes.wait()
            encoded = time.perf_counter()
            readout = logit_effects.Readout(lm, corpus, config.batch_tokens)
            for build in open_builds:
                processes.on_first(partial(build.finish, encoded - started, len(open_builds), readout))
    finally:
        for build in open_builds:
            build.release()
    return [Dictionary.open(folder, model=lm) for folder in folders]


@contextmanager
def _tells_full_disk(builds: Sequence[_Build]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC and "No space left" not in str(error):
            raise
        folders = ", ".join(str(build.out) for build in builds)
        raise OSError(
            f"the disk of {folders} is full, expected room for the index: free space and index again, which goes on; "
            "a dictionary that was there before is whole"
        ) from error


def _batch_rows(corpus: Corpus, config: IndexConfig) -> int:
    return max(1, config.batch_tokens // corpus.ordinal_of.shape[1])


def _fill(builds: Sequence[_Build], missing: Sequence[list[int]], lm: Any, corpus: Corpus, config: IndexConfig) -> None:
    """Encodes the missing batches, this process's share of them, and spills their events."""
    needed = sorted({number for numbers in missing for number in numbers})
    mine = needed[current().share(len(needed))]
    lacks = [frozenset(numbers) for numbers in missing]
    wanted = {number: [place for place, numbers in enumerate(lacks) if number in numbers] for number in mine}
    batch_rows = _batch_rows(corpus, config)
    tokens_of = np.add.reduceat((corpus.ordinal_of >= 0).sum(1), np.arange(0, len(corpus.ordinal_of), batch_rows))
    done = corpus.tokens.size - int(tokens_of[needed].sum())
    with progress("index", done + int(tokens_of[mine].sum()), "tokens", done) as advance:
        encoding = encode_events([build.sae for build in builds], lm, corpus, config.batch_tokens, wanted)
        for number, codes, ordinals, n_tokens in encoding:
            for place, (indices, values) in codes.items():
                builds[place].spill.append(number, indices, values, ordinals)
            advance(n_tokens)
    for build in builds:
        build.spill.close()


class _Build:
    """The dictionary of one SAE while it is made."""

    def __init__(
        self, sae: Any, lm: Any, corpus: Corpus, config: IndexConfig, out: Path, facts: Mapping[str, Any], name: str
    ) -> None:
        self.sae, self.lm, self.corpus, self.config, self.out, self.name = sae, lm, corpus, config, out, name
        self.facts = facts
        self._lock: BuildLock | None = None
        self.fingerprint = _fingerprint(sae, lm, corpus, config, bool(facts["exclude_special_tokens"]))
        self.existing = read_manifest(out) if (out / MANIFEST).exists() else None
        self.path = self._free_path()

    def _free_path(self) -> Path:
        """The folder to build in: an unfinished build, or a new one beside those that readers may hold."""
        present = None if self.existing is None else self.existing["build"]
        path, number = self.out / f"build-{self.fingerprint[:12]}", 1
        while path.name == present or (path.exists() and not (path / SPILL).exists()):
            number += 1
            path = self.out / f"build-{self.fingerprint[:12]}-{number}"
        return path

    def is_finished(self, on_exists: str) -> bool:
        """Whether the folder holds this very dictionary and may keep it.

        Raises:
            FileExistsError: it holds something else.
        """
        if self.existing is not None and on_exists != "replace":
            if self.existing["fingerprint"] == self.fingerprint and on_exists == "resume":
                return True
            raise FileExistsError(
                f"{self.out} already holds a dictionary ({self.existing['name']}, {self.existing['n_tokens']} tokens), "
                "expected a free folder: choose another one, or replace it"
            )
        if self.existing is None and self.out.is_dir():
            foreign = [path.name for path in self.out.iterdir() if not _is_ours(path.name)]
            if foreign:
                raise FileExistsError(
                    f"{self.out} holds other files ({foreign[0]}), expected a free folder: choose another one"
                )
        return False

    def prepare(self) -> None:
        """Makes the folder of the events, and keeps other builders out of it.

        Raises:
            FileExistsError: another process builds the same dictionary there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = BuildLock(self.path)
        if not self._lock.take(alone=True, wait=False):
            raise FileExistsError(
                f"{self.path} is being built by another process, expected one at a time: wait for it, or end it"
            )
        EventSpill.prepare(self.path / SPILL)

    def release(self) -> None:
        """Lets others at the folder."""
        if self._lock is not None:
            self._lock.release()

    def begin(self, n_batches: int, builds: int) -> list[int]:
        """Opens the folder of the events, and returns the batches that it lacks; all builds share one buffer's room."""
        self.spill = EventSpill(self.path / SPILL, self.sae.W_dec.shape[0])
        self.spill.chunk_events = max(self.spill.chunk_events // builds, 1)
        return self.spill.missing(n_batches)

    def finish(self, encoding_s: float, builds: int, readout: logit_effects.Readout) -> None:
        """Writes the tables, and then the manifest that makes them count."""
        began = time.perf_counter()
        self.spill.read_again()
        facts = self._write_tables(readout)
        manifest = {
            "format": FORMAT,
            "build": self.path.name,
            "name": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": self.fingerprint,
            **facts,
            "exclude_special_tokens": self.facts["exclude_special_tokens"],
            "data": self.facts["data"] or dict(self.sae.metadata.get("data") or {}),
            "index": dataclasses.asdict(self.config),
            "seconds": {
                "forward_and_encode": round(encoding_s, 2),
                "tables": round(time.perf_counter() - began, 2),
                "dictionaries_in_one_pass": builds,
            },
            "files": describe_files(self.path),
        }
        write_json(self.out / MANIFEST, manifest)
        self.spill.remove()
        self.release()
        # an unfinished build may be gone on with, and has its spill still
        for other in self.out.glob("build-*"):
            if other != self.path and not (other / SPILL).exists():
                remove_build(other)

    def _write_tables(self, readout: logit_effects.Readout) -> dict[str, Any]:
        """Writes everything that the dictionary holds and returns what its manifest says of it."""
        sae, lm, corpus, config, spill = self.sae, self.lm, self.corpus, self.config, self.spill
        keeps_all = config.events == "all" and spill.n_events <= config.event_limit
        norms = sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
        with progress("tables", spill.n_events, "events") as advance:
            found = write_event_tables(
                self.path, spill, corpus, config, norms, int(lm.vocab_size), advance, keeps_all=keeps_all
            )
        if keeps_all:
            write_text_events(self.path, spill, corpus.tokens.size)
        write_corpus_tables(self.path, corpus, lm)
        write_table(self.path, "neighbours", geometry.neighbours(sae.W_dec, config.neighbours), FEATURE_ROW_GROUP)
        # a neuron reads itself: no two of them read alike
        reads_itself = sae.metadata.get("basis") is not None
        read_alike = geometry.neighbours(sae.W_enc, 0 if reads_itself else config.neighbours)
        write_table(self.path, "encoder_neighbours", read_alike, FEATURE_ROW_GROUP)
        for table, rows in logit_effects.tables(sae, readout, config.logits).items():
            write_table(self.path, table, rows, FEATURE_ROW_GROUP)
        write_pages(self.path, len(norms), PAGE_TABLES)
        sae.save(str(self.path / "sae"), format="saelens")
        return {
            "n_features": int(sae.W_dec.shape[0]),
            "n_live": found.live,
            "n_tokens": int(corpus.tokens.size),
            "n_indexed_tokens": corpus.n_indexed,
            "n_documents": int(np.unique(corpus.documents).size),
            "n_events": found.events,
            "events": "all" if keeps_all else "examples",
            "n_kept_events": found.kept_events,
            "coactivation_tokens": coactivation.sample_size(corpus.n_indexed, found.events, config.coactivation_tokens),
            "context_tokens": int(corpus.ordinal_of.shape[1]),
            "site": sae.sites[0],
            "sites": sae.sites,
            "target_sites": sae.target_sites,
            "sae": {"d_in": int(sae.config.d_in), "d_sae": int(sae.W_dec.shape[0]), **_sae_facts(sae)},
            "model": _model_facts(lm),
        }


def _check_sae(sae: Any, lm: Any, other_model: bool) -> None:
    """ValueError unless the SAE is a finished one that reads sites of this very model."""
    if sae.metadata.get("basis") is None:
        stored_name(sae.config)  # it is stored at the end: hours later
    if not (sae.metadata.get("site") or sae.metadata.get("sites")):
        raise ValueError("the SAE names no site, expected metadata['site'] such as 'resid_post.1': set it and save")
    d_in = sae.config.d_in
    for site in sae.sites:
        if not lm.has_site(site):
            raise ValueError(
                f"the SAE reads {site}, which model {lm.name} does not have: index with the SAE's own model"
            )
        if (width := lm.site_width(site)) != d_in:
            raise ValueError(
                f"the SAE has d_in={d_in}, model {lm.name} has width {width} at {site}: use the SAE's model"
            )
    recorded = sae.metadata.get("model_weight_hash")
    if recorded and recorded != lm.weight_hash() and not other_model:
        raise ValueError(
            f"model {lm.name} has weight hash {lm.weight_hash()[:12]}, the SAE was trained on {recorded[:12]} "
            f"({sae.metadata.get('model_name')}): index with the SAE's own model"
        )


def lasting_name(name: str) -> str:
    """A model's or data source's name that also holds in another working directory: folders become absolute paths."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _is_ours(name: str) -> bool:
    return name.startswith("build-") or name.startswith("labels.duckdb") or name.endswith(".partial")


def _sae_facts(sae: Any) -> dict[str, Any]:
    config = sae.config
    return {
        "architecture": str(sae.metadata.get("basis") or getattr(config, "architecture", "")),
        "k": getattr(config, "k", None),
        "name": sae.metadata.get("name"),
        "n_sites": int(getattr(config, "n_sites", 1)),
    }


def _model_facts(lm: Any) -> dict[str, Any]:
    return {"name": lasting_name(str(lm.name)), "revision": lm.revision, "weight_hash": lm.weight_hash()}


def _fingerprint(sae: Any, lm: Any, corpus: Corpus, config: IndexConfig, exclude_special_tokens: bool) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(lm.weight_hash().encode())
    for part in (corpus.rows.tokens, corpus.rows.documents, corpus.rows.positions):
        digest.update(np.ascontiguousarray(part).tobytes())
    if getattr(corpus.rows, "kept", None) is not None:
        digest.update(np.packbits(corpus.is_indexed).tobytes())
    digest.update("\0".join(corpus.rows.names).encode("utf-8", "surrogatepass"))
    how = sae.config
    encoding = [how.architecture, how.k, how.activation, how.subtracts_b_dec, how.normalize_activations]
    digest.update(json.dumps([encoding, sae.sites, sae.target_sites]).encode())
    settings = dataclasses.asdict(config) | {"exclude_special_tokens": exclude_special_tokens, "format": FORMAT}
    if settings["events"] == "all":
        del settings["events"]  # so that dictionaries from before there was a choice are still those of their inputs
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _check_room(builds: Sequence[_Build], corpus: Corpus, config: IndexConfig) -> None:
    """OSError where the disk cannot hold what is expected, before hours are spent."""
    needed: dict[Path, int] = {}
    for build in builds:
        events = corpus.n_indexed * int(getattr(build.sae.config, "k", None) or 0)
        keeps_all = config.events == "all" and events <= config.event_limit
        folder = build.out
        while not folder.exists():
            folder = folder.parent
        per_event = SPILL_BYTES_PER_EVENT + (STORED_BYTES_PER_EVENT if keeps_all else 0)
        needed[folder] = needed.get(folder, 0) + events * per_event
    for folder, expected in needed.items():
        free = shutil.disk_usage(folder).free
        if expected > free:
            raise OSError(
                f"{folder} has {free / 1e9:.1f} GB free, the index needs about {expected / 1e9:.1f} GB: free space, or "
                "index fewer tokens with index.total_tokens"
            )

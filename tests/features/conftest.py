"""A small dictionary over a tiny random model: the material of the tests of `features`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features import Dictionary, IndexConfig, build_index
from sae import SAE, SAEConfig

SITE = "resid_post.1"
CONTEXT_TOKENS = 48


@dataclass(frozen=True)
class Rows:
    """TokenRows as the index reads them."""

    tokens: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    names: list[str]


def texts() -> dict[str, str]:
    generator = np.random.default_rng(0)
    words = ["import", "return", "self", "value", "12", "x_1", "(a, b)", "<img src=x onerror=alert(1)>", "None"]
    found = {}
    for number in range(14):
        lines = [" ".join(generator.choice(words, size=generator.integers(1, 6))) for _ in range(6)]
        found[f"folder/file_{number}.py"] = "\n".join(f"{'    ' * (i % 2)}{line}" for i, line in enumerate(lines))
    return found


def pack(lm: Any, documents: dict[str, str], context_tokens: int = CONTEXT_TOKENS) -> Rows:
    """Packs documents into rows, a BOS before each, padding after the last."""
    ids, owner, place = [], [], []
    for index, text in enumerate(documents.values()):
        row = [1, *lm.tokenize(text).tokens[0].tolist()]
        ids += row
        owner += [index] * len(row)
        place += list(range(len(row)))
    short = -len(ids) % context_tokens
    shape = (-1, context_tokens)
    return Rows(
        np.array(ids + [0] * short, dtype=np.int32).reshape(shape),
        np.array(owner + [-1] * short, dtype=np.int32).reshape(shape),
        np.array(place + [0] * short, dtype=np.int32).reshape(shape),
        list(documents),
    )


def random_sae(lm: Any, rows: Rows, d_sae: int = 96, k: int = 6) -> SAE:
    """A TopK SAE whose latents are random directions; the last four never fire."""
    sae = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=d_sae, k=k))
    generator = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(d_sae, 32, generator=generator), dim=1)
    with torch.no_grad():
        sae.W_enc.copy_(directions)
        sae.W_dec.copy_(directions)
        sae.b_enc[-4:] = -1e6
    sae.metadata.update(
        site=SITE, model_name=lm.name, model_revision=None, model_weight_hash=lm.weight_hash(), name="tiny"
    )
    return sae


@pytest.fixture(scope="session")
def rows(tiny_lm: Any) -> Rows:
    return pack(tiny_lm, texts())


@pytest.fixture(scope="session")
def tiny_sae(tiny_lm: Any, rows: Rows) -> SAE:
    return random_sae(tiny_lm, rows)


def tiny_config() -> IndexConfig:
    return IndexConfig(
        batch_tokens=4 * CONTEXT_TOKENS,
        examples=6,
        per_document=2,
        window_tokens=8,
        strata=3,
        stratum_examples=2,
        neighbours=5,
        logits=4,
        seed=7,
    )


@pytest.fixture(scope="session")
def config() -> IndexConfig:
    return tiny_config()


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory, tiny_lm: Any, tiny_sae: SAE, rows: Rows, config: IndexConfig
) -> Path:
    """The folder of a finished dictionary; treat it as read-only."""
    out = tmp_path_factory.mktemp("dictionary") / "tiny"
    build_index(tiny_sae, tiny_lm, rows, out, config).close()
    return out


@pytest.fixture
def dictionary(built: Path, tiny_lm: Any) -> Iterator[Dictionary]:
    opened = Dictionary.open(built, model=tiny_lm)
    yield opened
    opened.close()


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of the finished dictionary that a test may change."""
    import shutil

    return Path(shutil.copytree(built, tmp_path / "copy"))

"""Two dictionaries compared: what was planted is found, and nothing is found where nothing is."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted_dictionaries import indexed_tokens, write_planted

from features import Dictionary
from features.comparison import BY_DIRECTIONS, BY_INDEX, CompareConfig, compare
from features.comparison_records import Comparison
from features.paired_events import LEAST_TOGETHER, OF_OTHER, OF_OWN, given_pairs, pairs_together
from features.shared_text import SharedEvents
from features.shifts import discoveries
from sae.geometry import unit_rows

N, WIDTH, COPIED, PARTS = 96, 32, 40, 5
WHOLE, GENERAL, SPECIFIC, ALONE = 40, 41, 42, 43
rng = np.random.default_rng(0)


def opened(*folders: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        found = [Dictionary.open(folder) for folder in folders]
        for each in found:
            stack.callback(each.close)
        yield found


def directions(seed: int) -> torch.Tensor:
    return unit_rows(torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(seed)))


def some(tokens: np.ndarray, n: int) -> np.ndarray:
    return rng.choice(tokens, n, replace=False)


@pytest.fixture(scope="module")
def planted(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """Two dictionaries: `COPIED` features under other numbers, a split, an absorption, and one that only A has."""
    folder = tmp_path_factory.mktemp("planted")
    tokens = indexed_tokens(built)
    first = directions(1)
    events = {feature: some(tokens, 50) for feature in range(COPIED)}
    events |= {WHOLE: some(tokens, 90), GENERAL: some(tokens, 90), ALONE: some(tokens, 60)}
    events[SPECIFIC] = events[GENERAL][:25]
    order = rng.permutation(N)
    second = directions(2)
    noise = 0.05 * torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(3))
    theirs: dict[int, np.ndarray] = {}
    for feature in [*range(COPIED), SPECIFIC]:
        second[order[feature]] = first[feature] + noise[feature]
        theirs[int(order[feature])] = np.concatenate([events[feature][2:], some(tokens, 2)])
    theirs[int(order[SPECIFIC])] = events[SPECIFIC]
    second[order[SPECIFIC]] = first[SPECIFIC] + 0.5 * first[GENERAL]
    second[order[GENERAL]] = first[GENERAL] + noise[GENERAL]
    theirs[int(order[GENERAL])] = events[GENERAL][25:]
    spread = torch.randn(WIDTH, PARTS + 1, generator=torch.Generator().manual_seed(4))
    spread[:, 0] = first[WHOLE]
    away = torch.linalg.qr(spread)[0].T[1:]
    for part in range(PARTS):
        second[order[50 + part]] = first[WHOLE] + 1.3 * away[part]
        theirs[int(order[50 + part])] = events[WHOLE][18 * part : 18 * part + 17]
    a = write_planted(built, folder / "a", events, first)
    b = write_planted(built, folder / "b", theirs, unit_rows(second))
    return a, b, order


@pytest.fixture(scope="module")
def found(planted: tuple[Path, Path, np.ndarray]) -> Iterator[Comparison]:
    a, b, _ = planted
    for left, right in opened(a, b):
        left.add_label(0, "<script>alert(1)</script>; drop table labels", "me")
        yield compare(left, right)


def test_copies_are_matched_under_their_other_numbers(
    found: Comparison, planted: tuple[Path, Path, np.ndarray]
) -> None:
    order = planted[2]
    pairs = {match.a: match for match in found.matched}
    assert set(range(COPIED)) <= set(pairs)
    assert all(match.b == order[match.a] for match in found.matched)
    assert all(match.correlation > 0.8 and match.cosine > 0.9 for a, match in pairs.items() if a < COPIED)  # pyright: ignore
    one = pairs[0]
    assert one.jaccard == pytest.approx(48 / 52, abs=0.05)
    assert one.explanation_a == "<script>alert(1)</script>; drop table labels"
    assert found.stability is not None
    assert found.stability["matched"] == len([f for f in pairs if f < COPIED]) + 4


def test_the_split_is_found_with_its_parts(found: Comparison, planted: tuple[Path, Path, np.ndarray]) -> None:
    (split,) = found.splits
    assert (split.side, split.feature) == ("a", WHOLE)
    assert {part.feature for part in split.parts} == {int(planted[2][50 + part]) for part in range(PARTS)}
    assert split.coverage == pytest.approx(85 / 90)
    assert all(part.precision == 1 and part.recall == pytest.approx(17 / 90) for part in split.parts)
    assert split.in_span is not None
    assert split.in_span > 0.7
    assert len(split.examples) == PARTS
    for example, part in zip(split.examples, split.parts, strict=True):
        assert example.activations[f"a:{WHOLE}"][example.center] > 0
        assert example.activations[f"b:{part.feature}"][example.center] > 0


def test_the_absorption_is_found_and_shown(found: Comparison, planted: tuple[Path, Path, np.ndarray]) -> None:
    order = planted[2]
    (absorbed,) = found.absorptions
    assert (absorbed.side, absorbed.feature, absorbed.counterpart, absorbed.absorber) == (
        "a",
        GENERAL,
        order[GENERAL],
        order[SPECIFIC],
    )
    assert (absorbed.events, absorbed.silent, absorbed.active_elsewhere) == (25, 1.0, 1.0)
    assert absorbed.recall == pytest.approx(25 / 90)
    assert absorbed.absorber_cosine is not None
    assert absorbed.absorber_cosine > 0.3
    there, elsewhere = absorbed.examples
    assert there.activations[f"a:{GENERAL}"][there.center] > 0
    assert there.activations[f"b:{order[GENERAL]}"][there.center] == 0
    assert there.activations[f"b:{order[SPECIFIC]}"][there.center] > 0
    assert elsewhere.activations[f"b:{order[GENERAL]}"][elsewhere.center] > 0


def test_what_only_one_has_is_listed_with_its_weight(found: Comparison) -> None:
    alone = {entry.feature: entry for entry in found.unique if entry.side == "a"}
    assert ALONE in alone
    # the whole feature has no partner of its own, but the other dictionary covers it in pieces
    assert alone[WHOLE].covered is not None
    assert alone[WHOLE].covered > 0.9
    assert alone[ALONE].covered == 0
    assert found.a.unique == len(alone)
    assert found.a.unique_share == pytest.approx(sum(entry.share for entry in alone.values()))
    assert 0 < alone[ALONE].share < 0.1
    assert alone[ALONE].examples[0].activations[f"a:{ALONE}"][alone[ALONE].examples[0].center] > 0


def test_the_answer_is_records_and_json(found: Comparison) -> None:
    rows = found.rows()
    assert {row["kind"] for row in rows} == {"match", "unique", "split", "absorption"}
    content = json.loads(found.to_json())
    assert content["summary"][1] == {"figure": "matched", "a": len(found.matched), "b": len(found.matched)}
    assert content["splits"][0]["examples"][0]["tokens"]


def test_the_page_and_the_tables_show_hostile_text_as_text(found: Comparison, tmp_path: Path) -> None:
    from rich.console import Console

    from ui.render.comparison import comparison_tables, write_comparison_report

    page = write_comparison_report(found, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;; drop table labels" in page
    assert "<script>" not in page
    assert "<img src=x" not in page  # the corpus carries it
    for heading in ("Matched", "Only in a", "Splits", "Absorptions"):
        assert heading in page
    assert json.loads((tmp_path / "deep" / "report.json").read_text())["absorptions"]
    console = Console(width=160, record=True, file=io.StringIO())
    for table in comparison_tables(found):
        console.print(table)
    assert "Absorbed in the other" in console.export_text()


def test_the_other_way_round_says_the_same(planted: tuple[Path, Path, np.ndarray], found: Comparison) -> None:
    for right, left in opened(planted[1], planted[0]):
        turned = compare(right, left)
    assert {(m.a, m.b) for m in found.matched} == {(m.b, m.a) for m in turned.matched}
    assert [split.feature for split in turned.splits] == [WHOLE]
    assert turned.splits[0].side == turned.absorptions[0].side == "b"


def test_random_dictionaries_have_nothing_in_common(built: Path, tmp_path: Path) -> None:
    tokens = indexed_tokens(built)
    folders = [
        write_planted(built, tmp_path / name, {f: some(tokens, int(rng.integers(5, 200))) for f in range(N)}, vectors)
        for name, vectors in (("a", directions(11)), ("b", directions(12)))
    ]
    for left, right in opened(*folders):
        result = compare(left, right)
    assert (result.matched, result.splits, result.absorptions) == ([], [], [])
    assert result.a.unique == result.b.unique == N


def test_the_same_direction_with_other_events_is_no_match(built: Path, tmp_path: Path) -> None:
    tokens = indexed_tokens(built)
    folders = [
        write_planted(built, tmp_path / name, {f: some(tokens, 60) for f in range(N)}, directions(1)) for name in "ab"
    ]
    for left, right in opened(*folders):
        assert compare(left, right).matched == []
        # nor is anything unique: the direction is there
        assert compare(left, right).unique == []


def test_dictionaries_without_common_text_are_compared_by_directions(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = indexed_tokens(built)
    folders = [
        write_planted(built, tmp_path / name, {f: some(tokens, 60) for f in range(N)}, directions(1)) for name in "ab"
    ]
    for left, right in opened(*folders):
        names = [f"other {name}" for name in right.text.documents.names]
        monkeypatch.setitem(right.text.__dict__, "documents", right.text.documents._replace(names=names))
        result = compare(left, right, CompareConfig(examples=2))
        assert result.by == BY_DIRECTIONS
        assert len(result.matched) == N
        assert result.matched[0].correlation is None
        assert result.matched[0].examples[0].tokens
        assert any("No text" in note for note in result.notes)


def test_one_sae_over_two_models_tells_what_changed(built: Path, tmp_path: Path) -> None:
    tokens = indexed_tokens(built)
    events = {feature: some(tokens, 80) for feature in range(N)}
    tuned = dict(events)
    tuned[5] = np.union1d(events[5], some(tokens, 300))
    stronger = {7: np.full(80, 6.0)}
    a = write_planted(built, tmp_path / "a", events, directions(1))
    b = write_planted(built, tmp_path / "b", tuned, directions(1), stronger, weight_hash="other")
    for left, right in opened(a, b):
        result = compare(left, right)
        assert result.by == BY_INDEX
        assert result.unique == []
    changed = {match.a: match.shift for match in result.matched if match.shift and match.shift.is_change}
    assert set(changed) == {5, 7}
    assert {match.a for match in result.matched[:2]} == {5, 7}
    assert changed[5].density_low > 0
    assert changed[7].density == 0
    assert changed[7].mean_low > 0
    grown = (len(tuned[5]) - 80) / len(tokens)
    assert changed[5].density == pytest.approx(grown)


def test_models_of_other_vocabularies_are_refused(built: Path, tmp_path: Path, monkeypatch: Any) -> None:
    other = write_planted(built, tmp_path / "b", {}, directions(1), weight_hash="other")
    for left, right in opened(built, other):
        monkeypatch.setitem(right.text.__dict__, "vocabulary", ["x"])
        with pytest.raises(ValueError, match="whose vocabularies differ, expected models that share a tokenizer"):
            compare(left, right)


def random_events(n_features: int, n_tokens: int, seed: int) -> SharedEvents:
    generator = np.random.default_rng(seed)
    dense = generator.random((n_features, n_tokens)) * (generator.random((n_features, n_tokens)) < 0.1)
    feature, token = np.nonzero(dense)
    starts = np.searchsorted(feature, np.arange(n_features + 1)).astype(np.int64)
    return SharedEvents(starts, token.astype(np.int32), dense[feature, token].astype(np.float32), n_tokens)


def dense(events: SharedEvents) -> np.ndarray:
    found = np.zeros((events.n_features, events.n_tokens))
    found[np.repeat(np.arange(events.n_features), events.counts), events.tokens] = events.values
    return found


def test_pairs_are_those_of_the_dense_matrices() -> None:
    a, b = random_events(20, 400, 0), random_events(30, 400, 1)
    left, right = dense(a), dense(b)
    both = (left > 0).astype(int) @ (right > 0).astype(int).T
    union = (left > 0).sum(1)[:, None] + (right > 0).sum(1) - both
    correlation = np.corrcoef(np.vstack([left, right]))[:20, 20:]
    enough = (both >= OF_OWN * (left > 0).sum(1)[:, None]) | (both >= OF_OTHER * (right > 0).sum(1))
    table = pairs_together(a, b)
    assert set(zip(table.own.tolist(), table.other.tolist(), strict=True)) == set(
        zip(*(part.tolist() for part in np.nonzero((both >= LEAST_TOGETHER) & enough)), strict=True)
    )
    every = given_pairs(a, b, *(part.reshape(-1) for part in np.indices((20, 30))))
    assert np.array_equal(every.both.reshape(20, 30), both)
    assert np.allclose(every.jaccard.reshape(20, 30), both / union)
    assert np.allclose(every.correlation.reshape(20, 30), correlation)


def test_false_discoveries_stay_few() -> None:
    null = np.random.default_rng(0).normal(size=(4000, 2))
    assert discoveries(null, np.ones((4000, 2))).sum() <= 2
    null[:200, 0] += 6
    found = discoveries(null, np.ones((4000, 2)))
    assert found[:200, 0].mean() > 0.95
    assert found[200:].sum() + found[:200, 1].sum() < 0.1 * found.sum()


def test_dictionaries_without_all_events_are_refused(planted: tuple[Path, Path, np.ndarray], monkeypatch: Any) -> None:
    for left, right in opened(*planted[:2]):
        monkeypatch.setitem(right.store.info, "events", "examples")
        monkeypatch.setitem(right.store.info, "n_kept_events", 1)
        monkeypatch.setitem(right.store.info, "n_events", 2)
        with pytest.raises(ValueError, match="comparing by events needs all"):
            compare(left, right)

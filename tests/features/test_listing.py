"""Lists of features by conditions, against the same questions in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from features import Dictionary
from features import labels as people
from features.listing import FeatureFilter

SHOWN = """
    select feature, text, score from (
        select feature, text, score, row_number() over (
            partition by feature order by is_label desc, written desc, position desc, score desc nulls last
        ) as place from (
            select feature, text, null::double as score, true as is_label, created as written, rowid as position
            from labels
            union all select feature, text, score, false, '', 0 from explanations
        )
    ) where place = 1
"""


@pytest.fixture
def labelled(copied: Path) -> Iterator[Dictionary]:
    """Explanations of two methods, some without a score, labels on top, a list."""
    opened = Dictionary.open(copied)
    rows = [
        {"feature": feature, "method": method, "text": f"{method} {feature}", "score": score(feature), "author": "m"}
        for method, score in (("first", lambda f: f / 100), ("second", lambda f: None if f % 3 else 0.5))
        for feature in range(5, 60)
    ]
    table = people.table("explanations", [row | {"created": "2026-01-01"} for row in rows])
    opened.store.write_labels("explanations", table)
    for feature, text in ((6, "a label"), (6, "the second label"), (70, "%_( odd")):
        opened.add_label(feature, text, "tester")
    opened.add_to_list("kept", [3, 6, 70])
    yield opened
    opened.close()


def test_the_text_shown_is_the_newest_label_then_the_best_explanation(labelled: Dictionary) -> None:
    expected = {row["feature"]: row["text"] for row in labelled.store.query(SHOWN).to_pylist()}
    assert labelled.listing.texts(range(labelled.n_features)) == {f: text for f, text in expected.items() if text}


@pytest.mark.parametrize(
    ("only", "where"),
    [
        (FeatureFilter(), "true"),
        (FeatureFilter(show="live"), "not is_dead"),
        (FeatureFilter(show="dead"), "is_dead"),
        (FeatureFilter(show="dense"), "density >= 0.1"),
        (FeatureFilter(least_density=0.01, most_density=0.1), "density between 0.01 and 0.1"),
        (FeatureFilter(has_label=True), "feature in (select feature from labels)"),
        (FeatureFilter(least_score=0.3), "score >= 0.3"),
        (FeatureFilter(words="SECOND"), "contains(lower(text), 'second')"),
        (FeatureFilter(words="%_("), "contains(lower(text), '%_(')"),
        (FeatureFilter(on_list="kept"), "feature in (select feature from lists where list = 'kept')"),
        (FeatureFilter(on_list="'; drop table lists; --"), "false"),
        (FeatureFilter(cluster=3), "false"),
    ],
)
def test_a_condition_chooses_what_sql_chooses(labelled: Dictionary, only: FeatureFilter, where: str) -> None:
    query = f"select feature from features left join ({SHOWN}) using (feature) where {where} order by feature"
    expected = labelled.store.query(query)["feature"].to_pylist()
    page = labelled.listing.page("feature", only, limit=10_000)
    assert [row["feature"] for row in page.features] == expected
    assert page.total == len(expected)


@pytest.mark.parametrize(
    ("order", "by"),
    [
        ("density", "density desc"),
        ("rare", "density"),
        ("max_activation", "max_activation desc"),
        ("mean_activation", "mean_activation desc"),
        ("score", "score desc nulls last"),
    ],
)
def test_an_order_is_that_of_sql(labelled: Dictionary, order: str, by: str) -> None:
    query = f"select feature from features left join ({SHOWN}) using (feature) order by {by}, feature limit 7 offset 5"
    expected = labelled.store.query(query)["feature"].to_pylist()
    found = labelled.listing.page(order, limit=7, offset=5).features
    assert [row["feature"] for row in found] == expected


def test_what_was_found_keeps_its_order_and_is_filtered(labelled: Dictionary) -> None:
    live = [int(feature) for feature in labelled.listing.live[:4]]
    page = labelled.listing.page(None, FeatureFilter(show="live"), among=live[::-1])
    assert [row["feature"] for row in page.features] == live[::-1]


def test_chance_shows_each_feature_once(labelled: Dictionary) -> None:
    rows = labelled.listing.page("random", limit=10_000).features
    assert sorted(row["feature"] for row in rows) == list(range(labelled.n_features))


def test_beside_a_feature_stand_the_nearest_live_ones(labelled: Dictionary) -> None:
    live = [int(feature) for feature in labelled.listing.live]
    assert labelled.listing.beside(live[1]) == (live[0], live[2])
    assert labelled.listing.beside(live[0]) == (live[-1], live[1])
    for dead in set(range(labelled.n_features)) - set(live):
        before, after = labelled.listing.beside(dead)
        assert before in live
        assert after in live


def test_a_new_label_is_seen_at_once(labelled: Dictionary) -> None:
    labelled.add_label(9, "just now", "tester")
    assert labelled.listing.texts([9]) == {9: "just now"}
    labelled.remove_labels(9, "tester")
    assert labelled.listing.texts([9]) != {9: "just now"}


def test_wrong_questions_are_refused(labelled: Dictionary) -> None:
    with pytest.raises(ValueError, match="order 'size' is unknown"):
        labelled.listing.page("size")
    with pytest.raises(ValueError, match="show 'some' is unknown"):
        FeatureFilter(show="some")
    with pytest.raises(ValueError, match="expected 0 or more"):
        labelled.listing.page("feature", limit=-1)

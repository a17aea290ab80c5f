"""Steering written down: specs come back as they were, and what is not understood is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from features import Dictionary, Steering, SteeringSpec
from features.side_by_side import parting, steering_cost, written_side_by_side
from features.steering_norms import written_norms
from features.steering_spec import (
    read_positions,
    read_strengths,
    written_positions,
    written_strengths,
)
from features.steering_sweep import read_factors, sweep_points

SITE = "resid_post.1"
PROMPT = "import self"


@pytest.fixture
def live(dictionary: Dictionary) -> list[int]:
    return [row["feature"] for row in dictionary.features(limit=3).features]


def test_a_spec_comes_back_from_its_file_and_writes_the_same_text(dictionary: Dictionary, live: list[int]) -> None:
    steering = Steering(
        dictionary,
        {live[0]: 30.0, live[1]: -0.5},
        "min_clamp",
        when={live[2]: 0.0},
        positions=slice(1, None),
        phase="prompt",
        keeps_norm=True,
    )
    spec = steering.to_spec(prompt=PROMPT, max_new_tokens=7, temperature=0.7, top_p=0.9, seed=5, samples=2)
    again = SteeringSpec.from_json(spec.to_json())
    assert again == spec
    rebuilt = Steering.from_spec(dictionary, again)
    assert rebuilt.to_spec(prompt=PROMPT, max_new_tokens=7, temperature=0.7, top_p=0.9, seed=5, samples=2) == spec
    options = again.decoding(1)
    assert options["seed"] == 6
    assert rebuilt.generate(PROMPT, **options) == steering.generate(
        PROMPT, max_new_tokens=7, do_sample=True, temperature=0.7, top_p=0.9, seed=6
    )


def test_hostile_prompts_stay_text_in_a_spec(dictionary: Dictionary, live: list[int]) -> None:
    for prompt in ("<script>alert(1)</script>", "';drop table labels;--", 'a "quote" \\', "nul \x00", "lone \ud800"):
        spec = Steering(dictionary, {live[0]: 1.0}).to_spec(prompt=prompt)
        kept = spec.to_json().encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
        assert SteeringSpec.from_json(kept).prompt == prompt


def test_a_spec_of_another_dictionary_is_refused(dictionary: Dictionary, live: list[int]) -> None:
    spec = Steering(dictionary, {live[0]: 1.0}).to_spec()
    assert spec.fingerprint == dictionary.info["fingerprint"]
    with pytest.raises(ValueError, match="its numbers mean other features: open that dictionary"):
        Steering.from_spec(dictionary, replace(spec, fingerprint="0" * 64))
    Steering.from_spec(dictionary, replace(spec, fingerprint=""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 2}, r"no 'strength', expected a key that is known: remove it"),
        ({"promt": "a"}, "did you mean prompt"),
        ({"features": {}}, "has no features"),
        ({"features": {"a": 1}}, "names 'a', expected the number of a feature"),
        ({"features": {"1": "much"}}, "expected a finite number"),
        ({"features": {"1": float("nan")}}, "expected a finite number"),
        ({"features": [1]}, "expected an object"),
        ({"features": {str(n): 1 for n in range(65)}}, "expected at most 64"),
        ({"mode": "shout"}, "mode 'shout' is unknown"),
        ({"phase": []}, "phase .* is unknown"),
        ({"positions": "first"}, "expected numbers with commas or a span"),
        ({"positions": 3}, "expected text"),
        ({"max_new_tokens": 0}, "of at least 1"),
        ({"max_new_tokens": 1.5}, "expected a whole number"),
        ({"temperature": -1}, "expected 0 to 100"),
        ({"top_p": 0}, "expected a share above 0"),
        ({"keeps_norm": 1}, "expected true or false"),
        ({"samples": 2}, "raise the temperature"),
        ({"glassbox_steering": 2}, "another format"),
    ],
)
def test_what_a_spec_does_not_understand_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    said = {"glassbox_steering": 1, "features": {"1": 1.0}} | change
    with pytest.raises(ValueError, match=message) as refusal:
        SteeringSpec.from_json(json.dumps(said))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "{}", '{"features": {"1": 1}}', "[" * 100_000, "x" * 2_000_000])
def test_files_of_another_kind_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        SteeringSpec.from_json(text)
    with pytest.raises(ValueError, match="names a key twice"):
        SteeringSpec.from_json('{"glassbox_steering": 1, "features": {"1": 1, "1": 2}}')


def test_settings_that_a_steering_says_itself_are_not_taken_twice(dictionary: Dictionary, live: list[int]) -> None:
    with pytest.raises(ValueError, match="no setting .mode., expected prompt"):
        Steering(dictionary, {live[0]: 1.0}).to_spec(mode="clamp")


def test_strengths_and_positions_are_written_as_they_are_read() -> None:
    assert read_strengths("3=1, 12=-2.5,") == {3: 1.0, 12: -2.5}
    assert read_strengths("3, 4=0.5", 0.1) == {3: 0.1, 4: 0.5}
    assert read_strengths(written_strengths({3: 0.25, 4: -10.0})) == {3: 0.25, 4: -10.0}
    with pytest.raises(ValueError, match="named twice"):
        read_strengths("3=1,3=2")
    with pytest.raises(ValueError, match="expected ID=NUMBER"):
        read_strengths("3")
    for text in ("", "0,3,-1", "2:10", "-4:", ":3", "::2"):
        assert written_positions(read_positions(text)) == text
    for text in ("a", "1:2:0", "1:2:3:4", "1;2"):
        with pytest.raises(ValueError, match="expected numbers with commas or a span"):
            read_positions(text)
    assert read_factors("0, 0.5,2") == [0, 0.5, 2]
    with pytest.raises(ValueError, match="expected numbers with commas"):
        read_factors("0,,1")


def test_the_norm_of_added_features_is_the_length_of_what_is_written(dictionary: Dictionary, live: list[int]) -> None:
    steering = Steering(dictionary, {live[0]: 2.0, live[1]: -0.5})
    rows = dictionary.typical_rows.rows[SITE]
    written = (steering.edit(rows[None])[0] - rows).norm(dim=1).median() / rows.norm(dim=1).median()
    found = written_norms(steering)
    assert found.together == pytest.approx(float(written), rel=1e-3)
    alone = written_norms(Steering(dictionary, {live[0]: 2.0}))
    assert alone.each[live[0]] == pytest.approx(found.each[live[0]])
    assert alone.together == pytest.approx(alone.each[live[0]])


def test_the_norm_of_other_modes_is_told_where_they_write_most(dictionary: Dictionary, live: list[int]) -> None:
    full = written_norms(Steering(dictionary, {live[0]: 1.0})).together
    assert written_norms(Steering(dictionary, {live[0]: 1.0}, "clamp")).together == pytest.approx(full)
    assert written_norms(Steering(dictionary, {live[0]: 0.0}, "scale")).together == pytest.approx(full)
    assert written_norms(Steering(dictionary, {live[0]: 1.0}, "scale")).together == 0
    rows = dictionary.typical_rows.rows[SITE]
    erasing = Steering(dictionary, dict.fromkeys(live, 0.5), "erase")
    lengths = (erasing.edit(rows[None])[0] - rows).norm(dim=1).median() / rows.norm(dim=1).median()
    assert written_norms(erasing).together == pytest.approx(float(lengths), rel=1e-3)


def test_both_texts_grow_side_by_side_and_each_sample_has_its_seed(dictionary: Dictionary, live: list[int]) -> None:
    steering = Steering(dictionary, {live[0]: 40.0})
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "seed": 3}
    frames = list(written_side_by_side(steering, PROMPT, samples=2, **how))
    last = frames[-1]
    assert not last.is_running
    for sample in (0, 1):
        options = how | {"seed": 3 + sample}
        assert last.steered[sample] == steering.generate(PROMPT, **options)
        assert last.unsteered[sample] == dictionary.lm.generate(PROMPT, **options)
    assert all(frame.is_running for frame in frames[:-1])
    cost = steering_cost(steering, PROMPT, last)
    assert cost.relative_norm == steering.relative_norm(PROMPT)
    assert cost.steered_perplexity is not None
    assert parting("abcd", "abxd") == 2
    assert parting("ab", "abc") == 2


def test_a_stop_ends_both_texts_within_a_token(dictionary: Dictionary, live: list[int]) -> None:
    passes: list[int] = []
    hook = dictionary.lm.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        at: list[int] = []
        frames = written_side_by_side(
            Steering(dictionary, {live[0]: 1.0}), PROMPT, is_stopped=lambda: bool(at), max_new_tokens=40
        )
        frame = None
        for number, frame in enumerate(frames):  # noqa: B007
            if number == 2:
                at.append(len(passes))
        assert frame is not None
        assert frame.is_stopped
        assert not frame.is_running
        assert len(passes) == at[0]
    finally:
        hook.remove()


def test_a_stopped_sweep_keeps_its_finished_points(dictionary: Dictionary, live: list[int]) -> None:
    stopped: list[bool] = []
    found = []
    for point in sweep_points(
        dictionary, {live[0]: 1.0}, [0, 2, 4], [PROMPT], is_stopped=lambda: bool(stopped), max_new_tokens=5
    ):
        found.append(point)
        if len(found) == 2:
            stopped.append(True)
    assert [point.factor for point in found] == [0, 2]


def test_typical_rows_are_those_of_the_indexed_text(dictionary: Dictionary) -> None:
    rows = dictionary.typical_rows.rows[SITE]
    first = dictionary.text.column("token_id", 0, 8)
    lm = dictionary.lm
    ids = torch.from_numpy(first.astype("int64"))[None]
    expected = lm.capture(ids, torch.ones_like(ids, dtype=torch.bool), [SITE])[SITE][0]
    torch.testing.assert_close(rows[:8], expected.float())

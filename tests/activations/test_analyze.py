"""One call runs every analysis that applies, says which do not, and refuses what nobody can run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from families import build, tokenizer

from activations import LanguageModel, analyze
from activations.analyses import attribute, compare_methods, deletion_curve
from activations.analyses.methods import ATTRIBUTIONS, METHODS
from activations.analyses.running import chosen_methods, parsed_settings

TEXT, OTHER = "def f(x):", "def g(y):"


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


@pytest.mark.parametrize("name", ["llama", "bert", "gptj"])
def test_all_that_applies_runs_and_the_rest_is_told(name: str) -> None:
    lm = LanguageModel(build(name), tokenizer())
    found = analyze(lm, TEXT, compare=OTHER)
    assert set(found.results) | set(found.left_out) == {
        name for name, method in METHODS.items() if not method.on_request
    }
    assert set(found.left_out) == ({"direct"} if name == "bert" else set())
    assert set(found.time_s) == set(found.results)
    content = json.loads(found.to_json())
    assert set(content["results"]) == set(found.results)
    for result in found.results.values():
        json.dumps(result.rows(), allow_nan=False)
    assert [row["method"] for row in found.rows()] == list(found.results)
    one = {found.results[each].target for each in ("gradient_norm", "substitution", "ablation")}
    assert one == {found.target}
    assert len(lm.taps) == 0


def test_methods_are_chosen_by_name_and_group(llama: LanguageModel) -> None:
    found = analyze(llama, TEXT, ["lens", "gradient_norm"], target="z")
    assert list(found.results) == ["gradient_norm", "lens"]
    assert found.target == "logit of 'z'"
    assert chosen_methods(["attributions"], None) == list(ATTRIBUTIONS)
    assert "patching" not in chosen_methods(None, None)
    assert list(analyze(llama, TEXT, ["roles"]).results) == ["roles"]


def test_settings_reach_their_method_in_its_type(llama: LanguageModel) -> None:
    asked = parsed_settings(["integrated_gradients.steps=3", "integrated_gradients.baseline=mean", "ablation.how=zero"])
    found = analyze(llama, TEXT, ["integrated_gradients", "ablation"], settings=asked)
    assert found.results["integrated_gradients"].settings == {"baseline": "mean", "steps": 3}
    assert found.results["ablation"].how == "zero"
    assert found.settings == {
        "integrated_gradients": {"steps": 3, "baseline": "mean"},
        "ablation": {"how": "zero"},
    }
    for settings, said in (
        ({"lens": {"top": 3}}, "settings of 'lens' were given, expected of ablation, norms: leave them out"),
        ({"norms": {"x": 3}}, "norms has no setting 'x', expected none: leave it out"),
        ({"ablation": {"hov": 3}}, r"ablation has no setting 'hov' \(nearest: how\), expected how"),
        ({"ablation": {"how": "half"}}, "how='half' is unknown, expected mean, zero"),
    ):
        with pytest.raises(ValueError, match=said):
            analyze(llama, TEXT, ["norms", "ablation"], settings=settings)
    with pytest.raises(ValueError, match="integrated_gradients.steps is 'two', expected a whole number: give one"):
        analyze(llama, TEXT, ["integrated_gradients"], settings={"integrated_gradients": {"steps": "two"}})
    with pytest.raises(ValueError, match="got the setting 'steps=3', expected METHOD.NAME=VALUE"):
        parsed_settings(["steps=3"])


def test_the_words_of_a_text_come_out_as_they_went_in(llama: LanguageModel) -> None:
    text = "<script>';drop\x00"
    found = analyze(llama, text, ["lens", "leave_one_out"])
    assert json.loads(found.to_json())["text"] == text
    with pytest.raises(ValueError, match="half of a surrogate pair at character 1, expected Unicode"):
        analyze(llama, "a\ud800", ["lens"])


def test_what_cannot_be_analysed_is_said_in_one_line(llama: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"method 'lense' is unknown \(nearest: lens\), expected attributions, "):
        analyze(llama, TEXT, ["lense"])
    with pytest.raises(ValueError, match="method 'patching' compares two texts and one was given"):
        analyze(llama, TEXT, ["patching"])
    with pytest.raises(ValueError, match="no method was named"):
        analyze(llama, TEXT, [])
    with pytest.raises(ValueError, match="the text is empty"):
        analyze(llama, " ")
    with pytest.raises(ValueError, match="has 65 tokens, .* takes at most 64"):
        analyze(llama, "x" * 65)
    with pytest.raises(ValueError, match="the texts have 9 and 3 tokens"):
        analyze(llama, TEXT, ["patching"], compare="abc")
    assert "the texts have 9 and 3 tokens" in analyze(llama, TEXT, compare="def").left_out["patching"]
    with pytest.raises(FileNotFoundError, match="no model folder at './none'"):
        analyze("./none", TEXT)


def test_agreement_is_the_rank_correlation(llama: LanguageModel) -> None:
    first = attribute(llama, TEXT, "z", method="gradient_norm")
    second = attribute(llama, TEXT, "z", method="leave_one_out")
    found = compare_methods({"a": first, "b": second, "c": first})
    assert found.correlations[0, 2] == pytest.approx(1)
    ranks = [np.argsort(np.argsort(np.abs(entry.scores))) for entry in (first, second)]
    assert found.correlations[0, 1] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert len(found.rows()) == 3
    with pytest.raises(ValueError, match="got 1 attributions, expected two or more of one text"):
        compare_methods({"a": first})


def test_tied_scores_share_their_rank() -> None:
    from activations.analyses.agreement import _ranks

    assert _ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]


def test_curves_begin_and_end_at_the_text_and_at_the_replaced_text(llama: LanguageModel) -> None:
    found = attribute(llama, TEXT, "z", method="leave_one_out")
    curve = deletion_curve(llama, found, "z", substitute="q")
    assert curve.deletion[0] == curve.insertion[-1] == pytest.approx(found.value)
    assert curve.deletion[-1] == pytest.approx(curve.insertion[0])
    assert curve.order[0] == int(found.scores.argmax())
    by_one = attribute(llama, TEXT, "z", method="substitution", substitute="q")
    assert curve.deletion[1] == pytest.approx(found.value - by_one.scores[curve.order[0]])
    straight = np.linspace(4, 0, 10)
    from dataclasses import replace

    assert replace(curve, deletion=straight).deletion_area == pytest.approx(2)
    json.loads(curve.to_json())

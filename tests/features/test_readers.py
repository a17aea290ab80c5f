"""Language models as readers: answers are read off logits, endpoints are asked politely, failures are counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_endpoint import Fake, serving
from planted_events import plant

from activations.choices import choice_probabilities
from features import Dictionary
from features.endpoint import KEY_VARIABLE
from features.explain import METHOD, ExplainConfig, explain
from features.reader_scores import CHOICES, READER_SCORERS, explain_by, read, score_by, shown
from features.readers import SIMULATE, UNKNOWN, EndpointReader, LocalReader, reader_for
from features.scoring_samples import ScoreConfig

CONFIG = ScoreConfig(window_tokens=8, actives=16, silent=8, quantiles=2, features=6)


def test_choices_are_the_models_own_next_token_probabilities(tiny_lm: Any) -> None:
    prompts = ["same start: a 1", "same start: bc", "same start: bcd 0"]
    found = choice_probabilities(tiny_lm, prompts, ["0", "1"])
    for prompt, row in zip(prompts, found, strict=True):
        tokens = torch.tensor(tiny_lm.encode([prompt]))
        logits = tiny_lm.logits(tokens)[0, -1]
        texts = tiny_lm.token_strings(range(tiny_lm.vocab_size))
        expected = torch.softmax(logits[[texts.index("0"), texts.index("1")]].float(), 0)
        assert torch.allclose(row, expected, atol=1e-5)
    alone = choice_probabilities(tiny_lm, prompts[1:2], ["0", "1"])
    assert torch.allclose(alone[0], found[1], atol=1e-5)
    with pytest.raises(ValueError, match="no token for the answer 'perhaps'"):
        choice_probabilities(tiny_lm, prompts, ["perhaps"])


def test_marked_runs_stand_between_brackets() -> None:
    assert shown(["a", "b", "c", "d"], np.array([True, True, False, True])) == "<<ab>>c<<d>>"


@pytest.fixture
def planted(copied: Path, tiny_lm: Any) -> Iterator[Dictionary]:
    opened = plant(copied, "token in ('x', '1')")
    explain(opened, ExplainConfig(min_events=3))
    yield opened
    opened.close()


class Knowing(LocalReader):
    """Knows that a feature is active at x and 1, and always takes the first of several pieces."""

    def choose(self, prompts: Any, choices: Any) -> np.ndarray:
        if len(choices) == CHOICES:
            return np.tile(np.eye(CHOICES)[0], (len(prompts), 1))
        yes = []
        for prompt in prompts:
            text = prompt.split("for no.\n\n")[1].rsplit("\n\nAnswer")[0]
            marked = re.findall("<<(.*?)>>", text, re.DOTALL) if "at the tokens between" in prompt else [text]
            yes.append(all(set(part) & {"x", "1"} for part in marked))
        return np.stack([~np.array(yes), np.array(yes)], axis=1).astype(float)

    def write(self, prompt: str, max_new_tokens: int = 60) -> str | None:
        return "x and 1"


def test_a_reader_that_knows_scores_one_where_the_answer_is_planted(planted: Dictionary, tiny_lm: Any) -> None:
    everything = ScoreConfig(window_tokens=8, actives=16, silent=8, quantiles=2)
    score_by(planted, Knowing(tiny_lm), ["detection", "fuzzing", "intruder"], everything)
    method = f"{METHOD}, read by {tiny_lm.name}"
    rows = planted.sql(f"select * from scores where method = '{method}'").to_pylist()
    found = {row["scorer"]: row["score"] for row in rows if row["feature"] == 7}
    assert all(found[name] == 1 for name in ("detection", "detection_auc", "detection_hard", "fuzzing"))
    assert found["fuzzing_inactive"] == 1
    guesses = [row["score"] for row in rows if row["scorer"] == "intruder"]
    tries = sum(row["n"] for row in rows if row["scorer"] == "intruder")
    assert tries > 40
    # the first piece every time: found as often as chance has it
    assert abs(np.mean(guesses) - 1 / CHOICES) < 0.12


def test_a_random_model_on_this_machine_explains_and_scores(planted: Dictionary, tiny_lm: Any) -> None:
    short = ScoreConfig(window_tokens=8, actives=5, silent=5, quantiles=1, features=2)
    planted.add_label(7, "mine", "me")
    method, written, _ = explain_by(planted, Knowing(tiny_lm), short)
    report = score_by(planted, LocalReader(tiny_lm), READER_SCORERS, short, method)
    assert {"detection", "fuzzing", "surprisal"} <= {mean.scorer for mean in report.means}
    assert all(mean.mean <= 1 and mean.failures == 0 for mean in report.means)
    assert all(mean.mean >= 0 for mean in report.means if not mean.scorer.startswith("simulation"))
    texts = planted.sql(f"select text, author from explanations where method = '{method}'").to_pylist()
    assert written == len(texts) == 2
    assert texts[0] == {"text": "x and 1", "author": tiny_lm.name}
    first = planted.feature(7).explanations[0]
    assert (first.text, first.author) == ("mine", "me")


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointReader]:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    with serving() as url:
        yield EndpointReader(
            url=url,
            model="m",
            cache=tmp_path / "answers",
            requests_per_minute=1e6,
            attempts=3,
            first_wait_s=0.01,
        )


def test_busy_endpoints_are_asked_again_and_answers_are_kept(endpoint: EndpointReader) -> None:
    Fake.script = [(429, b""), (500, b""), (200, "1"), (200, " 0.")]
    assert endpoint.choose(["a", "b"], ["0", "1"]).tolist() == [[0, 1], [1, 0]]
    assert (endpoint.cost.requests, endpoint.cost.retries, endpoint.cost.failures) == (4, 2, 0)
    assert (endpoint.cost.prompt_tokens, endpoint.cost.completion_tokens) == (20, 2)
    assert set(Fake.keys) == {"Bearer secret"}
    # another program, the same folder: nothing is asked again
    again = EndpointReader(url=endpoint.url, model="m", cache=endpoint.cache)
    assert again.choose(["a", "b"], ["0", "1"]).tolist() == [[0, 1], [1, 0]]
    assert (again.cost.requests, again.cost.cached) == (0, 2)
    assert not any("secret" in path.read_text() for path in endpoint.cache.rglob("*.json"))


def test_log_probabilities_are_used_where_there_are_any(endpoint: EndpointReader) -> None:
    top = [{"token": "1", "logprob": -0.5}, {"token": " 1", "logprob": -3.0}, {"token": "0", "logprob": -1.5}]
    choice = {"message": {"content": "1"}, "logprobs": {"content": [{"token": "1", "top_logprobs": top}]}}
    Fake.script = [(200, json.dumps({"choices": [choice]}).encode())]
    yes = np.exp(-0.5) + np.exp(-3.0)
    expected = yes / (yes + np.exp(-1.5))
    assert endpoint.choose(["a"], ["0", "1"])[0, 1] == pytest.approx(expected)


def test_malformed_answers_are_failures_and_never_guesses(endpoint: EndpointReader) -> None:
    Fake.script = [(200, b"no json"), (200, b"[]"), (200, b'{"choices": []}'), (200, "well, maybe"), *[(500, b"")] * 3]
    assert np.isnan(endpoint.choose(["a", "b", "c", "d", "e"], ["0", "1"])).all()
    assert endpoint.cost.failures == 5
    # what was no answer is asked again, what was one is not
    endpoint.choose(["a", "d"], ["0", "1"])
    assert endpoint.cost.cached == 1


def test_failures_are_counted_in_the_scores(planted: Dictionary, endpoint: EndpointReader) -> None:
    one = ScoreConfig(window_tokens=8, actives=8, silent=8, features=1)
    Fake.script = [(200, "?")] * 3
    report = read(planted, endpoint, ["detection"], one)
    assert report.cost is not None
    assert report.cost.failures == 3
    assert report.scores is not None
    assert {mean.failures for mean in report.scores.means if mean.scorer == "detection"} == {3}
    assert json.loads(report.to_json())["cost"]["requests"] == len(Fake.seen)


def test_a_wrong_key_and_a_redirect_end_in_one_line(endpoint: EndpointReader) -> None:
    Fake.script = [(401, b"no such key")]
    with pytest.raises(ValueError, match=r"answered 401 \(no such key\), expected 200: check its address"):
        endpoint.choose(["a"], ["0", "1"])
    Fake.script = [(302, b"")]
    with pytest.raises(ValueError, match="answered 302"):
        endpoint.choose(["a"], ["0", "1"])


def test_text_leaves_the_machine_for_a_named_host_alone(tmp_path: Path) -> None:
    for url in ("https://api.example.com/v1", "http://10.0.0.7/v1", "http://127.0.0.1.example.com/v1"):
        with pytest.raises(ValueError, match="text would leave the machine"):
            reader_for(url, "m", tmp_path)
    assert isinstance(reader_for("https://api.example.com/v1", "m", tmp_path, "api.example.com"), EndpointReader)
    with pytest.raises(ValueError, match="text would leave the machine"):
        reader_for("https://evil.example.com/v1", "m", tmp_path, "api.example.com")
    for url in ("http://localhost:1/v1", "http://[::1]:1/v1", "http://127.0.0.9:1/v1"):
        assert isinstance(reader_for(url, "m", tmp_path), EndpointReader)
    with pytest.raises(ValueError, match="was given without a model"):
        reader_for("http://localhost:1/v1", None, tmp_path)


def test_an_endpoint_that_is_not_there_says_so(tmp_path: Path) -> None:
    reader = EndpointReader(url="http://127.0.0.1:9/v1", model="m", cache=tmp_path, attempts=2, first_wait_s=0.01)
    with pytest.raises(OSError, match="cannot be reached"):
        reader.choose(["a"], ["0", "1"])


def test_scorers_that_a_reader_lacks_are_refused(planted: Dictionary, endpoint: EndpointReader) -> None:
    with pytest.raises(ValueError, match="scorer 'guess' is not a reader's"):
        read(planted, endpoint, ["guess"], CONFIG)
    with pytest.raises(ValueError, match="surprisal was asked of an endpoint"):
        read(planted, endpoint, list(READER_SCORERS), CONFIG)


def test_levels_are_expected_values_over_the_number_tokens(tiny_lm: Any, tmp_path: Path) -> None:
    tokens = ["x", "\n", "1"]
    found = LocalReader(tiny_lm, tmp_path).levels("x", tokens)
    assert found is not None
    # the tokenizer has single digits alone: 0 to 9 stretched over 0 to 10
    texts = tiny_lm.token_strings(range(tiny_lm.vocab_size))
    digits = [texts.index(str(value)) for value in range(10)]
    text = SIMULATE.format(explanation="x", most="9")
    for token, level in zip(["x", "\\n", "1"], found, strict=True):
        text += token + "\t"
        logits = tiny_lm.logits(torch.tensor(tiny_lm.encode([text])))[0, -1]
        p = torch.softmax(logits[digits].float(), 0)
        assert level == pytest.approx(float(p @ torch.arange(10.0)) * 10 / 9, abs=1e-4)
        text += UNKNOWN


def test_an_endpoint_simulates_with_probabilities_or_with_numbers(endpoint: EndpointReader) -> None:
    def place(token: str, **likely: float) -> dict[str, Any]:
        top = [{"token": said.removeprefix("n"), "logprob": float(np.log(p))} for said, p in likely.items()]
        return {"token": token, "top_logprobs": top}

    content = [place("0", n0=0.5, n2=0.25, x=0.25), place(",", x=1.0), place(" 9", n9=0.4, n10=0.4, n11=0.2)]
    choice = {"message": {"content": "0, 9"}, "logprobs": {"content": content}}
    Fake.script = [
        (200, json.dumps({"choices": [choice]}).encode()),
        (200, "[3, 10]"),
        (200, "1, 2, 3"),
        (200, "0, 99"),
    ]
    answers = [endpoint.levels(str(n), ["a", "b"]) for n in range(4)]
    assert answers[0] is not None
    assert answers[0] == pytest.approx([2 / 3, 9.5])
    assert answers[1] is not None
    assert answers[1].tolist() == [3, 10]
    assert answers[2:] == [None, None]
    assert endpoint.cost.failures == 2


class Simulating(Knowing):
    """Expects 10 where feature 7 is as active as ever, and less where it is less."""

    def levels(self, explanation: str, tokens: Any) -> np.ndarray | None:
        return None if "a" in tokens else 10.0 * np.isin(tokens, ["x", "1"])


def test_simulation_by_a_reader_that_knows_correlates_and_counts_failures(planted: Dictionary, tiny_lm: Any) -> None:
    everything = ScoreConfig(window_tokens=8, actives=16, silent=8, quantiles=2)
    planted.__dict__["max_activations"] = np.full(96, 3.0)  # as planted
    report = score_by(planted, Simulating(tiny_lm), ["simulation"], everything)
    rows = planted.sql("select * from scores where scorer like 'simulation%' and feature = 7").to_pylist()
    found = {row["scorer"]: row for row in rows}
    assert found["simulation"]["score"] > 0.8
    assert found["simulation_explained"]["score"] > 0.5
    assert found["simulation"]["failures"] > 0
    assert {mean.scorer for mean in report.means} == {"simulation", "simulation_explained"}


class Interrupted(Knowing):
    """Stops in the middle, as a killed run does."""

    asked = 0

    def write(self, prompt: str, max_new_tokens: int = 60) -> str | None:
        Interrupted.asked += 1
        if Interrupted.asked == 3:
            raise KeyboardInterrupt
        return f"text {Interrupted.asked}"


def test_explanations_are_written_as_they_come(planted: Dictionary, tiny_lm: Any) -> None:
    short = ScoreConfig(window_tokens=8, actives=5, silent=5, quantiles=1, features=4)
    with pytest.raises(KeyboardInterrupt):
        explain_by(planted, Interrupted(tiny_lm), short)
    texts = f"select text from explanations where method = 'reader {tiny_lm.name}' order by feature"
    assert planted.sql(texts)["text"].to_pylist() == ["text 1", "text 2"]
    method, written, _ = explain_by(planted, Interrupted(tiny_lm), short)
    assert method == f"reader {tiny_lm.name}"
    assert planted.sql(texts)["text"].to_pylist() == ["text 4", "text 5", "text 6", "text 7"]
    assert written == 4


def test_a_local_reader_answers_again_from_its_folder(tiny_lm: Any, tmp_path: Path, monkeypatch: Any) -> None:
    first = LocalReader(tiny_lm, tmp_path)
    answers = (first.choose(["a", "b"], ["0", "1"]).tolist(), first.write("abc", 4), first.levels("x", ["a"]))
    monkeypatch.setattr(tiny_lm, "generate", None)
    monkeypatch.setattr("activations.choices.choice_probabilities", None)
    monkeypatch.setattr("activations.choices.choice_probabilities_after", None)
    again = LocalReader(tiny_lm, tmp_path)
    assert again.choose(["a", "b"], ["0", "1"]).tolist() == answers[0]
    assert again.write("abc", 4) == answers[1]
    assert np.array_equal(again.levels("x", ["a"]), answers[2])  # pyright: ignore

"""The pages' functions through the client API, as a notebook calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.ui.served import CANARY, DEAD, HOSTILE, N_FEATURES

pytestmark = pytest.mark.browser  # it asks the server of those tests


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    made = Client(address, verbose=False)
    yield made
    made.close()


def test_every_function_is_named_and_described(client: Any) -> None:
    named = client.view_api(return_format="dict")["named_endpoints"]
    names = {"dictionaries", "search", "features", "feature", "active_on", "find", "steer", "sql", "lists"}
    assert set(named) == {f"/{name}" for name in names | {"add_to_list", "add_label"}}
    assert all(endpoint["description"] for endpoint in named.values())
    assert [given["parameter_name"] for given in named["/search"]["parameters"]] == [
        "query",
        "dictionary",
        "kind",
        "limit",
    ]


def test_what_is_asked_is_what_the_library_answers(client: Any) -> None:
    opened = client.predict(api_name="/dictionaries")
    assert [entry["name"] for entry in opened] == ["stdlib", "stdlib (2)"]
    assert opened[0]["n_features"] == N_FEATURES
    hits = client.predict("return", api_name="/search")
    found = client.predict(hits[0]["feature"], api_name="/feature")
    assert found["id"] == hits[0]["feature"]
    assert found["examples"]
    listed = client.predict(order="density", limit=3, api_name="/features")
    assert listed["total"] == N_FEATURES - 1
    densities = [entry["density"] for entry in listed["features"]]
    assert densities == sorted(densities, reverse=True)
    assert client.predict("select count(*) as n from features", api_name="/sql") == [{"n": N_FEATURES}]
    active = client.predict("def f(x):\n    return x", top=3, api_name="/active_on")
    assert len(active["ranked"]) == 3
    feature = active["ranked"][0]["feature"]
    places = client.predict(f"{feature}", limit=2, api_name="/find")
    assert places


def test_steering_is_compared(client: Any) -> None:
    answer = client.predict("def f(", {"8": 1.5}, max_new_tokens=8, api_name="/steer")
    assert answer["strengths"] == {"8": 1.5}
    assert answer["steered"] != answer["unsteered"]


def test_labels_and_lists_are_kept(client: Any) -> None:
    client.predict(30, CANARY, author="me", api_name="/add_label")
    assert client.predict(30, api_name="/feature")["explanations"][0]["text"] == CANARY
    assert client.predict("mine", [30, DEAD], api_name="/add_to_list") == [30, DEAD]
    assert client.predict("mine", [30, HOSTILE], api_name="/add_to_list") == [HOSTILE]
    assert "mine" in [named["name"] for named in client.predict(api_name="/lists")]


@pytest.mark.parametrize(
    ("function", "given", "told"),
    [
        ("/feature", [N_FEATURES], "240"),
        ("/feature", [0, "<b>"], "there is no dictionary '<b>'"),
        ("/search", ["x", "", "auto", 10**7], "expected 0 to 10,000"),
        ("/active_on", [""], "the text is empty"),
        ("/active_on", ["x" * 20_001], "20,001 characters"),
        ("/steer", ["a", {"8": 1.0}, "", "add", 501], "expected 1 to 500"),
        ("/steer", ["a", {"<b>": 1.0}], "expected numbers"),
        ("/steer", ["a", {str(DEAD): 1.0}], "5"),
        ("/sql", ["drop table features"], "SELECT"),
    ],
)
def test_what_the_library_refuses_arrives_as_words(client: Any, function: str, given: list[Any], told: str) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(*given, api_name=function)
    assert told in str(refused.value)

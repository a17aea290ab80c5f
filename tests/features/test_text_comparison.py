"""Two readings are compared by what each has and the other has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from features import Dictionary, build_index
from features.text_comparison import compare_readings
from sae import SAE

ONE, TWO = "import self\nvalue", "return 12 x_1\nimport"


def test_two_texts_share_the_features_that_are_active_in_both(dictionary: Dictionary) -> None:
    a, b = dictionary.active_on(ONE), dictionary.active_on(TWO)
    found = compare_readings(dictionary, a, dictionary, b, top=1000)
    assert found.kind == "texts"
    assert {one.feature for one in found.only_a} == set(a.features) - set(b.features)
    assert {one.feature for one in found.only_b} == set(b.features) - set(a.features)
    assert {pair.a.feature for pair in found.both} == set(a.features) & set(b.features)
    differences = [abs(pair.difference) for pair in found.both]
    assert differences == sorted(differences, reverse=True)
    maxima = dictionary.max_activations
    for one in found.only_a:
        cells = a.cells(one.feature)
        assert one.tokens == len(cells)
        assert one.total == pytest.approx(sum(abs(c.activation) / maxima[one.feature] for c in cells))
    assert found.found == {"only_a": len(found.only_a), "only_b": len(found.only_b), "both": len(found.both)}
    assert len(json.loads(found.to_json())["both"]) == len(found.both)
    short = compare_readings(dictionary, a, dictionary, b, top=1)
    assert [len(short.only_a), short.found] == [1, found.found]
    assert [row["where"] for row in short.rows()] == ["only_a", "only_b", "both"]


def test_renumbered_features_are_found_again_by_what_they_do_on_the_text(
    dictionary: Dictionary, tiny_lm: Any, rows: Any, tiny_sae: SAE, config: Any, tmp_path: Path
) -> None:
    order = torch.randperm(tiny_sae.config.d_sae, generator=torch.Generator().manual_seed(1))
    shuffled = SAE(tiny_sae.config)
    state = {name: value.clone() for name, value in tiny_sae.state_dict().items()}
    width = tiny_sae.config.d_sae
    shuffled.load_state_dict({n: v[order] if v.shape[:1] == (width,) else v for n, v in state.items()})
    shuffled.metadata.update(tiny_sae.metadata)
    other = build_index(shuffled, tiny_lm, rows, tmp_path / "shuffled", config)
    a, b = dictionary.active_on(ONE), other.active_on(ONE)
    found = compare_readings(dictionary, a, other, b, top=1000)
    assert found.kind == "dictionaries"
    assert found.both
    for pair in found.both:
        assert pair.cosine == pytest.approx(1, abs=1e-5)
        # numbers may differ where features do the same on so short a text
        assert [cell.token for cell in a.cells(pair.a.feature)] == [cell.token for cell in b.cells(pair.b.feature)]
    with pytest.raises(ValueError, match="two texts in two dictionaries"):
        compare_readings(dictionary, a, other, other.active_on(TWO))


def test_readings_by_two_measures_are_refused(dictionary: Dictionary) -> None:
    a, b = dictionary.active_on(ONE), dictionary.active_on(ONE, by="surprise")
    with pytest.raises(ValueError, match="by activation and by surprise, expected one measure"):
        compare_readings(dictionary, a, dictionary, b)

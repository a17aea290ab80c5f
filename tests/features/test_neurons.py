"""Neurons as features: exact max-activating contexts, signs kept, and the same questions as for latents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features import Dictionary, Steering
from features.neurons import NeuronConfig, index_neurons, load_basis
from features.verification import verify

SITES = ["mlp_act.1", "mlp_act.2"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: Any, tiny_lm: Any, rows: Any, config: Any) -> Iterator[list[Dictionary]]:
    out = tmp_path_factory.mktemp("neurons")
    chosen = NeuronConfig(density=0.1, sample_tokens=400)
    opened = index_neurons(tiny_lm, rows, SITES, [out / site for site in SITES], config, chosen)
    yield opened
    for dictionary in opened:
        dictionary.close()


def activations(lm: Any, rows: Any, site: str) -> dict[tuple[int, int], np.ndarray]:
    """{(document, position): all neurons}, one row at a time."""
    found = {}
    for ids, documents, positions in zip(rows.tokens, rows.documents, rows.positions, strict=True):
        mask = torch.from_numpy(documents >= 0)[None]
        x = lm.capture(torch.from_numpy(ids.astype(np.int64))[None], mask, [site])[site][0].detach().numpy()
        for column in np.flatnonzero(documents >= 0):
            if int(ids[column]) not in lm.special_ids:
                found[int(documents[column]), int(positions[column])] = x[column]
    return found


@pytest.mark.parametrize("place", [0, 1])
def test_examples_are_the_max_activating_windows_of_a_direct_pass(
    built: list[Dictionary], tiny_lm: Any, rows: Any, config: Any, place: int
) -> None:
    dictionary = built[place]
    direct = activations(tiny_lm, rows, SITES[place])
    checked = 0
    for neuron in range(dictionary.n_features):
        windows: dict[tuple[int, int], tuple[float, int, int]] = {}
        for (document, position), values in sorted(direct.items()):
            key, size = (document, position // config.window_tokens), abs(float(values[neuron]))
            if key not in windows or size > windows[key][0]:
                windows[key] = size, document, position
        wanted, taken = [], defaultdict(int)
        for size, document, position in sorted(windows.values(), key=lambda peak: (-peak[0], peak[1], peak[2])):
            if taken[document] < config.per_document and len(wanted) < config.examples:
                taken[document] += 1
                wanted.append((document, position, size))
        examples = dictionary.examples(neuron, stratum=0)
        # where fewer lie above the threshold, those that do are the first
        assert 0 < len(examples) <= len(wanted)
        sizes = [abs(example.activation) for example in examples]
        np.testing.assert_allclose(sizes, [size for *_, size in wanted[: len(sizes)]], atol=1e-6)
        assert [(e.document, e.position) for e in examples] == [(d, p) for d, p, _ in wanted[: len(examples)]]
        checked += len(examples) == config.examples
        signed = direct[examples[0].document, examples[0].position][neuron]
        assert examples[0].activation == pytest.approx(float(signed), abs=1e-6)
    assert checked > dictionary.n_features // 2


def test_events_are_what_exceeds_the_threshold_and_as_many_as_asked_for(built: list[Dictionary]) -> None:
    density = built[0].sql("select avg(density) as d from features")["d"][0].as_py()
    assert density == pytest.approx(0.1, rel=0.25)  # thresholds come from a sample of the text
    least = built[0].sql("select feature, min(abs(activation)) as least from events group by feature order by feature")
    threshold = built[0].sae.tensors["threshold"].detach().numpy()
    assert (least["least"].to_numpy() > threshold[least["feature"].to_numpy()]).all()
    assert built[0].sql("select min(activation) as low from events")["low"][0].as_py() < 0


def test_logits_and_neighbours_are_those_of_the_output_rows(built: list[Dictionary], tiny_lm: Any, config: Any) -> None:
    down = tiny_lm.site_map.binding("mlp_act.2").module
    with torch.no_grad():
        none = torch.zeros(1, built[1].n_features)
        one = none.clone()
        one[0, 7] = 1
        written = (down(one) - down(none))[0]
        effect = tiny_lm.logit_directions() @ written
    feature = built[1].feature(7)
    assert [token.token_id for token in feature.top_logits] == effect.topk(config.logits).indices.tolist()
    np.testing.assert_allclose(
        [token.logit for token in feature.top_logits], effect.topk(config.logits).values, rtol=1e-4
    )
    assert feature.neighbours
    assert built[1].target_sites == ["mlp_out.2"]


def test_a_dictionary_of_neurons_is_asked_opened_and_verified_like_any_other(
    built: list[Dictionary], tiny_lm: Any
) -> None:
    dictionary = built[0]
    assert verify(dictionary.path).ok, [check for check in verify(dictionary.path).checks if not check.ok]
    assert dictionary.info["sae"]["architecture"] == "neurons"
    assert dictionary.search("import")
    fresh = Dictionary.open(dictionary.path, model=tiny_lm)
    assert fresh.active_on("import self\nvalue").ranked
    strongest = int(fresh.max_activations.argmax())
    steering = Steering(fresh, {strongest: 3.0})
    assert steering.compare("import", max_new_tokens=3).relative_norm > 0
    fresh.close()


def test_a_basis_comes_back_from_its_files(built: list[Dictionary], tmp_path: Path) -> None:
    basis = built[0].sae
    again = load_basis(basis.save(tmp_path / "basis"))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in basis.tensors.items())
    assert again.sites == basis.sites
    x = torch.randn(5, basis.config.d_in)
    assert torch.equal(again.encode(x).to_dense(), torch.where(x.abs() > basis.tensors["threshold"], x, 0))
    with pytest.raises(ValueError, match=r"encode got rows of shape \(5, 3\), expected \[n, "):
        again.encode(torch.zeros(5, 3))


def test_other_sites_and_impossible_settings_are_refused(tiny_lm: Any, rows: Any, tmp_path: Path) -> None:
    for site in ("resid_post.1", "mlp_act.99"):
        with pytest.raises(ValueError, match=rf"{site} names no neurons of .*, expected one of mlp_act.0"):
            index_neurons(tiny_lm, rows, [site], [tmp_path / "d"])
    with pytest.raises(ValueError, match=r"neurons.density=0, expected more than 0"):
        NeuronConfig(density=0)
    with pytest.raises(ValueError, match=r"neurons.sample_tokens=0"):
        NeuronConfig(sample_tokens=0)

"""Circuits: cutting all is the corrupt run, scores are slopes of cuts, and a planted circuit is found exactly."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import planted_circuit
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import head_roles, patch_activations
from activations.circuits import (
    Claim,
    ComponentGraph,
    Pair,
    PairSet,
    builtin_tasks,
    critical_components,
    dot,
    find_circuit,
    graphml,
    measure_circuit,
    patch_paths,
    prepare_pairs,
    read_pairs,
    scrub,
    task_pairs,
)
from activations.circuits.discovery import edge_scores
from activations.circuits.paths import path_effect
from activations.circuits.prepared import Prepared

FOUR = ["gpt2", "gpt_neox", "llama", "gemma2"]
NEAR = {"gemma2": 2e-5, "gpt_neox": 1e-6, "llama": 1e-6}
"""Gemma 2 is in float32; the reference attention of the others has its softmax in float32."""


@pytest.fixture(scope="module", params=FOUR)
def graph(request: pytest.FixtureRequest) -> ComponentGraph:
    return ComponentGraph(LanguageModel(build(request.param), tokenizer(), name=request.param))


def _near(graph: ComponentGraph) -> float:
    return NEAR.get(graph.lm.name, 1e-10)


def _pairs(lm: LanguageModel, count: int = 3) -> PairSet:
    texts = [("def f(x):", "def g(y):"), ("a = b + c", "a = d + e"), ("if x:", "if y:")][:count]
    return prepare_pairs(lm, [Pair(clean, corrupt, ("z",), ("(",)) for clean, corrupt in texts])


@pytest.fixture(scope="module")
def planted() -> tuple[LanguageModel, PairSet]:
    lm = LanguageModel(planted_circuit.build(), planted_circuit.tokenizer(), name="planted")
    drawn = np.random.default_rng(0)
    pairs = []
    for _ in range(6):
        h, a, b, c, d, e = drawn.choice(list(planted_circuit.LETTERS), 6, replace=False)
        pairs.append(Pair(h + a + b + c + d + e + a, h + c + b + a + d + e + a, (b,), (d,)))
    return lm, prepare_pairs(lm, pairs, name="induction")


def test_with_every_edge_cut_the_model_computes_the_other_text(graph: ComponentGraph) -> None:
    lm, near = graph.lm, _near(graph)
    first, second = (lm.tokenize(text).tokens for text in ("def f(x):", "def g(y):"))
    own = lm.capture(first, None, [lm.final_site])[lm.final_site]
    writes, others = graph.writes(first), graph.writes(second)
    other = graph.run(second).final
    torch.testing.assert_close(graph.run(first).final, own, atol=near, rtol=0)
    everything = graph.edges.float()
    torch.testing.assert_close(graph.run(first, everything, others).final, other, atol=near, rtol=0)
    from_embeddings = torch.zeros_like(everything)
    from_embeddings[:, 0] = everything[:, 0]
    torch.testing.assert_close(graph.run(first, from_embeddings, others).final, other, atol=near, rtol=0)
    torch.testing.assert_close(graph.run(first, everything, writes).final, own, atol=near, rtol=0)
    # what differs between the texts is written by somebody
    torch.testing.assert_close((writes - others).sum(0), own - other, atol=max(near, 1e-5), rtol=0)
    assert len(lm.taps) == 0


def test_a_cut_edge_is_heard_by_its_reader_alone(graph: ComponentGraph) -> None:
    """Cutting head 0.1 → head 2.3 changes no head of layer 2 but that one, and nothing before."""
    lm = graph.lm
    first, second = (lm.tokenize(text).tokens for text in ("def f(x):", "def g(y):"))
    whole, others = graph.run(first).writes, graph.writes(second)
    cut = graph.cut([("head 0.1", "head 2.3 k")])
    changed = (graph.run(first, cut, others).writes - whole).abs().amax((1, 2, 3))
    names = {graph.senders[index].name for index in (changed > 10 * _near(graph)).nonzero().flatten().tolist()}
    after = {"head 2.3"} if graph.is_parallel else {"head 2.3", "mlp 2"}
    # Gemma 2 norms what its heads write together: their parts share that norm's scale
    together = {f"head 2.{head}" for head in range(4)} if lm.name == "gemma2" else set()
    assert {"head 2.3"} <= names <= after | together


def test_scores_are_the_slope_of_a_cut(graph: ComponentGraph) -> None:
    prepared = Prepared(graph, _pairs(graph.lm))
    scores = edge_scores(prepared)
    assert (scores[~graph.edges.numpy()] == 0).all()
    little = 1e-5 if graph.lm.name == "gpt2" else 3e-3
    for sender, receiver in [
        ("embed", "mlp 0"),
        ("head 0.1", "head 1.2 v"),
        ("mlp 0", "head 2.0 q"),
        ("mlp 1", "logits"),
    ]:
        cut = graph.cut([(sender, receiver)])
        slope = (prepared.values(torch.zeros_like(cut)).mean() - prepared.values(little * cut).mean()) / little
        expected = scores[graph.receiver_index[receiver], graph.sender_index[sender]]
        assert slope == pytest.approx(expected, rel=2e-2, abs=2e-3 if graph.lm.name != "gpt2" else 1e-6)


def test_scores_into_the_logits_are_exact_where_these_are_linear() -> None:
    lm = LanguageModel(build("llama"), tokenizer())
    lm.model.model.norm = torch.nn.Identity()
    graph = ComponentGraph(lm)
    prepared = Prepared(graph, _pairs(lm))
    scores = edge_scores(prepared, steps=2)
    for sender in ("embed", "head 1.0", "mlp 2"):
        exact = prepared.clean.mean() - prepared.values(graph.cut([(sender, "logits")])).mean()
        assert scores[-1, graph.sender_index[sender]] == pytest.approx(exact, abs=1e-6)
    assert scores[-1].sum() == pytest.approx(prepared.span, abs=1e-5)


def test_all_paths_to_the_logits_are_the_whole_difference(graph: ComponentGraph) -> None:
    lm, pairs = graph.lm, _pairs(graph.lm, 1)
    found = patch_paths(lm, pairs)
    assert found.total == pytest.approx(1, abs=1e-4)
    late = patch_paths(lm, pairs, ["head 1.0"], senders=["mlp 2", "head 1.1", "embed"], direction="noise")
    assert (late.effects[:2] == 0).all()
    assert abs(late.effects[2]).max() > 0
    assert path_effect(lm, pairs, ["mlp 1", "logits"]) == pytest.approx(
        found.effects[graph.sender_index["mlp 1"]].mean(), abs=1e-5
    )


def test_the_whole_model_is_faithful_and_an_empty_circuit_is_not(graph: ComponentGraph) -> None:
    pairs = _pairs(graph.lm, 1)
    every = [
        (sender.name, receiver.name)
        for r, receiver in enumerate(graph.receivers)
        for s, sender in enumerate(graph.senders)
        if graph.edges[r, s]
    ]
    whole, empty = measure_circuit(graph.lm, pairs, every), measure_circuit(graph.lm, pairs, [])
    assert whole.faithfulness == pytest.approx(1, abs=1e-4)
    assert whole.completeness == pytest.approx(1, abs=1e-4)
    assert empty.faithfulness == pytest.approx(0, abs=1e-4)
    assert empty.completeness == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", ["eap_ig", "acdc"])
def test_the_planted_circuit_is_found_exactly(planted: tuple[LanguageModel, PairSet], method: str) -> None:
    lm, pairs = planted
    found = find_circuit(lm, pairs, method=method)
    assert {(edge.sender, edge.receiver, edge.slot) for edge in found.edges} == planted_circuit.CIRCUIT
    assert found.faithfulness > 0.99
    assert found.completeness > 0.99
    assert found.minimality is not None
    assert found.minimality > 0.9
    assert [node.name for node in found.nodes] == ["embed", "head 0.1", "head 1.2", "logits"]
    json.loads(found.to_json())


def test_patching_and_roles_find_the_planted_heads(planted: tuple[LanguageModel, PairSet]) -> None:
    lm, pairs = planted
    roles = head_roles(lm)
    named = {(row["layer"], row["head"]): row["role"] for row in roles.rows() if row["role"] is not None}
    assert named == {(0, 1): "previous_token", (1, 2): "induction"}
    found = critical_components(lm, pairs, top=4)
    assert {row["component"] for row in found.rows()[:4]} == {"head 0.1", "head 1.2", "attention 0", "attention 1"}
    for row in found.rows():
        assert (abs(row["effect"] - 1) < 0.01) == (row["in_top"] == 1.0)
        assert row["low"] <= row["effect"] <= row["high"]
    pair = pairs.kept[0]
    exact = patch_activations(
        lm, pair.clean, pair.corrupt, pair.target[0], contrast=pair.contrast[0], sites=["head_out"]
    )
    assert set(zip(*np.nonzero(exact.heads > 0.5), strict=True)) == {(0, 1), (1, 2)}
    assert path_effect(lm, pairs, ["embed", "head 0.1 v", "head 1.2 k", "logits"]) == pytest.approx(1, abs=0.01)
    assert path_effect(lm, pairs, ["embed", "head 0.1 v", "head 1.3 k", "logits"]) == pytest.approx(0, abs=0.01)


def test_a_true_hypothesis_survives_scrubbing_and_a_false_one_does_not(planted: tuple[LanguageModel, PairSet]) -> None:
    lm, pairs = planted
    tokens = torch.cat([batch.clean for batch in pairs.batches] + [batch.corrupt for batch in pairs.batches])
    answers = [target for batch in pairs.batches for (target,) in batch.targets]
    answers += [contrast for batch in pairs.batches for (contrast,) in batch.contrasts]
    facts = [{"answer": answer, "text": tuple(row.tolist())} for answer, row in zip(answers, tokens, strict=True)]

    def value(logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits, -1)[range(len(answers)), answers]

    true = Claim("logits", because=(Claim("head 1.2", same=lambda fact: fact["answer"]),))
    found = scrub(lm, tokens, facts, true, value, samples=3)
    assert found.recovered == pytest.approx(1, abs=0.02)
    deeper = Claim(
        "logits",
        because=(Claim("head 1.2", because=(Claim("head 0.1", by=("k",)), Claim("embed", by=("q", "v")))),),
    )
    assert scrub(lm, tokens, facts, deeper, value, samples=3).recovered == pytest.approx(1, abs=0.05)
    false = Claim("logits", because=(Claim("head 1.1", same=lambda fact: fact["answer"]),))
    assert abs(scrub(lm, tokens, facts, false, value, samples=3).recovered) < 0.5
    trivial = scrub(lm, tokens, facts, Claim("logits", same=None), value, samples=1)
    assert trivial.recovered == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="says that 'head 0.1' reads 'head 1.2', expected an earlier"):
        scrub(lm, tokens, facts, Claim("logits", because=(Claim("head 0.1", because=(Claim("head 1.2"),)),)), value)
    with pytest.raises(ValueError, match="the hypothesis begins at 'mlp 0', expected logits"):
        scrub(lm, tokens, facts, Claim("mlp 0"), value)


def test_every_built_in_task_fits_the_models_at_hand(embedded_lm: LanguageModel) -> None:
    assert list(builtin_tasks()) == [
        *("ioi", "greater_than", "agreement", "induction", "capitals", "facts", "pronouns", "toxicity", "truth"),
        "docstring",
    ]
    for name in builtin_tasks():
        found = task_pairs(embedded_lm, name, count=4)
        assert len(found) == 4, name
        for batch in found.batches:
            assert batch.clean.shape == batch.corrupt.shape
            assert not torch.equal(batch.clean, batch.corrupt)
            assert all(not set(ours) & set(theirs) for ours, theirs in zip(batch.targets, batch.contrasts, strict=True))
        again = task_pairs(embedded_lm, name, count=4)
        assert again.kept == found.kept
    with pytest.raises(ValueError, match=r"task 'iio' is unknown \(nearest: ioi\)"):
        task_pairs(embedded_lm, "iio")


def test_pairs_that_do_not_fit_are_counted(embedded_lm: LanguageModel, tmp_path: Path) -> None:
    lines = [
        {"clean": "def f(x):", "corrupt": "def g(y):", "target": " z", "contrast": " w"},
        {"clean": "def f(x):", "corrupt": "def long_name(x, y, z):", "target": " z"},
        {"clean": "def f(x):", "corrupt": "def f(y):", "target": " z", "contrast": " z"},
        {"clean": "<script>alert(1)</script>", "corrupt": "<script>alert(2)</script>", "target": ["'", '"']},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = prepare_pairs(embedded_lm, read_pairs(path), name="mine")
    assert len(found) == 2
    assert found.dropped == {
        "the texts have different numbers of tokens": 1,
        "target and contrast begin with the same token": 1,
    }
    for broken, said in (
        ("{", "line 1: Expecting property name"),
        ('{"clean": "a"}', r"line 1: got \['clean'\], expected clean, corrupt, target"),
        ('{"clean": "", "corrupt": "b", "target": "c"}', "line 1: clean and corrupt must be texts"),
        ("", "holds no pairs"),
    ):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            read_pairs(path)
    with pytest.raises(ValueError, match="no pair of pairs fits the tokens of embedded"):
        prepare_pairs(embedded_lm, [Pair("a", "a b c", ("d",))])


def test_exports_are_read_back_whole(planted: tuple[LanguageModel, PairSet]) -> None:
    from dataclasses import replace

    lm, pairs = planted
    found = replace(
        measure_circuit(lm, pairs, [("embed", "head 0.1"), ("head 0.1", "logits")]), task='<i>"a\\"\n\x00\ud800'
    )
    xml = graphml(found)
    root = ElementTree.fromstring(xml.encode("utf-8"))
    space = {"g": "http://graphml.graphdrawing.org/xmlns"}
    assert [node.get("id") for node in root.findall(".//g:node", space)] == ["embed", "head 0.1", "logits"]
    assert len(root.findall(".//g:edge", space)) == len(found.edges) == 4
    drawn = dot(found)
    drawn.encode("utf-8")
    assert drawn.count(" -> ") == 4
    assert '"head 0.1" -> "logits"' in drawn
    assert drawn.count("\n") == len(drawn.splitlines())


def test_no_hook_survives_a_run_that_fails(
    planted: tuple[LanguageModel, PairSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, _ = planted
    graph = ComponentGraph(lm)
    tokens = lm.tokenize("abcabc").tokens
    before = lm.logits(tokens)
    monkeypatch.setattr(lm.model.transformer.h[1].mlp, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        graph.run(tokens)
    monkeypatch.undo()
    assert len(lm.taps) == 0
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in lm.model.modules())
    assert torch.equal(lm.logits(tokens), before)


def test_what_has_no_circuit_is_said_in_one_line(planted: tuple[LanguageModel, PairSet]) -> None:
    lm, pairs = planted
    with pytest.raises(ValueError, match="expected a pre-norm decoder"):
        ComponentGraph(LanguageModel(build("bert"), tokenizer()))
    for settings, said in (
        ({"method": "guess"}, "method 'guess' is unknown, expected one of eap, eap_ig, acdc"),
        ({"edges": 0}, "got edges=0"),
        ({"faithfulness": 0}, "faithfulness=0"),
        ({"method": "acdc", "threshold": 0}, "got threshold=0"),
    ):
        with pytest.raises(ValueError, match=said):
            find_circuit(lm, pairs, **settings)  # pyright: ignore
    with pytest.raises(ValueError, match=r"has no edge from 'mlp 1' to 'head 0\.1'"):
        measure_circuit(lm, pairs, [("mlp 1", "head 0.1")])
    with pytest.raises(ValueError, match="'head 9.9' reads nothing"):
        patch_paths(lm, pairs, ["head 9.9"])
    same = prepare_pairs(lm, [Pair("habcdea", "habcdea"[::-1][:6] + "a", ("i",), ("j",))])
    with pytest.raises(ValueError, match="says the same on the clean and the corrupt texts"):
        find_circuit(lm, same)

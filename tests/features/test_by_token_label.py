"""Labelled tokens: files read piece by piece, and features that tell them apart, scored on texts that chose nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from activations.offsets import encode_with_places
from features import Dictionary
from features.by_token_label import by_token_label
from features.labelled_tokens import LabelledTokens, Span, is_labelled_tokens, labelled_tokens
from ui import cli

HOSTILE = "<script>alert('1')</script>; drop table features; --"


def planted_texts(n: int = 80) -> LabelledTokens:
    """Texts of words, some of which are numbers; two labels: what is a number, and nothing in particular."""
    rng = np.random.default_rng(0)
    texts, spans = [], []
    for _ in range(n):
        words = rng.choice(["import", "self", "value", "None", "12", "77"], 8).tolist()
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])
        # the space behind a word belongs to it: no kind of token is without labels
        texts.append(" ".join(words) + " ")
        numbers = [Span(int(s), int(s) + 2, "number") for s, word in zip(starts, words, strict=False) if word.isdigit()]
        other = [
            Span(int(s), int(s) + len(w) + 1, "random")
            for s, w in zip(starts, words, strict=False)
            if rng.random() < 0.3
        ]
        spans.append(numbers + other)
    return LabelledTokens("planted", [*texts, texts[0], HOSTILE], [*spans, spans[0], [Span(0, 8, HOSTILE)]])


def plant(dictionary: Dictionary, labelled: LabelledTokens, latent: int) -> None:
    """Makes a latent read the difference of the means of numbers and other tokens, and nothing else."""
    lm, sae = dictionary.lm, dictionary.sae
    rows: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for text in labelled.texts[:40]:
        (placed,) = encode_with_places(lm, [text])
        x = lm.capture(torch.tensor([placed.ids]), None, dictionary.sites)[dictionary.site][0]
        for row, start, end in zip(x, placed.starts, placed.ends, strict=True):
            if end > start:
                rows[any(sign.isdigit() for sign in text[start:end])].append(row)
    yes, no = (torch.stack(rows[side]) for side in (True, False))
    direction = yes.mean(0) - no.mean(0)
    cut = (yes.mean(0) + no.mean(0)) / 2 @ direction
    with torch.no_grad():
        sae.W_enc[latent] = 100 * direction
        sae.b_enc[latent] = -100 * (cut - sae.b_dec @ direction)


def test_a_planted_feature_is_found_and_a_label_by_chance_has_none(dictionary: Dictionary) -> None:
    labelled = planted_texts()
    plant(dictionary, labelled, 7)
    found = dictionary.by_label(labelled, limit=3)
    assert (found.unit, found.duplicates, found.left_out) == ("tokens", 1, [HOSTILE])
    best = found.features[0]
    assert (best.label, best.feature, best.direction) == ("number", 7, "more")
    assert best.balanced_accuracy > 0.9
    assert best.balanced_accuracy_low is not None
    assert best.balanced_accuracy_high is not None
    assert best.balanced_accuracy_low <= best.balanced_accuracy <= best.balanced_accuracy_high
    for each in found.features[3:]:
        assert each.label == "random"
        assert abs(each.auc - 0.5) < 0.12
    assert found.to_json() == dictionary.by_label(labelled, limit=3).to_json(), "the same again"


def test_test_tokens_stand_in_other_texts_than_those_that_chose(dictionary: Dictionary) -> None:
    """A feature that only knows single texts by heart is worth nothing on the others."""
    labelled = planted_texts(40)
    opened: list[np.ndarray] = []
    from features import by_token_label as module

    real = module.best_features

    def spied(*given: Any) -> Any:
        opened.append(np.array([given[2].sum(), given[3].sum(), len(given[7]), given[7].max() + 1]))
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "best_features", spied)
        found = by_token_label(dictionary, labelled, 1, seed=3)
    for train, test, owners, texts in opened:
        assert test == owners
        assert 4 <= texts <= 22, "owners are the texts of one half"
        assert train > 0
    assert {each.label for each in found.features} == {"number", "random"}


def test_a_token_carries_the_labels_of_the_characters_that_it_shares(dictionary: Dictionary) -> None:
    from features.by_token_label import _read

    labelled = LabelledTokens("one", ["import value 12"], [[Span(7, 12, "a"), Span(13, 14, "b")]])
    tokens = _read(dictionary, labelled, np.array([0]), 100)
    (placed,) = encode_with_places(dictionary.lm, labelled.texts)
    real = [i for i, token in enumerate(placed.ids) if token not in dictionary.lm.special_ids]
    for label, (low, high) in (("a", (7, 12)), ("b", (13, 14))):
        expected = [placed.starts[i] < high and placed.ends[i] > low for i in real]
        assert tokens.of_label[label].tolist() == expected
        assert any(expected)
    x = dictionary.lm.capture(torch.tensor([placed.ids]), None, dictionary.sites)[dictionary.site][0][real]
    dense = dictionary.sae.encode(x).to_dense().detach()
    held = torch.zeros_like(dense)
    held[tokens.codes.texts, tokens.codes.latents] = tokens.codes.values
    torch.testing.assert_close(held, dense, rtol=1e-4, atol=1e-4)


def test_files_of_every_kind_give_the_same_pieces(tmp_path: Path) -> None:
    text = "Ann isn't in Bad  Homburg."
    spans = [[0, 3, "PER"], [13, 25, "LOC"]]
    files = {
        "a.jsonl": json.dumps(
            {"text": text, "spans": [dict(zip(("start", "end", "label"), s, strict=True)) for s in spans]}
        ),
        "b.jsonl": json.dumps({"text": text, "entities": spans}),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content + "\n", encoding="utf-8")
        assert is_labelled_tokens(tmp_path / name)
        found = labelled_tokens(tmp_path / name)
        assert (found.texts, found.spans) == ([text], [[Span(0, 3, "PER"), Span(13, 25, "LOC")]])
    words, tags = ["Ann", "is", "n't", "in", "Bad", "Homburg", "."], ["B-PER", "O", "O", "O", "B-LOC", "I-LOC", "O"]
    expected = [Span(0, 3, "PER"), Span(13, 16, "LOC"), Span(18, 25, "LOC")]
    rows = "".join(f"{i}\t{w}\t{t}\t-\t-\n" for i, (w, t) in enumerate(zip(words, tags, strict=True), 1))
    (tmp_path / "c.iob2").write_text(f"# sent_id = 1\n# text = {text}\n{rows}\n", encoding="utf-8")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": text, "tokens": words, "tags": tags}) + "\n")
    for name in ("c.iob2", "d.jsonl.gz"):
        found = labelled_tokens(tmp_path / name)
        assert (found.texts, found.spans) == ([text], [expected])
    (tmp_path / "e.conll").write_text("-DOCSTART- O\n\nAnn NNP B-PER\nsleeps VB O\n", encoding="utf-8")
    found = labelled_tokens(tmp_path / "e.conll")
    assert found.texts == ["-DOCSTART-", "Ann sleeps"]
    assert found.spans == [[], [Span(0, 3, "PER")]]
    head = (
        "1-2\tisn't\t_\t_\t_\n1\tis\tbe\tAUX\tVBZ\n2\tn't\tnot\tPART\tRB\n2.1\tgone\tgo\tVERB\t_\n3\tin\tin\tADP\tIN\n"
    )
    (tmp_path / "f.conllu").write_text(f"# text = isn't in\n{head}", encoding="utf-8")
    found = labelled_tokens(tmp_path / "f.conllu")
    assert found.spans == [[Span(0, 2, "AUX"), Span(2, 5, "PART"), Span(6, 8, "ADP")]]
    assert labelled_tokens(tmp_path / "f.conllu", "5").spans[0][0].label == "VBZ"
    (tmp_path / "g.jsonl").write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    assert not is_labelled_tokens(tmp_path / "g.jsonl")
    assert not is_labelled_tokens("topics")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "ab", "spans": [[0, 3, "x"]]}',
            r"line 1 cannot be taken \(a span from 0 to 3 in a text of 2",
        ),
        ("a.jsonl", '{"text": "ab", "spans": [["0", 1, "x"]]}', "a span from '0' to 1"),
        ("a.jsonl", '{"tokens": ["a", "b"], "labels": ["x"]}', "2 tokens and 1 labels"),
        ("a.jsonl", '{"tokens": ["a"]}', "no labels"),
        ("a.jsonl", '{"text": "ab", "spans": []}', "1 texts without any label"),
        ("a.jsonl", "{", "line 1 cannot be taken"),
        ("a.conllu", "1\tword\n", "too few columns"),
        ("a.txt", "x", "is no file of labelled tokens"),
    ],
)
def test_damaged_files_are_refused_in_one_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as refused:
        labelled_tokens(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_too_few_tokens_are_refused_and_the_command_answers(
    dictionary: Dictionary, tmp_path: Path, tiny_lm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    few = LabelledTokens("few", ["12 a", "b 12"], [[Span(0, 2, "n")], [Span(2, 4, "n")]])
    with pytest.raises(ValueError, match="no label with 8 tokens in 4 texts of either half"):
        dictionary.by_label(few)
    tiny_lm.model.save_pretrained(tmp_path / "model")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "model")
    labelled = planted_texts(60)
    lines = [json.dumps({"text": t, "spans": s}) for t, s in zip(labelled.texts, labelled.spans, strict=True)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(lines), encoding="utf-8")
    line = ["by-label", str(dictionary.path), str(tmp_path / "numbers.jsonl"), "--model", str(tmp_path / "model")]
    assert cli.run([*line, "--json", "--limit", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unit"], found["left_out"], len(found["features"])) == ("tokens", [HOSTILE], 4)


@pytest.mark.slow
def test_real_names_and_parts_of_speech_are_read(dictionary: Dictionary, real: Path) -> None:
    names = labelled_tokens(real / "labelled" / "ner_uner_ewt" / "en_ewt-ud-dev.iob2")
    assert names.labels == ["LOC", "ORG", "PER"]
    speech = labelled_tokens(real / "labelled" / "pos_ud_ewt" / "en_ewt-ud-dev.conllu.gz")
    assert len(speech.labels) >= 16
    other = labelled_tokens(real / "labelled" / "pos_ud_ewt" / "en_ewt-other-docs.jsonl.gz", "xpos")
    assert "NNP" in other.labels
    found = by_token_label(dictionary, names, 1, most_tokens=8000)
    assert {each.label for each in found.features} | set(found.left_out) == set(names.labels)

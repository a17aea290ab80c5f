"""Features by label: ranked by the AUC of every feature on the training half, reported on texts that chose nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from activations.logistic import auc
from features import Dictionary
from features.by_label import best_threshold, feature_aucs
from sae.labelled_text import LabelledText
from sae.pooling import Pooled, pool_texts


def made_up(n: int = 60, d_sae: int = 7) -> tuple[Pooled, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randint(-2, 4, (n, d_sae), generator=generator).float() * (
        torch.rand(n, d_sae, generator=generator) < 0.6
    )
    dense[:, 3] = 0
    texts, latents = dense.nonzero(as_tuple=True)
    return Pooled(torch.zeros(n, 2), texts, latents, dense[texts, latents], d_sae), dense.numpy()


def test_the_auc_of_every_feature_is_that_of_its_dense_column() -> None:
    pooled, dense = made_up()
    rng = np.random.default_rng(1)
    is_label, chosen = rng.random(60) < 0.4, rng.random(60) < 0.7
    found = feature_aucs(pooled, is_label, chosen)
    for feature in range(7):
        column = torch.from_numpy(dense[chosen, feature])
        assert found[feature] == pytest.approx(auc(column, torch.from_numpy(is_label[chosen])))
    assert found[3] == 0.5


def test_the_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(2)
    values, truth = rng.integers(0, 9, 50).astype(float), rng.random(50) < 0.5
    balanced = {t: ((values > t)[truth].mean() + (values <= t)[~truth].mean()) / 2 for t in np.arange(-0.5, 9, 0.5)}
    chosen = best_threshold(values, truth)
    assert balanced[chosen] == pytest.approx(max(balanced.values()))
    assert best_threshold(np.zeros(4), truth[:4]) == 0


def test_the_largest_activation_of_a_text_is_taken_over_its_tokens(tiny_lm: Any, tiny_sae: Any) -> None:
    texts = ["import self", "value 12 None", "x"]
    pooled = pool_texts(tiny_lm, {"a": tiny_sae}, texts, pooling="max")["a"]
    for number, text in enumerate(texts):
        tokens = torch.tensor(tiny_lm.encode([text]))
        x = tiny_lm.capture(tokens, None, ["resid_post.1"])["resid_post.1"][0]
        expected = tiny_sae.encode(x).to_dense().max(0).values.clamp(min=0)
        held = torch.zeros(96)
        mine = pooled.texts == number
        held[pooled.latents[mine]] = pooled.values[mine]
        assert torch.allclose(held, expected, atol=1e-5)


def test_what_tells_digits_from_letters_holds_on_new_texts_and_shuffled_labels_do_not(dictionary: Dictionary) -> None:
    rng = np.random.default_rng(3)
    digits = ["".join(rng.choice(list("0123456789"), 6)) for _ in range(60)]
    letters = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(60)]
    hostile = ["<script>alert('1')</script>", "'; drop table features; --"]
    texts = digits + letters + digits[:5] + hostile
    labels = ["digits"] * 60 + ["letters"] * 60 + ["digits"] * 5 + ["letters"] * 2
    labelled = LabelledText("signs", texts, labels)
    found = dictionary.by_label(labelled, limit=3)
    assert found.duplicates == 5
    assert [each.label for each in found.features] == ["letters"] * 3
    best = found.features[0]
    assert best.auc_low is not None
    assert best.balanced_accuracy_low is not None
    assert best.balanced_accuracy > 0.85
    assert best.balanced_accuracy_low <= best.balanced_accuracy
    assert (best.auc > 0.5) == (best.direction == "more")
    chances = [abs(each.train_auc - 0.5) for each in found.features]
    assert chances == sorted(chances, reverse=True)
    shuffled = LabelledText("signs", digits + letters, rng.permutation(["a", "b"] * 60).tolist())
    for each in dictionary.by_label(shuffled, limit=3, pooling="mean").features:
        assert abs(each.auc - 0.5) < 0.25
        assert each.auc_low is not None
        assert each.auc_high is not None
        assert each.auc_low <= each.auc <= each.auc_high
    with pytest.raises(ValueError, match="expected at least 8 with and without"):
        dictionary.by_label(LabelledText("few", ["a", "b", "c"], ["x", "y", "y"]))


@pytest.mark.slow
def test_the_subjects_of_real_reviews_have_features(dictionary: Dictionary, real: Path) -> None:
    from sae.labelled_text import labelled_text

    labelled = labelled_text(real / "labelled" / "sentiment" / "subjectivity.jsonl.gz").sample(80)
    found = dictionary.by_label(labelled, limit=2)
    assert all(0 <= each.balanced_accuracy <= 1 for each in found.features)

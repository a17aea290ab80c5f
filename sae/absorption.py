"""Feature absorption: does a latent for a first letter stay silent on words that a more specific latent has swallowed?

Enters: activations of words, their first letters, an SAE. Leaves: how much of each letter's direction is carried by
other latents where the letter's own latents are silent or weak.

For every letter that a dense probe can read (Chanin et al. 2024, "A is for Absorption"; SAEBench, evals/absorption):

1. A logistic probe with direction w, ‖w‖ = 1, is fitted on the training half of the words.
2. The letter's main latents: an L1-regularised probe over the codes ranks latents with positive weight; k grows from 1
   as long as the F1 of a probe on the first k rises by more than 0.03 (feature splitting: more than one main latent).
3. On every test word of the letter that the dense probe recognises, with p = x·w and contributions c_i = a_i · d_i·w:
   * full absorption: all main latents silent, p > 0, and the largest contribution is at least 0.4 p and belongs to a
     latent with cos(d_i, w) ≥ 0.025;
   * absorption fraction, with M = Σ c_i over main latents and A = Σ of the three largest positive c_i over other
     latents with cos(d_i, w) ≥ 0.1: 0 where M ≥ p or A < 0.4 p; 1 where M ≤ 0; else A′ / (A′ + M) with
     A′ = min(A, p − M).
4. A letter's rate is the sum over its recognised words by their number; the SAE's is the mean over letters.

Contributions use the decoder rows as they are; SAEBench multiplies activations by cosines, which is the same for unit
rows.

A model that does not know first letters has none to absorb: unless enough letters reach an F1 of 0.6 with the dense
probe, `NotMeasurable` says so. The published bounds are meant for models of two billion parameters and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.logistic import Probe, f1, fit
from activations.progress import progress
from sae.model import SAE
from sae.pooling import Pooled, encoded_rows

MIN_PROBE_F1 = 0.6
MIN_LETTERS = 20
MIN_WORDS = 10
"""Words of a letter on each half, below which the letter is left out."""
F1_JUMP = 0.03
MAX_MAIN_LATENTS = 10
CANDIDATES = 64
"""Latents with the largest mean differences among which the L1 probe chooses."""
FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
MIN_SHARE = 0.4
MAX_ABSORBERS = 3
SILENT = 1e-8
EXAMPLES = 10
ASKING = " has the first letter:"


class NotMeasurable(ValueError):
    """The model, the SAE or the texts cannot carry this measurement; the message names what is missing."""


@dataclass(frozen=True, kw_only=True)
class LetterAbsorption:
    """One first letter."""

    letter: str
    probe_f1: float
    """Of the dense probe on test words."""
    main_f1: float
    """Of the probe on the main latents alone."""
    main_latents: tuple[int, ...]
    recognised: int
    """Test words of the letter that the dense probe recognises."""
    full_absorption: float
    """Share of these with all main latents silent and one other in their place."""
    absorption_fraction: float
    """Mean share of the direction that other latents carry in the main ones' place."""
    absorbers: tuple[int, ...]
    """Latents that stood in most often, at most five."""


@dataclass(frozen=True)
class AbsorptionReport:
    """Absorption of one SAE, by letter."""

    letters: tuple[LetterAbsorption, ...]

    @property
    def full_absorption(self) -> float:
        return sum(letter.full_absorption for letter in self.letters) / len(self.letters)

    @property
    def absorption_fraction(self) -> float:
        return sum(letter.absorption_fraction for letter in self.letters) / len(self.letters)

    @property
    def main_latents(self) -> float:
        """Main latents a letter, on average: above 1 where letters are split."""
        return sum(len(letter.main_latents) for letter in self.letters) / len(self.letters)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the three summary figures, one record each."""
        names = ("absorption_fraction", "full_absorption", "main_latents")
        return [{"metric": name, "value": getattr(self, name)} for name in names]

    def to_json(self) -> dict[str, Any]:
        """Returns summary and letters, ready for JSON."""
        return {row["metric"]: row["value"] for row in self.rows()} | {
            "letters": [asdict(each) for each in self.letters]
        }


@torch.no_grad()
def measure_absorption(
    sae: SAE,
    x: Float[Tensor, "words d_in"],
    letters: Sequence[str],
    *,
    seed: int = 0,
    min_letters: int = MIN_LETTERS,
    min_probe_f1: float = MIN_PROBE_F1,
    source: str = "the model",
) -> AbsorptionReport:
    """Measures absorption from the activations of words; half of them, drawn by seed, train the probes.

    Raises:
        NotMeasurable: fewer than `min_letters` letters are read by the dense probe.
    """
    _check_wiring(sae)
    if len(letters) != len(x):
        raise ValueError(f"got {len(letters)} letters for {len(x)} words, expected one each: pair them again")
    x = x.float().cpu()
    generator = torch.Generator().manual_seed(seed)
    train = torch.zeros(len(x), dtype=torch.bool)
    train[torch.randperm(len(x), generator=generator)[: len(x) // 2]] = True
    probes: dict[str, tuple[Probe, float]] = {}
    marked = {letter: torch.tensor([each == letter for each in letters]) for letter in sorted(set(letters))}
    for letter, y in marked.items():
        if min(int((y & train).sum()), int((y & ~train).sum())) < MIN_WORDS:
            continue
        probe = fit(x[train], y[train], balanced=True)
        quality = f1(probe.scores(x[~train]), y[~train])
        if quality > min_probe_f1:
            probes[letter] = (probe, quality)
    if len(probes) < min_letters:
        raise NotMeasurable(
            f"absorption: the dense probe reads {len(probes)} of {len(marked)} first letters of {source} with F1 above "
            f"{min_probe_f1}, expected at least {min_letters}: use a larger model (two billion parameters and more)"
        )
    codes, W_dec = encoded_rows(sae, x), sae.W_dec.detach().float().cpu()
    found = [
        _letter(W_dec, codes, marked[letter], train, letter, probe, quality)
        for letter, (probe, quality) in probes.items()
    ]
    return AbsorptionReport(tuple(found))


def word_activations(
    lm: Any, sae: SAE, *, max_words: int = 12_000, seed: int = 0, batch_words: int = 64
) -> tuple[Float[Tensor, "words d_in"], list[str]]:
    """Returns the activations of the vocabulary's words, each in a prompt that asks for its first letter, and the
    letters.

    Words are the tokens of one word each (letters only, a blank before them allowed). Ten solved examples, drawn by
    seed, stand before each word; the activation is read at the word itself.

    Raises:
        NotMeasurable: the vocabulary holds too few words.
    """
    _check_wiring(sae)
    words = vocabulary_words(lm)
    if len(words) < 2 * MIN_WORDS * MIN_LETTERS:
        raise NotMeasurable(
            f"absorption: the vocabulary of {lm.name} holds {len(words)} words of one token, expected at least "
            f"{2 * MIN_WORDS * MIN_LETTERS}: use a model with a larger vocabulary"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(words), generator=generator).tolist()
    examples = [words[place] for place in order[:EXAMPLES]]
    chosen = [words[place] for place in order[EXAMPLES : EXAMPLES + max_words]]
    shots = "".join(f"{word.strip()}{ASKING} {word.strip()[0].upper()}\n" for _, word in examples)
    bos = lm.tokenizer.bos_token_id if (sae.metadata.get("data") or {}).get("prepend_bos", False) else None
    before, after = lm.encode([shots])[0], lm.encode([ASKING])[0]
    special = lm.special_ids
    before = [*([bos] if bos is not None and before[:1] != [bos] else []), *before]
    after = [token for token in after if token not in special]
    rows = []
    with progress("words", len(chosen), "words") as advance:
        for start in range(0, len(chosen), batch_words):
            part = chosen[start : start + batch_words]
            tokens = torch.tensor([[*before, token, *after] for token, _ in part])
            at = lm.capture(tokens, torch.ones_like(tokens, dtype=torch.bool), [sae.site])[sae.site]
            rows.append(at[:, len(before)].flatten(1).float().cpu())
            advance(len(part))
    return torch.cat(rows), [word.strip()[0].lower() for _, word in chosen]


def vocabulary_words(lm: Any) -> list[tuple[int, str]]:
    """Returns the tokens that are a word: ASCII letters only, two or more, after at most one blank."""
    words = []
    for token in range(len(lm.tokenizer)):
        if token in lm.special_ids:
            continue
        word = lm.tokenizer.decode([token])
        bare = word.removeprefix(" ")
        if len(bare) > 1 and bare.isascii() and bare.isalpha():
            words.append((token, word))
    return words


def _check_wiring(sae: SAE) -> None:
    if sae.config.n_sites > 1 or sae.config.predicts_target:
        raise NotMeasurable(
            f"absorption: architecture `{sae.config.architecture}` writes elsewhere than it reads, expected an SAE of "
            "one site: leave it out"
        )


def _letter(
    W_dec: Tensor, codes: Pooled, y: Tensor, train: Tensor, letter: str, probe: Probe, quality: float
) -> LetterAbsorption:
    main, main_f1 = main_latents(codes, y, train)
    direction = (probe.weight / probe.weight.norm()).float()
    along = W_dec @ direction
    cosines = along / W_dec.norm(dim=1).clamp(min=1e-12)
    recognised = y & ~train & (probe.scores(codes.x) > 0)
    words, projections = codes.dense(recognised), codes.x[recognised] @ direction
    contributions = words * along
    is_other = torch.ones(len(along), dtype=torch.bool)
    is_other[main] = False

    eligible = contributions.where(is_other & (cosines >= FRACTION_COSINE), 0.0).clamp(min=0)
    top = eligible.topk(min(MAX_ABSORBERS, eligible.shape[1]), dim=1)
    stand_in, own = top.values.sum(1), contributions[:, main].sum(1)
    replaced = torch.minimum(stand_in, projections - own)
    fraction = torch.where(own <= 0, 1.0, (replaced / (replaced + own)).clamp(0, 1))
    fraction = torch.where(
        (own >= projections) | (stand_in < MIN_SHARE * projections) | (projections <= 0), 0.0, fraction
    )

    strongest = contributions.max(dim=1)
    is_full = (words[:, main].abs() < SILENT).all(1) & (projections > 0)
    is_full &= (cosines[strongest.indices] >= FULL_COSINE) & (strongest.values >= MIN_SHARE * projections)
    count = int(recognised.sum())
    who, how_often = torch.unique(top.indices[fraction > 0, 0], return_counts=True)
    return LetterAbsorption(
        letter=letter,
        probe_f1=quality,
        main_f1=main_f1,
        main_latents=tuple(main.tolist()),
        recognised=count,
        full_absorption=float(is_full.double().sum()) / max(1, count),
        absorption_fraction=float(fraction.double().sum()) / max(1, count),
        absorbers=tuple(who[how_often.sort(descending=True, stable=True).indices[:5]].tolist()),
    )


def main_latents(codes: Pooled, y: Bool[Tensor, " n"], train: Bool[Tensor, " n"]) -> tuple[Int[Tensor, " k"], float]:
    """Returns the latents that stand for a class, and the F1 of a probe on them."""
    difference = codes.mean(train & y) - codes.mean(train & ~y)
    candidates = difference.topk(min(CANDIDATES, len(difference))).indices
    columns = codes.columns(candidates)
    order = _l1_weights(columns[train], y[train]).sort(descending=True, stable=True).indices
    best, chosen = -1.0, order[:1]
    for k in range(1, min(MAX_MAIN_LATENTS, len(order)) + 1):
        few = columns[:, order[:k]]
        quality = f1(fit(few[train], y[train], balanced=True).scores(few[~train]), y[~train])
        if quality <= best + F1_JUMP:
            break
        best, chosen = quality, order[:k]
    return candidates[chosen], best


def _l1_weights(x: Tensor, y: Tensor, decay: float = 0.01, steps: int = 300) -> Tensor:
    """Returns the weights of a balanced logistic regression with mean loss + decay · ‖w‖₁, by accelerated proximal
    steps.

    Columns are divided by their largest value, not centred: codes keep their zeros.
    """
    z = (x / x.abs().amax(0).clamp(min=1e-12)).double()
    yes = y.double().sum()
    weights = torch.where(y, 0.5 / yes, 0.5 / (len(y) - yes))
    z1 = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype, device=z.device)], 1)
    bound = torch.linalg.eigvalsh((z1 * weights[:, None]).T @ z1)[-1] / 4
    w = previous = torch.zeros(z1.shape[1], dtype=z.dtype, device=z.device)
    for step in range(1, steps + 1):
        ahead = w + (step - 1) / (step + 2) * (w - previous)
        previous = w
        moved = ahead - z1.T @ (weights * ((z1 @ ahead).sigmoid() - y.double())) / bound
        w = torch.cat([moved[:-1].sign() * (moved[:-1].abs() - decay / bound).clamp(min=0), moved[-1:]])
    return w[:-1] / x.abs().amax(0).clamp(min=1e-12)

"""The logit lens: what the model would predict if it stopped after each layer.

    logit_lens(lm, text, top=5, target=None, sites=None, lens=None) -> LogitLens

Enters: a model and one text. Leaves: for each place in the residual stream and each token, what the model's own end
(final norm, head, softcap: `activations.readout`) makes of the stream there: the most probable tokens, the probability
and rank of the expected token, the entropy, the divergence from the final distribution, and the layer from which on the
first choice stays. The last layer is the model's own prediction, exactly.

    p_l = softmax(readout(h_l));  entropy −Σ p_l ln p_l;  KL(p_final ‖ p_l) = Σ p_final (ln p_final − ln p_l), in nats

Early layers often look like noise although what they hold can be read with a trained translation (`lens`, a
`tuned_lens.TunedLens`): the basis of the stream drifts over layers. A low rank early on says that a token can be read
there, not that later layers use it.

Memory: one pass that keeps the stream at each layer, and then distributions of `CHUNK_VALUES` entries at a time: never
layers × tokens × vocabulary.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); divergence and entropy by layer: Belrose et al. 2023
(arXiv 2303.08112).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import expected_ids, token_id, tokens_of
from activations.analyses.plain import plain, to_json
from activations.readout import check_readout, readout, stream_sites

if TYPE_CHECKING:
    from activations.analyses.tuned_lens import TunedLens
    from activations.model import LanguageModel

CHUNK_VALUES = 1 << 24


@dataclass(frozen=True)
class LogitLens:
    """What can be read at each place of the stream and each token. Axes: places (in order of execution), tokens."""

    model: str
    text: str | None
    """The text, None where tokens were given."""
    sites: tuple[str, ...]
    """Places in the residual stream: `resid_pre.0` (the embeddings), then `resid_post.L`; the last is the end."""
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """The faithful text of each token."""
    positions: tuple[int, ...]
    """Where each of these tokens stands in the text; all of them unless some were asked for."""
    top_ids: Int[np.ndarray, "sites tokens top"]
    """The most probable tokens, most probable first."""
    top_tokens: tuple[tuple[tuple[str, ...], ...], ...]
    """Their texts, [site][token][rank]."""
    top_probabilities: Float[np.ndarray, "sites tokens top"]
    target_ids: Int[np.ndarray, " tokens"]
    """The token that is asked about at each position: the one that follows in the text (the token itself for BERT
    and T5), or the given target. −1 where there is none (a decoder's last token)."""
    target_tokens: tuple[str | None, ...]
    target_probabilities: Float[np.ndarray, "sites tokens"]
    """NaN where there is no target."""
    target_ranks: Int[np.ndarray, "sites tokens"]
    """0 is the most probable token (ties count for the target); −1 where there is no target."""
    entropies: Float[np.ndarray, "sites tokens"]
    """Nats."""
    divergences: Float[np.ndarray, "sites tokens"]
    """KL(final ‖ here) in nats; 0 at the end."""
    converged_at: Int[np.ndarray, " tokens"]
    """Index into `sites` of the first place from which on the most probable token is the final one."""
    is_tuned: bool = False
    """Places before the end were read through a trained translation."""

    @property
    def convergence_depths(self) -> Float[np.ndarray, " tokens"]:
        """`converged_at` as a share of the way: 0 at the first place, 1 where only the end decides."""
        return self.converged_at / max(1, len(self.sites) - 1)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each place and token."""
        return [
            {
                "site": site,
                "position": self.positions[position],
                "token": token,
                "top": list(self.top_tokens[place][position]),
                "probabilities": plain(self.top_probabilities[place, position]),
                "target": self.target_tokens[position],
                "target_probability": plain(self.target_probabilities[place, position]),
                "target_rank": None if self.target_ids[position] < 0 else int(self.target_ranks[place, position]),
                "entropy": plain(self.entropies[place, position]),
                "kl_to_final": plain(self.divergences[place, position]),
                "is_final_choice": bool(place >= self.converged_at[position]),
            }
            for place, site in enumerate(self.sites)
            for position, token in enumerate(self.tokens)
        ]

    def to_json(self) -> str:
        """Returns all fields; what does not exist is null."""
        return to_json(self)


@torch.no_grad()
def logit_lens(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    *,
    top: int = 5,
    target: str | int | None = None,
    sites: Sequence[str] | None = None,
    positions: Sequence[int] | None = None,
    lens: TunedLens | None = None,
) -> LogitLens:
    """Reads the residual stream of a text as predictions, layer by layer.

    Interventions that are at work (`lm.intervene`) are seen. `target` is a token asked about at every position, by its
    text or id; None asks about the token that the text itself has there. `sites` are places of width `d_model`
    (default: the embeddings and every layer's output); the end of the stream is added where it is missing. `positions`
    are the tokens that are read, by index (default: all): the head over a large vocabulary takes most of the time.
    `lens` translates what stands at its places before it is read; by default these are then the places asked about.

    Raises:
        ValueError: empty or too long text, a target of several tokens, a model without a head over tokens, a site that
            is not part of the residual stream, a position outside the text, a lens of other weights or places.
    """
    if top < 1:
        raise ValueError(f"got top={top}, expected at least 1: ask for one token or more")
    tokens = tokens_of(lm, text)
    check_readout(lm)
    if lens is not None:
        lens.check(lm)
    places = _places(lm, (stream_sites(lm) if lens is None else lens.sites) if sites is None else sites)
    asked = expected_ids(lm, tokens) if target is None else [token_id(lm, target)] * tokens.shape[1]
    kept = range(tokens.shape[1]) if positions is None else list(positions)
    if any(not 0 <= place < tokens.shape[1] for place in kept) or not len(kept):
        raise ValueError(
            f"got positions {list(kept)}, expected some of 0 to {tokens.shape[1] - 1}: name tokens of the text"
        )
    asked = [asked[place] for place in kept]
    stream = {site: value[0] for site, value in lm.capture(tokens, None, places).items()}
    if positions is not None:
        stream = {site: value[list(kept)] for site, value in stream.items()}
    if lens is not None:
        stream |= {site: lens.translate(site, stream[site]) for site in places if site != lm.final_site}
    ids = [int(tokens[0, place]) for place in kept]
    top = min(top, lm.vocab_size)
    chunk = max(1, CHUNK_VALUES // lm.vocab_size)
    wanted = torch.tensor(asked, device=lm.device)
    parts = [
        _read(lm, [stream[site][start : start + chunk] for site in places], wanted[start : start + chunk], top)
        for start in range(0, len(asked), chunk)
    ]
    joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    top_ids = joined["top_ids"]
    settled = np.logical_and.accumulate((top_ids[:, :, 0] == top_ids[-1, :, 0])[::-1], axis=0).sum(0)
    strings = lm.token_strings(range(lm.vocab_size))
    return LogitLens(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        sites=tuple(places),
        token_ids=tuple(ids),
        tokens=tuple(lm.token_strings(ids)),
        positions=tuple(kept),
        top_ids=top_ids,
        top_tokens=tuple(tuple(tuple(strings[each] for each in row) for row in place) for place in top_ids.tolist()),
        top_probabilities=joined["top_probabilities"],
        target_ids=np.asarray(asked),
        target_tokens=tuple(strings[each] if each >= 0 else None for each in asked),
        target_probabilities=joined["target_probabilities"],
        target_ranks=joined["target_ranks"],
        entropies=joined["entropies"],
        divergences=joined["divergences"],
        converged_at=len(places) - settled,
        is_tuned=lens is not None,
    )


def _places(lm: LanguageModel, sites: Sequence[str]) -> list[str]:
    """The sites in order of execution, the end of the stream last."""
    for site in sites:
        if not lm.site_map.binding(site).site.kind.startswith("resid"):
            raise ValueError(
                f"site {site!r} is no part of the residual stream, expected resid_pre, resid_mid or resid_post: "
                "name one of these"
            )
    return sorted({*sites, lm.final_site}, key=lm.sites().index)


def _read(lm: LanguageModel, stream: list[Tensor], wanted: Tensor, top: int) -> dict[str, np.ndarray]:
    """Reads a few tokens at all places; arrays are [places, tokens, …]."""
    final = _log_probabilities(lm, stream[-1])
    exists = wanted >= 0
    found: dict[str, list[Tensor]] = {}
    for rows in stream:
        here = final if rows is stream[-1] else _log_probabilities(lm, rows)
        best = here.topk(top, dim=-1)
        at_target = here.gather(1, wanted.clamp(min=0)[:, None])
        probability = at_target[:, 0].exp().masked_fill(~exists, torch.nan)
        rank = (here > at_target).sum(1).masked_fill(~exists, -1)
        shares = here.exp()
        values = {
            "top_ids": best.indices,
            "top_probabilities": best.values.exp(),
            "target_probabilities": probability,
            "target_ranks": rank,
            # 0 · −∞ is 0: a softmax that underflows has no share in the sum
            "entropies": -torch.where(shares > 0, shares * here, 0.0).sum(1),
            "divergences": torch.where(final.exp() > 0, final.exp() * (final - here), 0.0).sum(1),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(value).cpu().numpy() for name, value in found.items()}


def _log_probabilities(lm: LanguageModel, rows: Tensor) -> Float[Tensor, "n vocab"]:
    """In float32, or float64 where the model is."""
    logits = readout(lm, rows)
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)

"""What a language model loses when it computes with an SAE's reconstruction.

Enters: SAEs, a language model, batches of tokens without padding. Leaves: cross-entropies and KL divergences in nats.

1. The untouched model runs once for each batch of tokens, for all SAEs.
2. Each distinct set of written sites is set to zero once: the ablation that recovered cross-entropy and the KL score
   are measured against (SAEBench, core evaluation).
3. Each SAE writes in the model's place. An SAE of one site rewrites it. A transcoder reads its source site in the same
   pass and writes its prediction at the target. A cross-layer transcoder does so at every layer, each time from the
   sites read so far: later sites' latents write nothing there. A crosscoder needs all sites at once: it reads them in
   the untouched pass, and their reconstructions are written together, then one by one. Where it compares two models,
   the first one's sites are written, whose predictions are measured.
4. Special tokens keep their own activations where the SAE was trained without them, and so do those of other roles
   than the conversations' that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.pairs import is_compared
from activations.progress import progress
from sae.codes import Codes
from sae.model import SAE, normalized
from sae.standard_errors import RatioSums

Tokens = Int[Tensor, "_ seq"] | tuple[Int[Tensor, "_ seq"], Bool[Tensor, "_ seq"]]
"""Tokens without padding, or these with a mask of those that an SAE rewrites."""
Edits = dict[str, Callable[[Tensor], Tensor]]


def reconstruct(sae: SAE, x: Float[Tensor, "n ..."], codes: Codes) -> Float[Tensor, "n ..."]:
    """Returns what an SAE writes for rows whose codes are known, a skip transcoder's linear part included."""
    written = sae.decode(codes)
    if sae.config.architecture != "skip_transcoder":
        return written
    skipped = normalized(x.to(sae.W_enc.dtype), sae.config)[0] @ sae.tensors["W_skip"].T
    return written + (skipped if codes.scale is None else skipped * codes.scale[:, None])


@torch.no_grad()
def downstream_figures(
    saes: Mapping[str, SAE],
    lm: Any,
    tokens: Iterable[Tokens],
) -> dict[str, dict[str, Any]]:
    """Returns the downstream fields of `sae.evaluation.Metrics` for every SAE.

    Tokens that come with a mask keep their own activations where it is False.

    Raises:
        ValueError: no tokens.
    """
    shares = {name: _Share(sae) for name, sae in saes.items()}
    gathered = sorted({site for sae in saes.values() if _needs_all_sites(sae) for site in sae.sites})
    count = 0
    with progress("cross-entropy", None, "tok") as advance:
        for given in tokens:
            batch, rewritten = given if isinstance(given, tuple) else (given, None)
            special = torch.isin(batch, torch.tensor(sorted(lm.special_ids), dtype=batch.dtype, device=batch.device))
            clean_at: dict[str, Tensor] = {}
            with lm.intervene({site: _recorder(clean_at, site) for site in gathered}):
                clean = _Predictions(lm, batch)
            if unread := [site for site in gathered if site not in clean_at]:  # in a second model
                clean_at |= lm.capture(batch, None, unread)
            zero: dict[tuple[str, ...], Tensor] = {}
            for share in shares.values():
                kept = special if excludes_special_tokens(share.sae) else torch.zeros_like(special)
                kept = kept if rewritten is None else kept | ~rewritten.to(kept.device)
                share.measure(lm, batch, kept, clean, clean_at, zero)
            count += clean.nll.numel()
            advance(batch.numel())
    if not count:
        raise ValueError(
            "evaluate got no tokens, expected batches of [batch, seq] with seq of at least 2: check the data"
        )
    return {name: share.figures(count) for name, share in shares.items()}


class _Predictions:
    """Log-probabilities of one run over a batch, and the loss on each next token."""

    def __init__(self, lm: Any, batch: Tensor) -> None:
        self.log_probs = lm.logits(batch)[:, :-1].float().log_softmax(-1)
        targets = batch[:, 1:].to(self.log_probs.device, torch.long)
        self.nll = -self.log_probs.gather(2, targets[..., None]).squeeze(-1)

    def sums(self, clean: _Predictions) -> Float[Tensor, "batch 2"]:
        """Returns the loss and the divergence from `clean`, summed over each sequence."""
        kl = (clean.log_probs.exp() * (clean.log_probs - self.log_probs)).sum(-1)
        return torch.stack([self.nll.double().sum(1), kl.double().sum(1)], 1).cpu()


@dataclass
class _Share:
    """One SAE's sums: untouched loss, then loss and divergence with the reconstruction and with zeros, each by cut."""

    sae: SAE
    sums: list[RatioSums] = field(default_factory=list)
    tokens_fired: Tensor | None = None
    sequences_fired: Tensor | None = None

    def cuts(self) -> list[tuple[str, ...]]:
        """All written sites together, then one by one where a crosscoder writes several."""
        sites = tuple(site for site in self.sae.target_sites if not is_compared(site))
        return [sites, *((site,) for site in sites)] if _needs_all_sites(self.sae) else [sites]

    def measure(
        self,
        lm: Any,
        batch: Tensor,
        kept: Tensor,
        clean: _Predictions,
        clean_at: Mapping[str, Tensor],
        zero: dict[tuple[str, ...], Tensor],
    ) -> None:
        cuts = self.cuts()
        if not self.sums:
            self.sums = [RatioSums() for _ in cuts]
        writer = _Writer(self, kept, clean_at)
        total = clean.nll.double().sum(1, keepdim=True).cpu()
        for sums, cut in zip(self.sums, cuts, strict=True):
            with lm.intervene(writer.edits(cut)):
                ours = _Predictions(lm, batch).sums(clean)
            if cut not in zero:
                with lm.intervene(dict.fromkeys(cut, torch.zeros_like)):
                    zero[cut] = _Predictions(lm, batch).sums(clean)
            for sequence in torch.cat([total, ours, zero[cut]], 1):
                sums.add(sequence)

    def count(self, codes: Codes, kept: Tensor) -> None:
        """Counts the tokens and the sequences in which latents fire."""
        d_sae, device = self.sae.config.d_sae, self.sae.W_dec.device
        if self.tokens_fired is None or self.sequences_fired is None:
            self.tokens_fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
            self.sequences_fired = torch.zeros_like(self.tokens_fired)
        rows, slots = (codes.active & ~kept.to(device).reshape(-1, 1)).nonzero(as_tuple=True)
        latents = codes.indices[rows, slots].long()
        self.tokens_fired += torch.bincount(latents, minlength=d_sae)
        once = torch.unique(rows // kept.shape[1] * d_sae + latents) % d_sae
        self.sequences_fired += torch.bincount(once, minlength=d_sae)

    def figures(self, count: int) -> dict[str, Any]:
        recovered, error, summed = [], None, []
        for number, sums in enumerate(self.sums):
            groups = sums.groups()
            clean, ours, _, zero, _ = groups.sum(0).tolist()
            recovered.append((zero - ours) / (zero - clean) if zero != clean else float("nan"))
            if number == 0:
                summed = (groups.sum(0) / count).tolist()
                error = sums.ratio_error(groups[:, 3] - groups[:, 1], groups[:, 3] - groups[:, 0])
        clean_ce, sae_ce, kl, zero_ce, kl_zero = summed
        return {
            "ce_clean": clean_ce,
            "ce_sae": sae_ce,
            "ce_zero": zero_ce,
            "ce_recovered": recovered[0],
            "ce_recovered_se": error,
            "kl": kl,
            "kl_zero": kl_zero,
            "kl_score": 1 - kl / kl_zero if kl_zero else float("nan"),
            "consistent_activation": self._consistency(),
            "n_tokens": count,
            "ce_recovered_by_site": tuple(recovered[1:]),
        }

    def _consistency(self) -> float | None:
        if self.tokens_fired is None or self.sequences_fired is None:
            return None
        fired = self.sequences_fired > 0
        return float((self.tokens_fired[fired] / self.sequences_fired[fired]).double().mean()) if fired.any() else None


class _Writer:
    """The edits of one SAE in one batch; what it writes at a site depends on what it has read by then."""

    def __init__(self, share: _Share, kept: Tensor, clean_at: Mapping[str, Tensor]) -> None:
        self.share, self.sae, self.kept, self.clean_at = share, share.sae, kept, clean_at
        self.read: dict[str, Tensor] = {}
        self.whole: Tensor | None = None

    def edits(self, cut: Sequence[str]) -> Edits:
        """Returns the edits that write the reconstruction at the sites `cut`."""
        self.read.clear()
        sae = self.sae
        if not sae.config.predicts_target and not _needs_all_sites(sae):
            return {cut[0]: lambda x: self._written(x, self._predict(_flat(x)))}
        edits: Edits = {}
        if sae.config.predicts_target:
            edits |= {site: _recorder(self.read, site) for site in sae.sites}
        for site in cut:
            place = sae.target_sites.index(site)
            writes = self._target if sae.config.predicts_target else self._site
            edits[site] = _then(edits.get(site), _at(writes, place))
        return edits

    def _predict(self, x: Tensor, is_whole: bool = True) -> Tensor:
        x = x.float().to(self.sae.W_dec.device)
        codes = self.sae.encode(x)
        if is_whole:
            self.share.count(codes, self.kept)
        return reconstruct(self.sae, x, codes)

    def _target(self, value: Tensor, place: int) -> Tensor:
        sae = self.sae
        if sae.config.n_sites == 1:
            return self._written(value, self._predict(_flat(self.read[sae.site])))
        known = [self.read.get(site) for site in sae.sites]
        if known[place] is None:
            raise ValueError(
                f"site {sae.target_sites[place]} is computed before {sae.sites[place]}, expected after it: the "
                "transcoder's target must follow its source"
            )
        first = next(x for x in known if x is not None)
        x = torch.stack([_flat(torch.zeros_like(first) if x is None else x) for x in known], 1)
        # codes are whole once the last site has been read
        written = self._predict(x, is_whole=place + 1 == len(known))[:, place]
        return self._written(value, written)

    def _site(self, value: Tensor, place: int) -> Tensor:
        if self.whole is None:
            self.whole = self._predict(torch.stack([_flat(self.clean_at[site]) for site in self.sae.sites], 1))
        return self._written(value, self.whole[:, place])

    def _written(self, value: Tensor, rows: Tensor) -> Tensor:
        written = rows.reshape(value.shape).to(value.device, value.dtype)
        kept = self.kept.to(value.device).reshape(*self.kept.shape, *[1] * (value.ndim - 2))
        return torch.where(kept, value, written)


def excludes_special_tokens(sae: SAE) -> bool:
    """Whether the SAE was trained without special tokens, which then keep their own activations."""
    return bool((sae.metadata.get("data") or {}).get("exclude_special_tokens", True))


def _needs_all_sites(sae: SAE) -> bool:
    return sae.config.n_sites > 1 and not sae.config.predicts_target


def _flat(x: Tensor) -> Tensor:
    """Returns rows [batch · seq, d] of activations [batch, seq, …]."""
    return x.reshape(x.shape[0] * x.shape[1], -1)


def _recorder(into: dict[str, Tensor], site: str) -> Callable[[Tensor], Tensor]:
    def record(x: Tensor) -> Tensor:
        into[site] = x
        return x

    return record


def _at(write: Callable[[Tensor, int], Tensor], place: int) -> Callable[[Tensor], Tensor]:
    return lambda value: write(value, place)


def _then(first: Callable[[Tensor], Tensor] | None, second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return second if first is None else lambda value: second(first(value))

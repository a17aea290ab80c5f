"""End-to-end training: the dictionary is judged by what the language model does with its reconstruction.

Enters: a language model (anything like `activations.LanguageModel`), a site, batches of whole sequences. Leaves: loss
and gradients of the SAE's weights for the common trainer (`sae.learner.Objective`). With logits ℓ of the plain model
and ℓ̂ of the model that computes with x̂ = SAE(x) in the place of x at the site, over a batch of n kept rows:

    L = u · ( D + w · Σ‖x̂ − x‖² / Σ‖x − x̄‖² + v · mean over later layers of Σ‖ĥ − h‖² / Σ‖h − h̄‖² + α · AuxK ) + P

    D = mean KL(softmax ℓ ‖ softmax ℓ̂) over tokens          (`kl`)
    D = mean −ln p̂ of the next token                         (`ce`)

w is `reconstruction_weight`, v `downstream_weight`, h the residual stream after each later layer; u, AuxK and the
penalty P are those of the architecture (`sae.architectures.architecture`). With w = v = 0 this is SAE_e2e, with v > 0
SAE_e2e+downstream, of Braun et al. 2024 (arXiv 2405.12241). Special tokens and outlying rows keep their activations.
Two passes through the model a step (one for `ce`), and one backward from the logits to the site: for small models.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.architectures import Architecture, Forward, Moment
from sae.model import normalized
from sae.shares import batch_rows, share_of_mean, total_variance
from sae.step import StepResult


class EndToEnd:
    """The aim of one SAE's training: next-token predictions that its reconstruction leaves as they are, or as good."""

    def __init__(
        self,
        lm: Any,
        site: str,
        context_tokens: int,
        aim: Literal["kl", "ce"] = "kl",
        *,
        reconstruction_weight: float = 0.0,
        downstream_weight: float = 0.0,
        norm_limit: float | None = None,
    ) -> None:
        """Prepares the objective; `norm_limit` is the largest norm of a row that the SAE reads and writes.

        Raises:
            ValueError: the model is no decoder, or no layer follows the site where `downstream_weight` asks for them.
        """
        if lm.kind != "decoder":
            raise ValueError(
                f"{lm.name} predicts no next token, expected a decoder for end-to-end training: use "
                "objective=reconstruction"
            )
        self.lm, self.site, self.context_tokens, self.aim = lm, site, context_tokens, aim
        self.reconstruction_weight, self.downstream_weight = reconstruction_weight, downstream_weight
        self.norm_limit = norm_limit
        self.later = _later_sites(lm, site) if downstream_weight else []

    def rows(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "m d_in"]:
        """Returns the rows that the SAE reads in a batch of sequences."""
        tokens, kept = self._sequences(batch)
        x = self.lm.capture(tokens, None, [self.site])[self.site]
        rows = x.flatten(0, 1).flatten(1).float()
        rows = rows[self._chosen(rows, kept)]
        if not len(rows):
            raise ValueError(
                f"a batch of {tokens.numel()} tokens holds no row to train on, expected some: raise batch_rows or "
                "data.exclude_outlier_norms"
            )
        return rows

    def step(
        self,
        architecture: Architecture,
        parameters: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        moment: Moment,
        scale: Float[Tensor, " d_in"],
    ) -> StepResult:
        """Returns loss and gradients of one batch of sequences; only the SAE's weights get gradients."""
        tokens, kept = self._sequences(batch)
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        clean = self._run(tokens) if self.aim == "kl" or self.later else None
        made: list[tuple[Forward, Tensor]] = []

        def replace(x: Tensor) -> Tensor:
            rows = x.flatten(0, 1).flatten(1).float()
            chosen = self._chosen(rows, kept).nonzero().squeeze(1)
            read, length, shift = normalized(rows[chosen].detach(), architecture.config)
            forward = architecture.forward(leaves, read * scale, moment)
            made.append((forward, read * scale))
            written = forward.x_hat / scale
            written = written if length is None else written * length[:, None]
            written = written if shift is None else written + shift[:, None]
            return rows.index_copy(0, chosen, written).to(x.dtype).view_as(x)

        with torch.enable_grad():
            with self.lm.intervene({self.site: replace}):
                ours = self._run(tokens, with_gradients=True)
            ((forward, x),) = made
            total = self._divergence(clean, ours, tokens) + self._side_terms(architecture, leaves, forward, x, moment)
            if self.downstream_weight and clean is not None:
                total = total + self.downstream_weight * _downstream_error(clean[1], ours[1])
            unit = total_variance(x) / batch_rows(x) if architecture.is_penalised else 1.0
            loss = unit * total + forward.penalty
            given = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(value) if gradient is None else gradient
            for (name, value), gradient in zip(leaves.items(), given, strict=True)
        }
        active = forward.activations.detach() != 0
        return StepResult(
            gradients,
            loss.detach(),
            (x - forward.x_hat.detach()).pow(2).sum(),
            total_variance(x),
            active.any(0),
            active.sum().to(x.dtype) / batch_rows(x),
        )

    def _side_terms(
        self, architecture: Architecture, leaves: dict[str, Tensor], forward: Forward, x: Tensor, moment: Moment
    ) -> Tensor:
        """Returns the weighted reconstruction error and the auxiliary loss of dead latents."""
        terms = x.new_zeros(())
        if self.reconstruction_weight:
            error = architecture.reconstruction_loss(leaves, forward, x, x, moment)
            terms = terms + self.reconstruction_weight * error
        alpha, dead = architecture.config.auxk_alpha, moment.dead
        if alpha > 0 and dead is not None and bool(dead.any()):
            terms = terms + alpha * architecture.auxk_loss(leaves, x, (x - forward.x_hat).detach(), dead)
        return terms

    def _sequences(self, batch: Mapping[str, Tensor]) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, " rows"]]:
        tokens = batch["tokens"].view(-1, self.context_tokens).to(self.lm.device)
        return tokens, batch["kept"].view(-1).to(self.lm.device)

    def _chosen(self, rows: Tensor, kept: Tensor) -> Bool[Tensor, " rows"]:
        return kept if self.norm_limit is None else kept & (rows.norm(dim=1) <= self.norm_limit)

    def _run(self, tokens: Tensor, with_gradients: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Returns the logits and the later layers' residual streams."""
        streams: list[Tensor] = []
        with ExitStack() as stack, torch.set_grad_enabled(with_gradients):
            for site in self.later:
                stack.enter_context(self.lm.taps.read(self.lm.site_map.binding(site), streams.append))
            stack.enter_context(self.lm.lock)
            logits = self.lm.forward(tokens).logits
        return logits, streams

    def _divergence(
        self, clean: tuple[Tensor, list[Tensor]] | None, ours: tuple[Tensor, Any], tokens: Tensor
    ) -> Tensor:
        log_probs = ours[0].float().log_softmax(-1)
        if self.aim == "ce":
            return share_of_mean(-log_probs[:, :-1].gather(2, tokens[:, 1:, None]).flatten())
        assert clean is not None
        expected = clean[0].float().log_softmax(-1)
        return share_of_mean((expected.exp() * (expected - log_probs)).sum(-1).flatten())


def _later_sites(lm: Any, site: str) -> list[str]:
    """Returns the residual stream after every layer that runs behind `site`."""
    names = lm.sites()
    if site not in names:
        raise ValueError(f"downstream_weight needs a named site, got {site}: give one such as resid_post.1")
    later = [name for name in names[names.index(site) + 1 :] if name.startswith("resid_post.")]
    if not later:
        raise ValueError(f"no layer follows {site}, expected some for downstream_weight: set it to 0")
    return later


def _downstream_error(clean: list[Tensor], ours: list[Tensor]) -> Tensor:
    errors = []
    for expected, got in zip(clean, ours, strict=True):
        expected = expected.flatten(0, 1).float()
        errors.append((got.flatten(0, 1).float() - expected).pow(2).sum() / total_variance(expected))
    return torch.stack(errors).mean()

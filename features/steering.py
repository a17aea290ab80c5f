"""Steering: write features into the model's activations while it generates, and see what it changed.

Enters: a dictionary and {feature: strength}, strengths in units of each feature's largest activation M on the indexed
text. Leaves: text, beside the unsteered text if asked for. With x the activation, d = W_dec[f] and a = encode(x)_f:

* add:     x + strength · M · d
* clamp:   x + (strength · M − a) · d   sets the feature and leaves the rest, the SAE's error included, as it is
* ablate:  x − strength · a · d         strength 1 removes the feature

The edit is a difference added to x, never a reconstruction: with nothing to change, x passes bit by bit. A transcoder's
difference goes to the site that it writes, its a comes from the site that it reads. Dictionaries over several sites
(crosscoders, cross-layer transcoders) can only `add`: what their features read is known after some of it is written.
`features.wiring` says where they write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from features import wiring

if TYPE_CHECKING:
    from features.dictionary import Dictionary

Mode = Literal["add", "clamp", "ablate"]


@dataclass(frozen=True)
class SteeringComparison:
    """A steered continuation beside the unsteered one."""

    prompt: str
    mode: str
    strengths: dict[int, float]
    steered: str
    unsteered: str
    steered_perplexity: float | None
    """Perplexity of the steered continuation under the unsteered model: what the steering cost in fluency."""
    unsteered_perplexity: float | None
    relative_norm: float
    """Length of the written difference as a share of the activation's, on average over the prompt."""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"run": "unsteered", "text": self.unsteered, "perplexity": self.unsteered_perplexity},
            {"run": "steered", "text": self.steered, "perplexity": self.steered_perplexity},
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


class Steering:
    """An intervention on features that generation can run under. Strength 1 is the feature's own maximum."""

    def __init__(self, dictionary: Dictionary, strengths: Mapping[int, float], mode: Mode = "add") -> None:
        """Prepares the edit; the model loads at the first generation.

        Raises:
            ValueError: no features, an unknown mode or one that the architecture does not allow, a feature that does
                not exist, a strength that is no number, or a dead feature in a mode that needs its maximum.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} is unknown, expected one of {', '.join(get_args(Mode))}: choose one")
        if not strengths:
            raise ValueError("no feature to steer, expected at least one as {feature: strength}: name one")
        architecture = dictionary.info["sae"].get("architecture")
        if mode != "add" and len(dictionary.sites) > 1:
            raise ValueError(
                f"mode {mode!r} needs a feature's activation before it is written, but a {architecture} reads "
                f"{len(dictionary.sites)} sites for it, some of them later: use mode 'add'"
            )
        self.dictionary = dictionary
        self.mode = mode
        self.site = dictionary.site
        """The site that is read, and for an autoencoder written."""
        self.strengths = {dictionary.check_feature(f): float(s) for f, s in strengths.items()}
        maxima = dictionary.max_activations
        for feature, strength in self.strengths.items():
            if not math.isfinite(strength):
                raise ValueError(f"feature {feature} has strength {strength}, expected a finite number: correct it")
            if mode != "ablate" and strength != 0 and not maxima[feature] > 0:
                raise ValueError(
                    f"feature {feature} is dead: its maximum activation is 0, expected a feature that is active in the "
                    "indexed text; choose another one"
                )
        self._features = torch.tensor(list(self.strengths))
        self._strength = torch.tensor(list(self.strengths.values()))
        self._maximum = torch.tensor([float(maxima[feature]) for feature in self.strengths])

    def edit(self, x: Float[Tensor, "batch seq ..."]) -> Float[Tensor, "batch seq ..."]:
        """The steered activations; usable with `LanguageModel.intervene({steering.site: steering.edit})`.

        Of an autoencoder; other architectures are steered by `interventions`.
        """
        if self.dictionary.target_sites != [self.site]:
            raise ValueError(
                f"the dictionary reads {', '.join(self.dictionary.sites)} and writes "
                f"{', '.join(self.dictionary.target_sites)}, expected one site: use steering.interventions"
            )
        return self._added(x, self.site, x)

    def _added(self, x: Tensor, site: str, read: Tensor | None) -> Tensor:
        """`x` of one written site with its difference; `read` is what the SAE reads, where the mode asks for it."""
        rows = None if read is None else read.flatten(0, 1).flatten(1)
        delta = self._delta(len(x.flatten(0, 1)), site, rows, x.device)
        return x if delta is None else x + delta.reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def delta(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"] | None:
        """What is added at the first written site for `n` activations of the read one; None where nothing changes."""
        return self._delta(len(x), self.written_sites[0], x, x.device)

    @torch.no_grad()
    def _delta(self, n: int, site: str, read: Tensor | None, device: torch.device) -> Tensor | None:
        sae = self.dictionary.sae
        strength, maximum = self._strength.to(device), self._maximum.to(device)
        if self.mode == "add" and not bool(self._strength.any()):
            return None
        codes, scale = None, None
        if self.mode != "add" or sae.config.normalize_activations in ("constant_norm_rescale", "layer_norm"):
            assert read is not None
            codes = sae.encode(read.to(sae.W_dec.device))
            scale = codes.scale
        if self.mode == "add":
            amount = (strength * maximum).expand(n, -1)
        else:
            assert codes is not None
            present = feature_values(codes, self._features).to(device)
            amount = strength * maximum - present if self.mode == "clamp" else -strength * present
        directions = wiring.write_directions(sae, self._features)[site].to(device)
        delta = amount.to(directions.dtype) @ directions
        # an SAE that rescales each row decodes by the row's own scale
        return delta if scale is None else delta * scale.to(device)[:, None]

    @property
    def written_sites(self) -> list[str]:
        """The sites at which the difference is added."""
        return [site for site in self.dictionary.target_sites if not site.startswith("compare:")]

    @property
    def interventions(self) -> dict[str, Any]:
        """What `LanguageModel.generate(…, interventions=…)` and `intervene` take; good for one generation at a time."""
        if self.dictionary.target_sites == [self.site]:
            return {self.site: self.edit}
        read: dict[str, Tensor] = {}

        def remember(x: Tensor) -> Tensor:
            read["x"] = x
            return x

        def write(site: str) -> Any:
            return lambda x: self._added(x, site, read.get("x"))

        edits: dict[str, Any] = {} if self.mode == "add" else {self.site: remember}
        return edits | {site: write(site) for site in self.written_sites}

    def generate(self, prompt: str, **options: Any) -> str:
        """The steered continuation of `prompt`; `options` are those of `LanguageModel.generate`."""
        return self.dictionary.lm.generate(prompt, interventions=self.interventions, **options)

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """The steered continuation in pieces; closing the iterator stops the generation."""
        return self.dictionary.lm.stream(prompt, interventions=self.interventions, **options)

    def compare(self, prompt: str, **options: Any) -> SteeringComparison:
        """Generates with and without steering under the same options (and seed), with both perplexities."""
        lm = self.dictionary.lm
        steered = self.generate(prompt, **options)
        unsteered = lm.generate(prompt, **options)
        return SteeringComparison(
            prompt=prompt,
            mode=self.mode,
            strengths=self.strengths,
            steered=steered,
            unsteered=unsteered,
            steered_perplexity=continuation_perplexity(lm, prompt, steered),
            unsteered_perplexity=continuation_perplexity(lm, prompt, unsteered),
            relative_norm=self._relative_norm(prompt),
        )

    @torch.no_grad()
    def _relative_norm(self, prompt: str) -> float:
        lm = self.dictionary.lm
        batch = lm.tokenize(prompt)
        read = None
        shares = []
        sites = self.written_sites
        captured = lm.capture(batch.tokens, batch.mask, list(dict.fromkeys([self.site, *sites])))
        rows = {site: x[0][batch.mask[0].bool()].flatten(1) for site, x in captured.items()}
        if len(self.dictionary.sites) == 1:
            read = rows[self.site]
        for site in sites:
            delta = self._delta(len(rows[site]), site, read, rows[site].device)
            norms = rows[site].float().norm(dim=1)
            shares.append(0.0 if delta is None else float((delta.float().norm(dim=1) / norms).mean()))
        return sum(shares) / len(shares)


def feature_values(codes: Any, features: Tensor | Sequence[int]) -> Tensor:
    """Float[n, features]: the activation of the wanted features in sparse codes, 0 where they are silent."""
    wanted = torch.as_tensor(features, device=codes.indices.device)
    columns = [(codes.values * (codes.indices == feature)).sum(dim=1) for feature in wanted]
    return torch.stack(columns, dim=1)


def continuation_perplexity(lm: Any, prompt: str, continuation: str) -> float | None:
    """exp of the mean loss of the continuation's tokens given the prompt; None where there are none to score."""
    if not continuation:
        return None
    batch = lm.tokenize(prompt + continuation)
    given = int(lm.tokenize(prompt).mask.sum()) if prompt else 0
    losses = lm.token_losses(batch.tokens, batch.mask)[0][batch.mask[0, 1:].bool()]
    # the last tokens are the continuation's, wherever the tokenizer draws the border
    scored = losses[-max(int(batch.mask.sum()) - given, 1) :]
    return float(scored.mean().exp()) if len(scored) else None

"""Steering: write features into the model's activations while it generates, and see what it changed.

Enters: a dictionary and {feature: strength}, strengths in units of each feature's largest activation M on the indexed
text. Leaves: text, beside the unsteered text if asked for. With x the activation, d = W_dec[f] and a = encode(x)_f:

* add:        x + strength · M · d
* clamp:      x + (strength · M − a) · d           sets the feature and leaves the rest, the SAE's error included
* min_clamp:  x + max(0, strength · M − a) · d     raises it where it is weaker (for negative strengths, lowers it)
* scale:      x + (strength − 1) · a · d           multiplies what is there
* ablate:     x − strength · a · d                 strength 1 removes the feature
* erase:      x − strength · Σ ⟨x, q⟩ q            q an orthonormal basis of the directions d, whether or not they fire

The edit is a difference added to x, never a reconstruction: with nothing to change, x passes bit by bit. `when` limits
it to tokens at which other features are active, `positions` and `phase` to parts of the text; `keeps_norm` gives every
changed row the length it had (as repeng does). A transcoder's difference goes to the site that it writes, its a comes
from the site that it reads. Dictionaries over several sites (crosscoders, cross-layer transcoders) can only `add` and
`erase`: what their features read is known after some of it is written. `features.wiring` says where they write.
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
    from activations.generation import Prompt
    from features.dictionary import Dictionary
    from features.steering_spec import SteeringSpec

Phase = Literal["all", "prompt", "generated"]
"""Parts of a generation, as `activations.Intervention` names them."""

Mode = Literal["add", "clamp", "min_clamp", "scale", "ablate", "erase"]
READING = ("clamp", "min_clamp", "scale", "ablate")
"""Modes that need a feature's own activation."""
MEASURED = ("add", "clamp", "min_clamp")
"""Modes whose strengths are in units of the feature's maximum."""


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

    def __init__(
        self,
        dictionary: Dictionary,
        strengths: Mapping[int, float],
        mode: Mode = "add",
        *,
        when: Mapping[int, float] | None = None,
        positions: slice | Sequence[int] | None = None,
        phase: Phase = "all",
        keeps_norm: bool = False,
    ) -> None:
        """Prepares the edit; the model loads at the first generation.

        `when` maps features to shares of their maxima: only tokens at which each of them is at least so active are
        changed. `positions` are places among the text's tokens (negative ones count from the prompt's end), `phase` is
        "prompt", "generated" or "all".

        Raises:
            ValueError: no features, an unknown mode or one that the architecture does not allow, a feature that does
                not exist, a strength that is no number, or a dead feature in a mode that needs its maximum.
        """
        for name, value, known in (("mode", mode, get_args(Mode)), ("phase", phase, get_args(Phase))):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown, expected one of {', '.join(known)}: choose one")
        if not strengths:
            raise ValueError("no feature to steer, expected at least one as {feature: strength}: name one")
        if (mode in READING or when) and len(dictionary.sites) > 1:
            what = f"mode {mode!r}" if mode in READING else "a condition"
            raise ValueError(
                f"{what} needs a feature's activation before it is written, but a "
                f"{dictionary.info['sae'].get('architecture')} reads {len(dictionary.sites)} sites for it, some of "
                "them later: use mode 'add' or 'erase', without a condition"
            )
        self.dictionary = dictionary
        self.mode: Mode = mode
        self.site = dictionary.site
        """The site that is read, and for an autoencoder written."""
        self.strengths = {dictionary.check_feature(f): float(s) for f, s in strengths.items()}
        self.when = {dictionary.check_feature(f): float(share) for f, share in (when or {}).items()}
        self.positions, self.keeps_norm = positions, keeps_norm
        self.phase: Phase = phase
        maxima = dictionary.max_activations
        for feature, strength in (self.strengths | self.when).items():
            if not math.isfinite(strength):
                raise ValueError(f"feature {feature} has strength {strength}, expected a finite number: correct it")
        if mode == "erase" and len(set(self.strengths.values())) > 1:
            raise ValueError(
                f"mode 'erase' got strengths {list(self.strengths.values())}, expected one for all: overlapping "
                "directions have no strengths of their own"
            )
        measured = {f for f, strength in self.strengths.items() if mode in MEASURED and strength != 0} | set(self.when)
        for feature in measured:
            if not maxima[feature] > 0:
                raise ValueError(
                    f"feature {feature} is dead: its maximum activation is 0, expected a feature that is active in the "
                    "indexed text; choose another one"
                )
        self._features = torch.tensor(list(self.strengths))
        self._strength = torch.tensor(list(self.strengths.values()))
        self._maximum = torch.tensor([float(maxima[feature]) for feature in self.strengths])
        self._floors = torch.tensor([share * float(maxima[feature]) for feature, share in self.when.items()])

    @classmethod
    def from_spec(cls, dictionary: Dictionary, spec: SteeringSpec) -> Steering:
        """Prepares what a spec says; `spec.decoding(sample)` are the options to generate with.

        Raises:
            ValueError: the spec was made with another SAE's dictionary, or says what `Steering` refuses.
        """
        spec.check_made_with(dictionary)
        return cls(
            dictionary,
            spec.features,
            spec.mode,
            when=spec.when,
            positions=spec.places,
            phase=spec.phase,
            keeps_norm=spec.keeps_norm,
        )

    def to_spec(self, **settings: Any) -> SteeringSpec:
        """Returns this steering as a spec to keep; `settings` are a spec's own: prompt, max_new_tokens, seed and so on.

        Raises:
            ValueError: a setting that a spec does not have, or a value that it refuses.
        """
        from features import steering_spec

        return steering_spec.of(self, **settings)

    def edit(self, x: Float[Tensor, "batch seq ..."]) -> Float[Tensor, "batch seq ..."]:
        """The steered activations; usable with `LanguageModel.intervene({steering.site: steering.edit})`.

        Of an autoencoder, at all positions; `interventions` serves every architecture and keeps to positions and phase.
        """
        if self.dictionary.target_sites != [self.site]:
            raise ValueError(
                f"the dictionary reads {', '.join(self.dictionary.sites)} and writes "
                f"{', '.join(self.dictionary.target_sites)}, expected one site: use steering.interventions"
            )
        return self._changed(x, self.site, x)

    def _changed(self, x: Tensor, site: str, read: Tensor | None) -> Tensor:
        """`x` of one written site as it is to be; `read` is what the SAE reads, where the mode asks for it."""
        rows = x.flatten(0, 1).flatten(1)
        delta = self._delta(rows, site, None if read is None else read.flatten(0, 1).flatten(1))
        if delta is None:
            return x
        changed = rows + delta.to(x.dtype)
        if self.keeps_norm:
            lengths = [each.float().norm(dim=1, keepdim=True) for each in (rows, changed)]
            kept = changed * (lengths[0] / lengths[1].clamp(min=1e-12)).to(x.dtype)
            changed = torch.where((delta != 0).any(1, keepdim=True), kept, rows)
        return changed.reshape(x.shape)

    @torch.no_grad()
    def _delta(self, x: Tensor, site: str, read: Tensor | None) -> Tensor | None:
        """What is added to rows of a written site; None where nothing is."""
        sae, device = self.dictionary.sae, x.device
        if self.mode in ("add", "erase", "ablate") and not bool(self._strength.any()):
            return None
        strength, maximum = self._strength.to(device), self._maximum.to(device)
        directions = wiring.write_directions(sae, self._features)[site].to(device)
        codes, scale = None, None
        rescales = sae.config.normalize_activations in ("constant_norm_rescale", "layer_norm")
        if self.mode in READING or self.when or (rescales and self.mode == "add"):
            assert read is not None
            codes = sae.encode(read.to(sae.W_dec.device))
            # an SAE that rescales each row decodes by the row's own scale
            scale = None if codes.scale is None else codes.scale.to(device)[:, None]
        if self.mode == "erase":
            delta = erased(x.float(), directions.float(), strength)
        elif self.mode == "add":
            delta = (strength * maximum).expand(len(x), -1).to(directions.dtype) @ directions
        else:
            assert codes is not None
            present = feature_values(codes, self._features).to(device)
            missing = strength * maximum - present
            amount = {
                "clamp": missing,
                "min_clamp": torch.where(strength >= 0, missing.clamp(min=0), missing.clamp(max=0)),
                "scale": (strength - 1) * present,
                "ablate": -strength * present,
            }[self.mode]
            delta = amount.to(directions.dtype) @ directions
        if scale is not None and self.mode != "erase":
            delta = delta * scale
        if self.when:
            assert codes is not None
            given = feature_values(codes, list(self.when)).to(device)
            delta = torch.where((given >= self._floors.to(device)).all(1, keepdim=True), delta, 0)
        return delta

    @property
    def written_sites(self) -> list[str]:
        """The sites at which the difference is added."""
        return [site for site in self.dictionary.target_sites if not site.startswith("compare:")]

    @property
    def interventions(self) -> dict[str, Any]:
        """What `LanguageModel.generate(…, interventions=…)` and `intervene` take; good for one generation at a time."""
        if self.dictionary.target_sites == [self.site]:
            return {self.site: self._where(self.edit)}
        read: dict[str, Tensor] = {}

        def remember(x: Tensor) -> Tensor:
            read["x"] = x
            return x

        def write(site: str) -> Any:
            return lambda x: self._changed(x, site, read.get("x"))

        edits: dict[str, Any] = {} if len(self.dictionary.sites) > 1 else {self.site: remember}
        return edits | {site: self._where(write(site)) for site in self.written_sites}

    def _where(self, edit: Any) -> Any:
        if self.positions is None and self.phase == "all":
            return edit
        from activations.capture import Intervention

        return Intervention(edit=edit, positions=self.positions, phase=self.phase)

    def generate(self, prompt: Prompt, **options: Any) -> str:
        """The steered continuation of `prompt`; `options` are those of `LanguageModel.generate`."""
        return self.dictionary.lm.generate(prompt, interventions=self.interventions, **options)

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
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
            relative_norm=self.relative_norm(prompt),
        )

    @torch.no_grad()
    def relative_norm(self, prompt: Prompt) -> float:
        """Length of the difference as a share of the activation's, on average over a prompt's tokens (and sites).

        Positions and phase are left aside; `features.steering_norms` tells it of strengths alone, without a prompt.
        """
        from activations.generation import prompt_tokens

        lm = self.dictionary.lm
        tokens = prompt_tokens(lm, prompt)
        read = None
        shares = []
        sites = self.written_sites
        captured = lm.capture(
            tokens, torch.ones_like(tokens, dtype=torch.bool), list(dict.fromkeys([self.site, *sites]))
        )
        rows = {site: x[0].flatten(1) for site, x in captured.items()}
        if len(self.dictionary.sites) == 1:
            read = rows[self.site]
        for site in sites:
            delta = self._delta(rows[site], site, read)
            norms = rows[site].float().norm(dim=1)
            shares.append(0.0 if delta is None else float((delta.float().norm(dim=1) / norms).mean()))
        return sum(shares) / len(shares)


def erased(x: Float[Tensor, "n d"], directions: Float[Tensor, "f d"], strength: Float[Tensor, " f"]) -> Tensor:
    """Returns −strength · the projection of rows onto the span of directions; one strength for all of the span."""
    left, sizes, _ = torch.linalg.svd(directions.T, full_matrices=False)
    basis = left[:, sizes > 1e-6 * sizes.max()]
    return -strength[0] * (x @ basis) @ basis.T


def feature_values(codes: Any, features: Tensor | Sequence[int]) -> Tensor:
    """Float[n, features]: the activation of the wanted features in sparse codes, 0 where they are silent."""
    wanted = torch.as_tensor(features, device=codes.indices.device)
    columns = [(codes.values * (codes.indices == feature)).sum(dim=1) for feature in wanted]
    return torch.stack(columns, dim=1)


def continuation_perplexity(lm: Any, prompt: Prompt, continuation: str) -> float | None:
    """exp of the mean loss of the continuation's tokens given the prompt; None where there are none to score."""
    if not continuation:
        return None
    if isinstance(prompt, str):
        batch = lm.tokenize(prompt + continuation)
        tokens, mask = batch.tokens, batch.mask
        given = int(lm.tokenize(prompt).mask.sum()) if prompt else 0
    else:
        from activations.generation import prompt_tokens

        asked = prompt_tokens(lm, prompt)
        said = lm.tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = torch.cat([asked, torch.tensor([said], dtype=asked.dtype)], dim=1)
        mask, given = torch.ones_like(tokens, dtype=torch.bool), asked.shape[1]
    losses = lm.token_losses(tokens, mask)[0][mask[0, 1:].bool()]
    # the last tokens are the continuation's, wherever the tokenizer draws the border
    scored = losses[-max(int(mask.sum()) - given, 1) :]
    return float(scored.mean().exp()) if len(scored) else None

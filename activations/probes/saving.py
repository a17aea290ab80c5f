"""A trained probe, and the folder it is kept in.

A folder holds `probe.safetensors` (the weights, float64) and `probe.json` (what it reads, where, in which model, and
the sha256 of the weights). The JSON is written last, by a rename, so that a folder without it was never finished; one
whose weights are not those that it names is refused, and so is a folder of something else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from activations.logistic import Probe
from activations.probes.fitting import AnyProbe, NonlinearProbe
from activations.probes.rows import text_rows

if TYPE_CHECKING:
    from activations.model import LanguageModel

FORMAT = "glassbox-probe"
VERSION = 1
_FACTS = (
    "model", "weight_hash", "site", "pooling", "context_tokens", "name", "label", "against", "kind", "setting",
    "columns", "spread", "accuracy", "auc",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainedProbe:
    """A probe, with what it reads: rows of `site` in one model, pooled in one way."""

    model: str
    weight_hash: str
    site: str
    pooling: str
    context_tokens: int
    name: str
    """Of the labelled set that it was trained on."""
    label: str
    """What a score above 0 says."""
    against: str
    """What a score below 0 says: the other label, or `others`."""
    kind: str
    setting: str
    columns: tuple[int, ...] = ()
    """The columns that a k-sparse probe reads."""
    spread: float = 1.0
    """Standard deviation of training rows along `direction`: the unit in which interventions are told."""
    accuracy: float = float("nan")
    """On test examples, as is `auc`."""
    auc: float = float("nan")
    probe: AnyProbe = field(repr=False)

    @property
    def direction(self) -> Float[Tensor, " d"]:
        """The unit vector along which the score rises.

        Raises:
            ValueError: a non-linear probe, which has none.
        """
        weight = getattr(self.probe, "weight", None)
        if weight is None or not float(weight.norm()):
            raise ValueError(
                f"a {self.kind} probe has no direction, expected one that is linear: train a logistic or "
                "mean_difference probe"
            )
        return weight / weight.norm()

    def check(self, lm: LanguageModel) -> None:
        """ValueError unless `lm` is the model that this probe reads."""
        if lm.weight_hash() != self.weight_hash:
            raise ValueError(
                f"the probe was trained on {self.model} ({self.weight_hash[:12]}), got {lm.name} "
                f"({lm.weight_hash()[:12]}): its directions mean nothing there; load its own model"
            )

    def score_texts(self, lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, " n"]:
        """Returns a score for each text, above 0 for `label`.

        Raises:
            ValueError: another model than the probe's, a text without tokens.
        """
        self.check(lm)
        rows = text_rows(lm, texts, [self.site], pooling=self.pooling, context_tokens=self.context_tokens)
        return self.probe.scores(rows[self.site])

    def save(self, path: str | Path) -> Path:
        """Writes the probe's folder and returns it; a probe that stands there is replaced."""
        from safetensors.torch import save

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        content = save({name: value.double().contiguous() for name, value in _tensors(self.probe).items()})
        facts: dict[str, Any] = {key: getattr(self, key) for key in _FACTS}
        facts |= {"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "probe.json").unlink(missing_ok=True)  # until the new one is whole there is no probe here
        _write(folder / "probe.safetensors", content)
        _write(folder / "probe.json", (json.dumps(facts, indent=1) + "\n").encode())
        return folder


def load_probe(path: str | Path) -> TrainedProbe:
    """Opens what `TrainedProbe.save` has written.

    Raises:
        FileNotFoundError: no folder, or one without a probe.
        ValueError: a folder that was not finished, is damaged, or holds something else.
    """
    from safetensors.torch import load

    folder = Path(path)
    about, weights = folder / "probe.json", folder / "probe.safetensors"
    if not about.is_file():
        if weights.is_file():
            raise ValueError(
                f"{folder} holds weights without probe.json, expected both: it was not finished; save again"
            )
        raise FileNotFoundError(f"{folder} holds no probe, expected probe.json and probe.safetensors: check the path")
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{about} cannot be read ({error}), expected JSON: save the probe again") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{about} is not a probe's, expected the format {FORMAT!r}: name a folder that Glassbox wrote")
    if facts.get("version") != VERSION:
        raise ValueError(
            f"{about} has version {facts.get('version')!r}, expected {VERSION}: open it with the Glassbox that wrote it"
        )
    missing = [key for key in (*_FACTS, "sha256") if key not in facts]
    content = weights.read_bytes() if weights.is_file() else b""
    if missing or hashlib.sha256(content).hexdigest() != facts["sha256"]:
        what = f"lacks {missing[0]}" if missing else "does not belong to the weights beside it"
        raise ValueError(f"{about} {what}, expected a whole probe: it was damaged or mixed; save the probe again")
    tensors = load(content)
    given: dict[str, Any] = {key: facts[key] for key in _FACTS} | {"columns": tuple(facts["columns"])}
    return TrainedProbe(**given, probe=_probe(tensors))


def _tensors(probe: AnyProbe) -> dict[str, Tensor]:
    if isinstance(probe, Probe):
        return {"weight": probe.weight, "bias": torch.tensor([probe.bias], dtype=torch.float64)}
    names = ("mean", "scale", "w_in", "b_in", "w_out")
    bias = torch.tensor([probe.b_out], dtype=torch.float64)
    return {name: getattr(probe, name) for name in names} | {"b_out": bias}


def _probe(tensors: dict[str, Tensor]) -> AnyProbe:
    if "weight" in tensors:
        return Probe(tensors["weight"], float(tensors["bias"]))
    return NonlinearProbe(**{**tensors, "b_out": float(tensors["b_out"])})  # pyright: ignore[reportArgumentType]


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)

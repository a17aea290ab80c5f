"""A steering written down: everything that says what was written, to be kept, shared and run again.

Enters: settings, a `Steering`, or the JSON of a file. Leaves: the same as a `SteeringSpec`, checked. The file:

    {"glassbox_steering": 1, "features": {"123": 1.5}, "mode": "add", "phase": "generated", "prompt": "def ",
     "max_new_tokens": 60, "temperature": 0.8, "seed": 0, "dictionary": "matryoshka", "fingerprint": "5f2c…"}

All keys but the first two may be left out. A key that is not known is refused: a setting that is passed over would give
another text than the one that was shared.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

from features.steering import Mode, Phase, Steering

if TYPE_CHECKING:
    from features.dictionary import Dictionary

FORMAT = 1
FORMAT_KEY = "glassbox_steering"
LONGEST_SPEC_BYTES = 1_000_000
MOST_FEATURES = 64


@dataclass(frozen=True, kw_only=True)
class SteeringSpec:
    """What is steered, where, and how the text is written."""

    features: Mapping[int, float]
    """Strength of each feature, in units of its maximum activation."""
    mode: Mode = "add"
    phase: Phase = "all"
    positions: str = ""
    """Places in the text, such as `0, 3, -1` or `2:10`; empty for all."""
    when: Mapping[int, float] = field(default_factory=dict)
    """Only at tokens where each of these features has this share of its maximum."""
    keeps_norm: bool = False
    prompt: str = ""
    max_new_tokens: int = 60
    temperature: float = 0.0
    """0 writes the likeliest token."""
    top_p: float = 1.0
    seed: int = 0
    """Of the first sample; each further one adds 1."""
    samples: int = 1
    dictionary: str = ""
    """Name of the dictionary that the numbers belong to."""
    fingerprint: str = ""
    """The build of that dictionary; a steering is refused for another."""

    def __post_init__(self) -> None:
        for name, value in _checked({each.name: getattr(self, each.name) for each in fields(self)}).items():
            object.__setattr__(self, name, value)

    @property
    def places(self) -> slice | list[int] | None:
        """The positions as `Steering` takes them."""
        return read_positions(self.positions)

    def decoding(self, sample: int = 0) -> dict[str, Any]:
        """Returns the options of `LanguageModel.generate` for one sample, numbered from 0."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.temperature > 0,
            "temperature": self.temperature or 1.0,
            "top_p": self.top_p,
            "seed": self.seed + sample,
        }

    @property
    def limits(self) -> dict[str, Any]:
        """The keyword arguments of `Steering` that say where it acts."""
        return {"when": self.when, "positions": self.places, "phase": self.phase, "keeps_norm": self.keeps_norm}

    def check_made_with(self, dictionary: Dictionary) -> None:
        """ValueError where the numbers belong to another dictionary's features."""
        own = str(dictionary.info.get("fingerprint", ""))
        if self.fingerprint and own and self.fingerprint != own:
            raise ValueError(
                f"the steering was made with dictionary {self.dictionary or '(unnamed)'} ({self.fingerprint[:12]}), "
                f"{dictionary.name} is {own[:12]}, and its numbers mean other features: open that dictionary, or "
                "remove `fingerprint` from the file"
            )

    def to_json(self) -> str:
        """Returns the file's text; what is left at its default is left out."""
        said: dict[str, Any] = {FORMAT_KEY: FORMAT}
        for each in fields(self):
            value = getattr(self, each.name)
            default = each.default if each.default is not MISSING else {}
            if each.name == "features" or value != default:
                said[each.name] = {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else value
        return json.dumps(said, ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SteeringSpec:
        """Reads the file's text.

        Raises:
            ValueError: no JSON of a steering, an unknown key or format, or a value that does not fit.
        """
        if len(text) > LONGEST_SPEC_BYTES:
            raise ValueError(
                f"the file has {len(text):,} signs, expected at most {LONGEST_SPEC_BYTES:,}: choose a spec"
            )
        try:
            said = json.loads(text, object_pairs_hook=_without_repeats)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the file is no JSON ({error}), expected a steering spec: choose another file") from None
        if not isinstance(said, dict) or FORMAT_KEY not in said:
            raise ValueError(
                f'the file is no steering spec, expected a JSON object with "{FORMAT_KEY}": {FORMAT}: choose a file '
                "that was saved by Steer"
            )
        if said.pop(FORMAT_KEY) != FORMAT:
            raise ValueError(f"the spec has another format, expected {FORMAT}: use the version that wrote it")
        known = [each.name for each in fields(cls)]
        for key in said:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ValueError(f"a steering spec has no {key!r}, expected a key that is known: remove it ({hint})")
        if "features" not in said:
            raise ValueError("a steering spec has no features, expected at least one as {number: strength}: name one")
        return cls(**_checked(said))


def of(steering: Steering, **settings: Any) -> SteeringSpec:
    """Returns a steering as a spec that names its dictionary; `settings` are the spec's other fields."""
    own = {"features", "mode", "phase", "positions", "when", "keeps_norm", "dictionary", "fingerprint"}
    allowed = [each.name for each in fields(SteeringSpec) if each.name not in own]
    for key in settings:
        if key not in allowed:
            raise ValueError(f"a steering has no setting {key!r}, expected {', '.join(allowed)}: use one of these")
    return SteeringSpec(
        features=steering.strengths,
        mode=steering.mode,
        phase=steering.phase,
        positions=written_positions(steering.positions),
        when=steering.when,
        keeps_norm=steering.keeps_norm,
        dictionary=steering.dictionary.name,
        fingerprint=str(steering.dictionary.info.get("fingerprint", "")),
        **settings,
    )


def read_strengths(text: str, default: float | None = None) -> dict[int, float]:
    """Reads features and numbers such as `12=1.5, 40=-2`; `default` stands for a number that is left out.

    Raises:
        ValueError: a part that is not `ID=NUMBER`, or a feature that is named twice.
    """
    found: dict[int, float] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        feature, strength = read_strength(part.strip(), default)
        if feature in found:
            raise ValueError(f"feature {feature} is named twice in `{text[:60]}`, expected it once: remove one")
        found[feature] = strength
    return found


def read_strength(text: str, default: float | None = None) -> tuple[int, float]:
    """Reads one `ID=NUMBER`."""
    number, equals, strength = text.partition("=")
    try:
        if not equals and default is not None:
            return int(number), default
        if not equals:
            raise ValueError
        return int(number), float(strength)
    except ValueError:
        raise ValueError(f"got `{text[:60]}`, expected ID=NUMBER: write for example 123=2.5") from None


def written_strengths(strengths: Mapping[int, float]) -> str:
    """Returns what `read_strengths` reads."""
    return ",".join(f"{feature}={strength:g}" for feature, strength in strengths.items())


def read_positions(text: str) -> slice | list[int] | None:
    """Reads `0, 3, -1`, or a span such as `2:10`, `-4:`; empty text means all positions."""
    text = text.strip()
    if not text:
        return None
    try:
        if ":" in text:
            ends = [int(part) if part.strip() else None for part in text.split(":")]
            if len(ends) > 3 or 0 in ends[2:]:
                raise ValueError
            return slice(*ends)
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"positions got `{text[:60]}`, expected numbers with commas or a span: write for example 0,3,-1 or 2:10"
        ) from None


def written_positions(positions: slice | Sequence[int] | None) -> str:
    """Returns what `read_positions` reads."""
    if positions is None:
        return ""
    if isinstance(positions, slice):
        ends = [positions.start, positions.stop, *([positions.step] if positions.step is not None else [])]
        return ":".join("" if end is None else str(end) for end in ends)
    return ",".join(str(int(position)) for position in positions)


def _checked(said: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a spec's fields, those that are given, as they should be."""
    found = dict(said)
    for name in {"features", "when"} & found.keys():
        found[name] = _strengths(name, found[name])
    if not found["features"]:
        raise ValueError("a steering spec has no features, expected at least one as {number: strength}: name one")
    if len(found["features"]) > MOST_FEATURES:
        raise ValueError(f"got {len(found['features'])} features, expected at most {MOST_FEATURES}: leave some out")
    for name, known in (("mode", get_args(Mode)), ("phase", get_args(Phase))):
        if name in found and found[name] not in known:
            raise ValueError(f"{name} {found[name]!r} is unknown, expected one of {', '.join(known)}: choose one")
    for name, low in (("max_new_tokens", 1), ("seed", -(2**62)), ("samples", 1)):
        if name in found:
            found[name] = _whole(name, found[name], low)
    for name, low, high in (("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0)):
        if name in found:
            found[name] = _number(name, found[name], low, high)
    if found.get("top_p") == 0:
        raise ValueError("top_p is 0, expected a share above 0 up to 1: give 1 to sample from all tokens")
    for name in {"positions", "prompt", "dictionary", "fingerprint"} & found.keys():
        if not isinstance(found[name], str):
            raise ValueError(f"{name} is {str(found[name])[:60]!r}, expected text: put it in quotes")
    if not isinstance(found.get("keeps_norm", False), bool):
        raise ValueError(f"keeps_norm is {str(found['keeps_norm'])[:60]!r}, expected true or false: write one of these")
    if found.get("samples", 1) > 1 and found.get("temperature", 0.0) == 0:
        raise ValueError(
            f"samples is {found['samples']} at temperature 0, where all would be the same text, expected 1: raise the "
            "temperature"
        )
    read_positions(found.get("positions", ""))
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("the file names a key twice, expected each key once: remove one")
    return found


def _strengths(name: str, given: Any) -> dict[int, float]:
    if not isinstance(given, Mapping):
        raise ValueError(f'{name} is {str(given)[:60]!r}, expected an object such as {{"123": 1.5}}: correct it')
    found: dict[int, float] = {}
    for key, value in given.items():
        feature = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 19 else key
        if isinstance(feature, bool) or not hasattr(feature, "__index__"):
            raise ValueError(f"{name} names {str(key)[:60]!r}, expected the number of a feature: correct it")
        found[int(feature)] = _number(f"the number of feature {int(feature)} in {name}", value)
    return found


def _number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {str(value)[:60]!r}, expected a finite number: correct it")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low:g} to {high:g}: correct it")
    return float(value)


def _whole(name: str, value: Any, low: int) -> int:
    number = _number(name, value)
    if number != int(number) or number < low or number >= 2**62:
        raise ValueError(
            f"{name} is {value}, expected a whole number{f' of at least {low}' if low > 0 else ''}: correct it"
        )
    return int(value)

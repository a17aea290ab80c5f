"""Writes docs/models.md: what was verified in each family of models, by running it. `python docs/models.py`

Each family is a random model of a few layers from tests/support/families.py, in float64 where the family can."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
TEXT = "def f(x): return x"
HEAD = """# Supported models

Every model is checked as it is loaded: all sites are reached and have the right shape, layers join bit for bit, the
residual stream adds up, and an edit at each site changes the output. A model that fails is refused by the site's name.
What is beyond that was verified on random models of each family, by `python docs/models.py`, which wrote this table;
the tests ask the same, and more.

| column | holds where |
| --- | --- |
| sites | number of named places, checked at loading |
| lens | the logit lens at the last layer is the model's own prediction, bit for bit |
| parts sum | direct logit attribution: its parts sum to the logit; the error |
| gradients | integrated gradients sum to the change from the baseline; the error, as a share of it |
| steering | adding nothing at a site changes no bit of the logits |
| generates | greedy text is the same with the key-value cache and without |

A reason stands where something is refused. Models of a hub are loaded from a local folder in the same way; families not
listed are refused, unless their layout is given.

"""


def main() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    (ROOT / "docs" / "models.md").write_text(markdown(), encoding="utf-8")


def markdown() -> str:
    """Returns the page."""
    from families import FAMILIES

    rows = [f"| `{name}` | " + " | ".join(facts(name)) + " |" for name in FAMILIES]
    columns = ["family", "sites", "lens", "parts sum", "gradients", "steering", "generates"]
    return HEAD + "\n".join([f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|", *rows]) + "\n"


def facts(name: str) -> list[str]:
    """Returns what was found of a family, a cell each."""
    from families import GENERATORS, build, tokenizer

    from activations import LanguageModel
    from activations.analyses import attribute, direct_logit_attribution, logit_lens
    from activations.readout import readout

    torch.manual_seed(0)
    lm = LanguageModel(build(name), tokenizer())
    tokens = lm.tokenize(TEXT).tokens
    logits = lm.logits(tokens)

    def lens() -> str:
        logit_lens(lm, TEXT)
        with torch.no_grad():
            same = torch.equal(readout(lm, lm.capture(tokens, None, [lm.final_site])[lm.final_site]), logits)
        return "yes" if same else "no"

    def parts() -> str:
        return magnitude(direct_logit_attribution(lm, TEXT).error)

    def gradients() -> str:
        found = attribute(lm, TEXT, steps=64)
        return magnitude(float(found.error) / max(abs(float(np.sum(found.scores))), 1e-12))

    def steering() -> str:
        with lm.intervene({lm.final_site: lambda x: x + 0}):
            return "yes" if torch.equal(lm.logits(tokens), logits) else "no"

    def generates() -> str:
        cached, plain = (lm.generate(TEXT, max_new_tokens=6, use_cache=cache) for cache in (True, False))
        return "yes" if cached == plain else "no"

    asked: list[Callable[[], str]] = [lens, parts, gradients, steering]
    cells = [str(len(lm.site_map.bindings)), *(said(ask) for ask in asked)]
    return [*cells, said(generates) if name in GENERATORS else "reads only"]


def said(ask: Callable[[], str]) -> str:
    """Returns what `ask` says, or why it was refused."""
    try:
        return ask()
    except ValueError as error:
        return str(error).split(", expected")[0].replace("|", "/")


def magnitude(value: float) -> str:
    """Returns the order of a number, which is the same on every machine that rounds a little differently."""
    return "0" if value == 0 else f"10^{int(np.floor(np.log10(abs(value))))}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

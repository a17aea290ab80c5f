"""Two small dictionaries of a real model, hostile where they can be, and the browser over them.

Feature 5 is dead. Token, document names, labels and a list's name carry HTML that would run if anything showed it
unescaped; feature 7 is active on such a token. Each dictionary has the features of one model at one site; that of the
second is the same model with a chat template.

usage: python -m tests.ui.served PORT FOLDER    serves them; makes them in FOLDER first, where they are not there
"""

from __future__ import annotations

import inspect
import json.decoder
import shutil
import sys
import textwrap
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

CANARY = "<img src=x onerror=\"window.canary='fired'\">"
TEMPLATES = "${window.canary='fired'} {{value}} {{{value}}} `"
DEAD, HOSTILE = 5, 7
N_FEATURES, K = 240, 8
SITE = "resid_post.2"
CONTEXT_TOKENS = 128
SEEDS = (3, 4)
TALKING = 4
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '# ' + message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '# assistant: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Rows:
    """Token rows as the index reads them."""

    tokens: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    names: list[str]


def documents() -> dict[str, str]:
    """Source of the standard library, which is the same wherever this runs, and one hostile text."""
    sources = [inspect.getsource(module) for module in (json, json.decoder, textwrap)]
    pieces = [source[start : start + 900] for source in sources for start in range(0, 9000, 900)]
    found = {f"library/part_{number}.py": piece for number, piece in enumerate(pieces) if piece}
    return found | {CANARY: f'"""A page: {CANARY}{TEMPLATES}\n' * 12}


def write_models(folder: Path, talking: Path) -> None:
    """Keeps the embedded model with two more tokens, both of them hostile; once more with a chat template."""
    from activations import LanguageModel

    lm = LanguageModel.load("embedded")
    lm.tokenizer.add_tokens([CANARY, TEMPLATES])
    lm.model.resize_token_embeddings(len(lm.tokenizer), mean_resizing=False)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():  # nothing is known of them, but they are not silent
        weights = lm.model.get_input_embeddings().weight
        weights[-2:] = weights[100:102]
    lm.model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    lm.tokenizer.save_pretrained(folder)
    shutil.copytree(folder, talking)
    lm.tokenizer.chat_template = CHAT_TEMPLATE
    lm.tokenizer.save_pretrained(talking)


def make(folder: Path) -> list[Path]:
    """Writes the model and the dictionaries; returns the folders of these."""
    from activations import LanguageModel
    from features import Dictionary, IndexConfig, build_index
    from features.explain import ExplainConfig, explain
    from sae import SAE, SAEConfig

    write_models(folder / "model", folder / "talking")
    lm = LanguageModel.load(str(folder / "model"))
    ids: list[int] = []
    owner: list[int] = []
    place: list[int] = []
    texts = documents()
    for index, text in enumerate(texts.values()):
        row = [0, *lm.tokenize(text).tokens[0].tolist()]
        ids, owner, place = [*ids, *row], [*owner, *[index] * len(row)], [*place, *range(len(row))]
    short = -len(ids) % CONTEXT_TOKENS
    tokens, document, position = (
        np.array(column + [fill] * short, dtype=np.int32).reshape(-1, CONTEXT_TOKENS)
        for column, fill in ((ids, 0), (owner, -1), (place, 0))
    )
    rows = Rows(tokens, document, position, list(texts))
    batch = torch.from_numpy(tokens).long()
    x = lm.activations(batch, sites=[SITE])[SITE].flatten(0, 1)
    hostile = int(torch.nonzero(batch.flatten() == lm.tokenizer.convert_tokens_to_ids(CANARY))[3])
    made = []
    for seed in SEEDS:
        if seed == TALKING:
            lm = LanguageModel.load(str(folder / "talking"))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(ids), generator=generator)[:N_FEATURES]
        chosen[HOSTILE] = hostile
        directions = torch.nn.functional.normalize(x[chosen] - x.mean(0), dim=1)
        sae = SAE(SAEConfig(architecture="topk", d_in=x.shape[1], d_sae=N_FEATURES, k=K))
        with torch.no_grad():
            sae.W_enc.copy_(directions)
            sae.W_dec.copy_(directions)
            sae.b_dec.copy_(x.mean(0))
            sae.b_enc[DEAD] = -1e6
        sae.metadata.update(
            site=SITE, model_name=lm.name, model_revision=None, model_weight_hash=lm.weight_hash(), name="stdlib"
        )
        out = folder / str(seed) / "stdlib"
        build_index(sae, lm, rows, out, IndexConfig(batch_tokens=4 * CONTEXT_TOKENS, seed=seed)).close()
        with closing(Dictionary.open(out, model=lm)) as opened:
            explain(opened, ExplainConfig(min_events=3))
            opened.add_label(HOSTILE, CANARY + TEMPLATES, CANARY)
            opened.add_to_list(CANARY, [HOSTILE, 8, DEAD], CANARY, CANARY)
        made.append(out)
    return made


def count_passes(file: Path) -> None:
    """Adds a byte to a file before each pass of a language model, so that tests see whether one still writes."""

    def note(module: torch.nn.Module, _given: object) -> None:
        if type(module).__name__.endswith("ForCausalLM"):
            with file.open("ab") as passes:
                passes.write(b".")

    torch.nn.modules.module.register_module_forward_pre_hook(note)


def main(port: int, folder: Path) -> None:
    """Serves the dictionaries until ended."""
    from features import Dictionary
    from ui import browser

    made = [folder / str(seed) / "stdlib" for seed in SEEDS]
    if not all((out / "dictionary.json").exists() for out in made):
        made = make(folder)
    opened = [Dictionary.open(out) for out in made]
    for each in opened:
        each.active_on("the first pass loads the model, which no test is to wait for")
    count_passes(folder / "passes")
    browser.serve(opened, host="127.0.0.1", port=port)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

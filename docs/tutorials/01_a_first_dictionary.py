"""
A first dictionary
==================

From a text to features that can be read: harvest activations of the embedded model, train a sparse autoencoder on them,
index its features over the text, and look some up. The program does the same with ``glassbox demo``, on forty times as
much text, with progress, resume and a report.
"""

# %%
# A model and a text
# ------------------
# The package brings a small language model of Python source. The text is some of the standard library.

import argparse
import inspect
import shutil
import textwrap

import torch

from activations import LanguageModel
from activations.corpus import Document
from activations.tokens import pack_documents

lm = LanguageModel.load("embedded")
texts = [Document(f"{module.__name__}.py", inspect.getsource(module)) for module in (argparse, textwrap)]
rows = pack_documents(texts, lm, context_tokens=128)
print(f"{rows.tokens.size:,} tokens in rows of {rows.tokens.shape[1]}")

# %%
# Activations
# -----------
# A *site* is a named place in the model, the same for every architecture: ``resid_post.2`` is the residual stream
# behind the third layer. Rows of activations stream into training; nothing is kept on disk here.

SITE = "resid_post.2"


def activations(epochs: int):
    for _ in range(epochs):
        for tokens in torch.from_numpy(rows.tokens).long().split(16):
            yield lm.activations(tokens, sites=[SITE])[SITE].flatten(0, 1).float()


# %%
# Training
# --------
# Three settings are enough for the recommended recipe: the width of the activations, the number of latents, and how
# many of them are active on a token on average.

from sae import SAEConfig, TrainConfig, evaluate, train

shutil.rmtree("first", ignore_errors=True)
epochs = 3
sae = SAEConfig(d_in=lm.d_model, d_sae=512, k=16)
config = TrainConfig(sae=sae, total_rows=epochs * rows.tokens.size, batch_rows=1024, out="first/run", device="cpu")
trained = train(config, activations(epochs), metadata={"model_name": "embedded", "site": SITE}).sae
measured = evaluate(trained, activations(1))
print(f"explained variance {measured.explained_variance:.3f} at {measured.l0:.1f} active latents a token")

# %%
# The feature dictionary
# ----------------------
# The index remembers where each feature is active, how strongly, and which tokens it promotes. ``explain`` writes what
# the tokens under its strongest activations have in common; it needs no other model.

from features import build_index
from features.explain import explain

dictionary = build_index(trained, lm, rows, "first/dictionary", data={"source": "two modules of the standard library"})
explain(dictionary)

# %%
# Reading features
# ----------------
# Search by token, or rank what is active on a text of your own.

for hit in dictionary.search("self", limit=3):
    feature = dictionary.feature(hit.feature)
    print(f"feature {hit.feature}: {feature.explanations[0].text}")
    for example in feature.examples[:2]:
        print("   ", repr("".join(example.tokens))[:90])

found = dictionary.active_on("def read(self, path):\n    with open(path) as file:\n")
for entry in found.ranked[:5]:
    print(f"{entry.max_activation:6.2f}  {found.tokens[entry.token]!r:12} {entry.explanation}")

# %%
# ``glassbox browse first/dictionary`` opens the same in a web browser.

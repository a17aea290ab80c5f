"""The logit lens on a line of Python."""

from pathlib import Path

from activations import analyze
from ui.render.analysis import save_pictures

text = "import os\n\ndef read(path):\n    with open("
found = analyze("embedded", text, ["lens"])
lens = found.results["lens"]
for token, place in zip(lens.tokens, lens.converged_at, strict=True):
    print(f"{token!r:12} settled from {lens.sites[place]}")
save_pictures(found, Path())

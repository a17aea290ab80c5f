"""Which tokens made the model say it."""

from pathlib import Path

from activations import analyze
from ui.render.analysis import save_pictures

text = "import os\n\ndef read(path):\n    with open("
found = analyze("embedded", text, ["integrated_gradients", "attn_lrp", "leave_one_out", "shapley", "agreement"])
save_pictures(found, Path())

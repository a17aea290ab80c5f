"""How long the stream is."""

from pathlib import Path

from activations import analyze
from ui.render.analysis import save_pictures

text = "import os\n\ndef read(path):\n    with open("
found = analyze("embedded", text, ["norms"])
save_pictures(found, Path())

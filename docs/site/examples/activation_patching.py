"""Where the difference between two texts is carried."""

from pathlib import Path

from activations import analyze
from ui.render.analysis import save_pictures

text = "import os\n\ndef read(path):\n    with open("
other = "import os\n\ndef read(name):\n    with open("
found = analyze("embedded", text, ["patching"], compare=other)
save_pictures(found, Path())

"""Where the answer passes through."""

from pathlib import Path

from activations import analyze
from ui.render.analysis import save_pictures

text = "import os\n\ndef read(path):\n    with open("
found = analyze("embedded", text, ["tracing"], settings={"tracing": {"subject": "path", "samples": 4}})
save_pictures(found, Path())

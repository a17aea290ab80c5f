"""What wrote the logit."""

from pathlib import Path

from activations import analyze
from ui.render.analysis import save_pictures

text = "import os\n\ndef read(path):\n    with open("
found = analyze("embedded", text, ["direct"])
direct = found.results["direct"]
print(f"{found.target}: {direct.logit:.3f}, the parts miss {direct.error:.1e} of it")
save_pictures(found, Path())

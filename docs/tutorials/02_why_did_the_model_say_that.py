"""
Why did the model say that
==========================

One call runs the classic analyses of a text. Each result prints, draws, and is written as JSON.
"""

# %%
# All that apply
# --------------
# ``analyze`` explains the token that the model expects next. With a second text it also asks which activations carry
# the difference between the two.

from pathlib import Path

from activations import LanguageModel, analyze
from ui.render.analysis import save_pictures, write_analysis_report

lm = LanguageModel.load("embedded")
methods = ["integrated_gradients", "leave_one_out", "lens", "direct", "ablation"]
found = analyze(lm, "import os\n\ndef read(path):\n    with open(", methods)
print("explained:", found.target)
for name, seconds in found.time_s.items():
    print(f"{name:22} {seconds:5.2f} s  {len(found.results[name].rows())} records")

# %%
# Scores of tokens
# ----------------
# Integrated gradients add up to the change from a text of padding; what is missing is returned as ``error``. Methods
# ask different questions: where they disagree, neither is wrong.

scored = found.results["integrated_gradients"]
for token, score in zip(found.tokens, scored.scores, strict=True):
    print(f"{score:+8.3f}  {token!r}")
print(f"what the sum leaves out: {scored.error:+.4f}")

# %%
# Pictures, and a page
# --------------------

for picture in save_pictures(found, Path("why"), ".png"):
    print(picture.name)
write_analysis_report(found, Path("why/report.html"))

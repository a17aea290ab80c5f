"""
Steering, and its price
=======================

A feature can be added to what the model thinks while it writes. This needs the dictionary of the first tutorial.
"""

# %%
# A feature to steer with
# -----------------------

from features import Dictionary, Steering

dictionary = Dictionary.open("first/dictionary")
chosen = dictionary.search("self", limit=1)[0].feature
print(chosen, dictionary.feature(chosen).explanations[0].text)

# %%
# Beside the model left alone
# ---------------------------
# Strength is measured in units of the largest activation that the index saw. Far beyond it, text breaks.

for strength in (0.0, 1.0, 4.0):
    written = Steering(dictionary, {chosen: strength}, mode="add").generate("def f(", max_new_tokens=16)
    print(f"{strength:4.1f}  {written!r}")

# %%
# What it costs
# -------------
# The comparison says what the unsteered model thinks of the steered text: its perplexity rises with the strength.

compared = Steering(dictionary, {chosen: 1.0}, mode="add").compare("def f(", max_new_tokens=16)
for row in compared.rows():
    print(row)

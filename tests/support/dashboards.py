"""A batch as SAEDashboard writes it, made by hand after its layout (0.8)."""

from __future__ import annotations

from typing import Any

import numpy as np

HOSTILE = "<script>alert(1)</script>'; drop\0 \u202e"


def activation(tokens: list[str], values: list[float], low: float = -1, high: float = 9, share: float = -1) -> Any:
    found = {"bin_min": low, "bin_max": high, "bin_contains": share, "tokens": tokens, "values": values}
    return found | {"qualifying_token_index": int(np.argmax(values))}


def dashboard() -> dict[str, Any]:
    """A batch of two features: 1 lives, 3 is dead and its list is filled with silence; 0 and 2 are left out."""
    tables = {f"{a}_{b}": [] for a in ("neuron_alignment", "correlated_neurons", "correlated_features")
              for b in ("indices", "values", "l1", "pearson")}  # fmt: skip
    alive = {
        "feature_index": 1,
        "neg_str": [" no", HOSTILE],
        "neg_values": [-0.7, -0.6],
        "pos_str": [" yes", "\n"],
        "pos_values": [3.5, 2.5],
        "frac_nonzero": 0.002,
        "freq_hist_data_bar_values": [0.5, 1.5, 2.5],
        "freq_hist_data_bar_heights": [40, 0, 2],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "n_prompts_total": 100,
        "n_tokens_in_prompt": 210,
        "dataset": "some/text",
        "decoder_weights_dist": [],
        "activations": [
            activation(["<s>", " dog", HOSTILE], [0, 2.25, 0.5]),
            activation([" a", " dog"], [0, 2.0]),
            activation([" a", " dog"], [0, 2.0], 1.5, 2.25, 0.1),
            activation([" the", " cat", "."], [0, 0.75, 0], 0.0, 0.8, 0.9),
        ],
    }
    dead = {"feature_index": 3, "frac_nonzero": 0.0, "freq_hist_data_bar_values": [], "freq_hist_data_bar_heights": []}
    dead |= {"pos_str": ["x"], "pos_values": [1.0], "neg_str": [], "neg_values": []}
    dead |= {"activations": [activation([" a", " dog"], [0.0, 0.0], high=0)] * 3}
    heads = {"model_id": "gpt2-small", "layer": 0, "sae_set": "res-jb", "sae_id_suffix": None}
    return heads | {"features": [alive | tables, dead | tables]}

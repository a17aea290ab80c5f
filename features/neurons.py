"""The neurons of an MLP as a dictionary: each neuron of a site `mlp_act.L` is a feature, indexed as latents are.

Enters: a language model, rows of tokens, and sites of neurons. Leaves: dictionaries (`features.index`).

Neurons are dense and signed, so an event is where a neuron is far from zero: |a| > its own threshold. The threshold is
the value that a share `density` of tokens exceed, counted on tokens taken evenly from the text. Everything stronger is
an event, so the strongest windows of a neuron are exactly its max-activating contexts; where fewer of them lie above
the threshold than are asked for, those are the first of them. Counts, means and histograms are of events, as for
latents.

A neuron writes its row of the down projection into `mlp_out.L`; neighbours, logit effects and steering go by that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from activations.buckets import capture_tokens
from activations.loading import weights_of
from activations.progress import progress
from features.corpus import Corpus, arrange_corpus
from sae import SAE, SAEConfig
from sae.codes import Codes
from sae.formats import write_json, write_tensors
from sae.formats.files import read_json, read_tensors

ARCHITECTURE = "neurons"
"""What `dictionary.json` and `cfg.json` call a basis of neurons."""
KIND = "mlp_act."


@dataclass(frozen=True, kw_only=True)
class NeuronConfig:
    """When a neuron counts as active."""

    __pydantic_config__ = {"extra": "forbid"}

    density: float = 0.01
    """Share of tokens at which each neuron is active: those where it is farthest from zero."""
    sample_tokens: int = 65_536
    """Tokens from which each neuron's threshold is read, taken evenly from the text."""

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"neurons.density={self.density}, expected more than 0 and at most 1: choose a share")
        if self.sample_tokens < 1:
            raise ValueError(f"neurons.sample_tokens={self.sample_tokens}, expected at least 1: raise it")


class NeuronBasis(SAE):
    """The neurons of one layer in the place of an SAE: neuron i is latent i, and what it writes is row i of `W_dec`."""

    threshold: nn.Parameter

    def __init__(
        self,
        threshold: Float[Tensor, " neurons"],
        w_out: Float[Tensor, "neurons d_model"],
        b_out: Float[Tensor, " d_model"],
        metadata: dict[str, Any],
    ) -> None:
        nn.Module.__init__(self)
        neurons, d_model = w_out.shape
        self.config = SAEConfig(
            architecture="transcoder", activation="jumprelu", d_in=neurons, d_sae=neurons, d_out=d_model
        )
        self.metadata = dict(metadata)
        for name, tensor in (("threshold", threshold), ("W_dec", w_out), ("b_dec", b_out)):
            self.register_parameter(name, nn.Parameter(tensor.detach().float().contiguous()))

    @property
    def W_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The identity: a neuron reads itself."""
        return torch.eye(self.config.d_in, device=self.W_dec.device)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n neurons"]) -> Codes:
        """Returns the neurons beyond their thresholds, with their signs.

        Raises:
            ValueError: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != self.config.d_in:
            raise ValueError(
                f"encode got rows of shape {tuple(x.shape)}, expected [n, {self.config.d_in}]: give rows of {self.site}"
            )
        x = x.to(self.W_dec.dtype)
        is_active = x.abs() > self.threshold
        rows, columns = is_active.nonzero(as_tuple=True)
        counts = is_active.sum(1)
        place = torch.arange(len(rows), device=x.device) - (counts.cumsum(0) - counts)[rows]
        width = int(counts.max()) if len(counts) else 0
        indices = torch.full((len(x), width), -1, dtype=torch.long, device=x.device)
        values = torch.zeros((len(x), width), dtype=x.dtype, device=x.device)
        indices[rows, place] = columns
        values[rows, place] = x[rows, columns]
        return Codes(values, indices, self.config.d_sae)

    def save(self, path: str | Path, format: str = "saelens") -> Path:
        """Writes `cfg.json` and the tensors; `format` is not asked, since no project has one for neurons."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "neurons.safetensors", {name: value.detach() for name, value in self.tensors.items()})
        write_json(folder / "cfg.json", {"architecture": ARCHITECTURE, "metadata": self.metadata})
        return folder


def load_basis(path: Path) -> NeuronBasis:
    """Opens what `NeuronBasis.save` has written."""
    tensors = read_tensors(path / "neurons.safetensors")
    return NeuronBasis(
        tensors["threshold"], tensors["W_dec"], tensors["b_dec"], dict(read_json(path / "cfg.json")["metadata"])
    )


def neuron_bases(lm: Any, corpus: Corpus, sites: Sequence[str], config: NeuronConfig) -> list[NeuronBasis]:
    """Reads thresholds from the text, for all sites in one pass over the sample, and rows from the model.

    Raises:
        ValueError: a site that is not `mlp_act.L`, or that the model does not have.
    """
    for site in sites:
        if not site.startswith(KIND) or not lm.has_site(site):
            known = [name for name in lm.sites() if name.startswith(KIND)]
            raise ValueError(
                f"{site} names no neurons of {lm.name}, expected one of {', '.join(known) or 'none in this model'}: "
                "choose a layer, as in mlp_act.2"
            )
    thresholds = _thresholds(lm, corpus, sites, config)
    return [_basis(lm, site, thresholds[site], config) for site in sites]


def _basis(lm: Any, site: str, threshold: Tensor, config: NeuronConfig) -> NeuronBasis:
    down = lm.site_map.binding(site).module
    with weights_of(down):
        weight = down.weight.detach().float().cpu()
        w_out = weight.T if isinstance(down, nn.Linear) else weight  # GPT-2's own layer holds the transpose
        bias = getattr(down, "bias", None)
        b_out = torch.zeros(w_out.shape[1]) if bias is None else bias.detach().float().cpu()
    metadata = {
        "site": site,
        "target_sites": [site.replace(KIND, "mlp_out.")],
        "name": site,
        "basis": ARCHITECTURE,
        "density": config.density,
        "model_name": lm.name,
        "model_revision": lm.revision,
        "model_weight_hash": lm.weight_hash(),
    }
    return NeuronBasis(threshold, w_out, b_out, metadata).to(lm.device)


@torch.no_grad()
def _thresholds(lm: Any, corpus: Corpus, sites: Sequence[str], config: NeuronConfig) -> dict[str, Tensor]:
    """The size that a share `density` of the sampled tokens exceed, for each neuron."""
    context = corpus.ordinal_of.shape[1]
    rows = np.unique(
        np.linspace(0, len(corpus.ordinal_of) - 1, max(1, min(len(corpus.ordinal_of), config.sample_tokens // context)))
        .round()
        .astype(np.int64)
    )
    indexed = np.zeros(corpus.ordinal_of.shape, dtype=bool)
    indexed[corpus.ordinal_of >= 0] = corpus.is_indexed
    if not indexed[rows].any():
        rows = np.flatnonzero(indexed.any(1))
    n = int(indexed[rows].sum())
    above = max(1, min(n, round(config.density * n) + 1))
    largest: dict[str, Tensor] = {}
    batch_rows = max(1, 8192 // context)
    tokens = np.asarray(corpus.rows.tokens)
    with progress("thresholds", len(rows), "rows") as advance:
        for start in range(0, len(rows), batch_rows):
            chosen = rows[start : start + batch_rows]
            captured = capture_tokens(lm, tokens[chosen], corpus.ordinal_of[chosen] >= 0, indexed[chosen], sites)
            for site, x in captured.items():
                sizes = x.float().abs()
                both = torch.cat([largest[site], sizes]) if site in largest else sizes
                largest[site] = both.topk(min(above, len(both)), dim=0).values
            advance(len(chosen))
    # with every token asked for, all but exact zeros are events
    everything = config.density == 1
    return {site: torch.zeros_like(top[-1]) if everything else top[-1].cpu() for site, top in largest.items()}


def index_neurons(
    lm: Any,
    rows: Any,
    sites: Sequence[str],
    outs: Sequence[str | Path],
    index: Any = None,
    neurons: NeuronConfig | None = None,
    **options: Any,
) -> list[Any]:
    """Builds the dictionaries of the neurons at `sites` (`mlp_act.L`) in one pass, and returns them opened.

    `index` is an `IndexConfig`; `options` are those of `features.build_indexes`.

    Raises:
        ValueError: as `build_indexes`, or a site without neurons.
    """
    from features.index import IndexConfig, build_indexes

    index = index or IndexConfig()
    special = frozenset(lm.special_ids) if options.get("exclude_special_tokens", True) else frozenset()
    corpus = arrange_corpus(rows, special, index.total_tokens)
    bases = neuron_bases(lm, corpus, sites, neurons or NeuronConfig())
    return build_indexes(bases, lm, rows, outs, index, **options)

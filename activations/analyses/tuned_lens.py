"""The tuned lens: the logit lens with a trained translation from each layer's basis into the last one's.

    train_tuned_lens(lm, texts or a store, steps=200, …) -> TunedLens
    lens.save("lens.safetensors"); TunedLens.load("lens.safetensors"); logit_lens(lm, text, lens=lens)

Enters: a language model, and text (any iterable of strings, read as far as needed) or an activation store with the
stream's sites. Leaves: for each place in the stream an affine map, trained by itself:

    p_l = softmax(readout(h + D_l h + b_l)),   loss KL(p_final ‖ p_l) in nats, the mean over tokens

1. D and b begin at zero: before the first step the tuned lens is the logit lens.
2. Adam with a rate that falls to zero; the model's weights are never touched.
3. The first batch is held out: `heldout_kl` and `heldout_kl_before` are measured on it, by place.

It misleads where a map adds what the layer does not hold: it is trained to say what the model will say, and can learn
what usually follows. Rows of other text than it was trained on may be translated worse.

Source: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens" (2303.08112).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from activations.progress import progress
from activations.readout import check_readout, readout, stream_sites
from activations.store import ActivationStore

if TYPE_CHECKING:
    from activations.model import LanguageModel

FORMAT = "glassbox tuned lens 1"
WINDOW_TOKENS = 128
CHUNK_VALUES = 1 << 24


@dataclass(frozen=True)
class TunedLens:
    """Translations by place of one model's residual stream."""

    model: str
    weight_hash: str
    sites: tuple[str, ...]
    """Places that have a translation; the end of the stream needs none."""
    slopes: Float[Tensor, "sites d_model d_model"]
    """D: what is added to a row h is D h + b."""
    biases: Float[Tensor, "sites d_model"]
    training: dict[str, Any]
    """Steps, tokens, rate and seed, and by place `heldout_kl_before` (the logit lens) and `heldout_kl`, in nats."""

    def translate(self, site: str, rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Returns rows of a place in the last layer's basis.

        Raises:
            ValueError: the lens was not trained for this place.
        """
        if site not in self.sites:
            raise ValueError(f"the lens has no {site}, expected one of {', '.join(self.sites)}: train one with it")
        place = self.sites.index(site)
        slope, bias = (each[place].to(rows) for each in (self.slopes, self.biases))
        return rows + rows @ slope.T + bias

    def check(self, lm: LanguageModel) -> None:
        """ValueError unless the lens was trained on this model's weights."""
        if self.weight_hash != lm.weight_hash():
            raise ValueError(
                f"the lens was trained on other weights ({self.model}) than those of {lm.name}, expected the same: "
                "train one with `glassbox tuned-lens`"
            )

    def save(self, path: str | Path) -> Path:
        """Writes the lens as one safetensors file and returns its path."""
        from safetensors.torch import save_file

        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        about = {"model": self.model, "weight_hash": self.weight_hash, "sites": list(self.sites)}
        partial = target.with_name(f"{target.name}.partial")
        save_file(
            {"slopes": self.slopes.contiguous(), "biases": self.biases.contiguous()},
            partial,
            metadata={"format": FORMAT, "about": json.dumps(about | {"training": self.training})},
        )
        return partial.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> TunedLens:
        """Opens a saved lens.

        Raises:
            ValueError: a file of another kind.
        """
        from safetensors import SafetensorError, safe_open

        source = Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"no tuned lens at {source}: train one with `glassbox tuned-lens`")
        try:
            with safe_open(source, "pt") as file:
                told = file.metadata() or {}
                if told.get("format") != FORMAT:
                    raise ValueError(f"{source} is no tuned lens, expected a file of `glassbox tuned-lens`: train one")
                tensors = {name: file.get_tensor(name) for name in ("slopes", "biases")}
        except SafetensorError as error:
            raise ValueError(f"{source} cannot be read ({error}), expected a tuned lens: train it again") from error
        about = json.loads(told["about"])
        return cls(about["model"], about["weight_hash"], tuple(about["sites"]), **tensors, training=about["training"])


def train_tuned_lens(
    lm: LanguageModel,
    data: Iterable[str] | ActivationStore,
    *,
    sites: Sequence[str] | None = None,
    steps: int = 200,
    batch_tokens: int = 512,
    lr: float = 1e-3,
    seed: int = 0,
) -> TunedLens:
    """Trains a translation for each of `sites` (default: the embeddings and every layer but the last).

    `data` is text, or a store that holds rows of these sites and of the end of the stream; it is gone through again
    where it is shorter than `steps` batches.

    Raises:
        ValueError: too little text, a store without a site, a model without a head over tokens, no steps.
    """
    if steps < 1 or batch_tokens < 1:
        raise ValueError(f"got steps={steps}, batch_tokens={batch_tokens}, expected at least 1 each: ask for more")
    check_readout(lm)
    wanted = [site for site in stream_sites(lm) if site != lm.final_site] if sites is None else list(sites)
    every = [*wanted, lm.final_site]
    if isinstance(data, ActivationStore):
        batches = _stored(data, every, batch_tokens, seed)
    else:
        batches = _read(lm, _windows(lm, data, steps + 1, batch_tokens), every, batch_tokens, seed)
    heldout = {site: rows.to(lm.device) for site, rows in next(batches).items()}
    slopes = torch.zeros(len(wanted), lm.d_model, lm.d_model, device=lm.device, requires_grad=True)
    biases = torch.zeros(len(wanted), lm.d_model, device=lm.device, requires_grad=True)
    before = [_heldout(lm, heldout, site, None) for site in wanted]
    optimizer = torch.optim.Adam([slopes, biases], lr=lr)
    seen = 0
    with progress("Tuned lens", steps, "steps") as advance:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            batch = next(batches)
            slopes.grad, biases.grad = torch.zeros_like(slopes), torch.zeros_like(biases)
            total = 0.0
            for part in _parts(batch, lm):
                rows = {site: value.to(lm.device) for site, value in part.items()}
                share = len(rows[lm.final_site]) / len(batch[lm.final_site])
                with torch.no_grad():
                    final = _log_probabilities(lm, rows[lm.final_site])
                for place, site in enumerate(wanted):
                    with lm.lock, torch.enable_grad():
                        loss = share * _divergence(lm, final, _translated(rows[site], slopes[place], biases[place]))
                        # of the maps alone: the model's own weights get no gradient
                        found = torch.autograd.grad(loss, [slopes, biases])
                    slopes.grad += found[0]
                    biases.grad += found[1]
                    total += float(loss.detach())
            optimizer.step()
            seen += len(batch[lm.final_site])
            advance(1, f"KL {total / len(wanted):.3f}")
    slopes, biases = slopes.detach(), biases.detach()
    after = [_heldout(lm, heldout, site, (slopes[place], biases[place])) for place, site in enumerate(wanted)]
    return TunedLens(
        model=lm.name,
        weight_hash=lm.weight_hash(),
        sites=tuple(wanted),
        slopes=slopes.cpu(),
        biases=biases.cpu(),
        training={
            "steps": steps,
            "tokens": seen,
            "heldout_tokens": len(heldout[lm.final_site]),
            "lr": lr,
            "seed": seed,
            "heldout_kl_before": dict(zip(wanted, before, strict=True)),
            "heldout_kl": dict(zip(wanted, after, strict=True)),
        },
    )


def _translated(rows: Tensor, slope: Tensor, bias: Tensor) -> Tensor:
    wide = rows.to(slope)
    return wide + wide @ slope.T + bias


def _divergence(lm: LanguageModel, final: Tensor, rows: Tensor) -> Tensor:
    """KL(final ‖ here), the mean over rows."""
    here = _log_probabilities(lm, rows)
    return torch.where(final.exp() > 0, final.exp() * (final - here), 0.0).sum(1).mean()


@torch.no_grad()
def _heldout(lm: LanguageModel, rows: dict[str, Tensor], site: str, translation: tuple[Tensor, Tensor] | None) -> float:
    total = 0.0
    for part in _parts({site: rows[site], "end": rows[lm.final_site]}, lm):
        here = part[site] if translation is None else _translated(part[site], *translation)
        final = _log_probabilities(lm, part["end"])
        total += float(_divergence(lm, final, here)) * len(here)
    return total / len(rows[site])


def _log_probabilities(lm: LanguageModel, rows: Tensor) -> Float[Tensor, "n vocab"]:
    return torch.log_softmax(readout(lm, rows).float(), dim=-1)


def _parts(batch: dict[str, Tensor], lm: LanguageModel) -> Iterator[dict[str, Tensor]]:
    """Pieces of a batch whose distributions fit in memory."""
    size = max(1, CHUNK_VALUES // lm.vocab_size)
    count = len(next(iter(batch.values())))
    for start in range(0, count, size):
        yield {site: rows[start : start + size] for site, rows in batch.items()}


def _windows(lm: LanguageModel, texts: Iterable[str], batches: int, batch_tokens: int) -> list[list[int]]:
    """Windows of tokens of one length, as many as are needed, at least two batches' worth of them."""
    span = min(lm.context_tokens, WINDOW_TOKENS)
    needed = batches * max(1, batch_tokens // span)
    windows: list[list[int]] = []
    for text in texts:
        ids = lm.encode([text])[0] if text.strip() else []
        windows += [ids[start : start + span] for start in range(0, len(ids) - span + 1, span)]
        if len(windows) >= needed:
            break
    if len(windows) < 2:
        raise ValueError(
            f"the texts make {len(windows)} windows of {span} tokens, expected at least 2: give longer texts"
        )
    return windows[:needed]


def _read(
    lm: LanguageModel, windows: list[list[int]], sites: list[str], batch_tokens: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Rows of the held-out windows, then of the others, in another order each time."""
    size = max(1, min(batch_tokens // len(windows[0]), len(windows) // 2))
    generator = torch.Generator().manual_seed(seed)

    def rows(chosen: list[list[int]]) -> dict[str, Tensor]:
        values = lm.capture(torch.tensor(chosen, device=lm.device), None, sites)
        return {site: value.flatten(0, 1) for site, value in values.items()}

    order = torch.randperm(len(windows), generator=generator).tolist()
    windows = [windows[place] for place in order]
    yield rows(windows[:size])
    rest = windows[size:]
    while True:
        order = torch.randperm(len(rest), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield rows([rest[place] for place in order[start : start + size]])


def _stored(store: ActivationStore, sites: list[str], batch_rows: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """The same, from the shards of a store."""
    missing = [site for site in sites if site not in store.sites]
    if missing:
        raise ValueError(
            f"the store at {store.path} has no {missing[0]}, expected {', '.join(sites)}: harvest them, or give texts"
        )
    if store.n_rows < 2:
        raise ValueError(f"the store at {store.path} has {store.n_rows} rows, expected at least 2: harvest more")
    generator = torch.Generator().manual_seed(seed)
    size = max(1, min(batch_rows, store.n_rows // 2))
    held: dict[str, Tensor] | None = None
    while True:
        for shard in store.shards:
            rows = store.read_rows(shard, sites)
            count = len(rows[sites[0]])
            start = 0
            if held is None:
                start = min(size, max(1, count // 2))
                held = {site: value[:start] for site, value in rows.items()}
                yield held
            elif shard == next(iter(store.shards)):
                start = len(held[sites[0]])
            order = start + torch.randperm(count - start, generator=generator)
            for begin in range(0, len(order), size):
                chosen = order[begin : begin + size]
                yield {site: value[chosen] for site, value in rows.items()}

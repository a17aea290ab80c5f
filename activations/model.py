"""The language model: load or wrap one, read its activations, rewrite them, generate.

Enters: texts or tokens. Leaves: tensors by site (`activations.sites`), losses, text. Masks are Bool[batch, seq], True
at real tokens; padding never changes what real tokens compute, because positions are counted from the mask.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.capture import Edit, Intervention, Taps
from activations.generation import Decoding, Prompt, generate_pieces
from activations.loading import ModelConfig, each_parameter, input_device, is_spread, open_model, weights_of
from activations.sites import EXPERIMENTAL, Site, SiteMap, body_of, submodule
from activations.verification import verify
from activations.vocabulary import vocabulary_strings


@dataclass(frozen=True)
class TokenBatch:
    """Tokenised texts: ids and a mask that is False at padding."""

    tokens: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]


class Activations(Mapping[str, Tensor]):
    """Activations of a batch by site, with the tokens and the mask they belong to."""

    def __init__(self, values: dict[str, Tensor], tokens: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]):
        self._values = values
        self.tokens = tokens
        self.mask = mask

    @property
    def sites(self) -> list[str]:
        return list(self._values)

    def __getitem__(self, site: str) -> Tensor:
        if site not in self._values:
            raise KeyError(f"site {site!r} was not captured, expected one of {', '.join(self._values)}: ask for it")
        return self._values[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class LanguageModel:
    """A transformers model and its tokenizer, with named sites that are verified at construction."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None, revision: str | None = None) -> None:
        """Wraps a model as it is (switched to eval mode); ValueError if its family or layout is not supported."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.revision = revision
        self.lock = threading.RLock()
        self.site_map = SiteMap.of(model)
        self.taps = Taps(model)
        self._architecture = self.site_map.stacks[-1].architecture
        self.kind = self._architecture.kind
        self.is_experimental = self.site_map.family in EXPERIMENTAL
        self._config: Any = model.config.get_text_config() if self.kind != "encoder-decoder" else model.config
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        verify(self)

    @classmethod
    def load(
        cls,
        name: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        **placement: Any,
    ) -> LanguageModel:
        """Opens the embedded model, a local folder (never touching the network) or a hub name.

        `placement` takes what `ModelConfig` has for large models: device_map, offload_folder, quantization.
        """
        given = ModelConfig(
            name=str(name),
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **placement,
        )
        return cls.from_config(given)

    @classmethod
    def from_config(cls, config: ModelConfig) -> LanguageModel:
        """Opens the model that a config names."""
        model, tokenizer = open_model(config)
        return cls(model, tokenizer, name=config.name, revision=config.revision)

    # What it is

    @property
    def device(self) -> torch.device:
        """Where tokens go in and captured rows come out; modules of a spread model may stand elsewhere."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def d_model(self) -> int:
        return int(self._config.hidden_size)

    @property
    def n_layers(self) -> int:
        """Layers of the decoder (or of the only stack)."""
        return len(self.site_map.stacks[-1].layers)

    @property
    def vocab_size(self) -> int:
        """Width of the logits; may exceed what the tokenizer knows."""
        return int(self._config.vocab_size)

    @property
    def context_tokens(self) -> int:
        """The longest sequence the model was made for."""
        for name in ("max_position_embeddings", "n_positions", "n_ctx"):
            if (value := getattr(self._config, name, None)) is not None:
                return int(value) - self._architecture.position_offset
        limit = int(getattr(self.tokenizer, "model_max_length", 0) or 0)
        return limit if 0 < limit < 1 << 30 else 512

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of BOS, EOS, PAD and other control tokens; the unknown token counts only if it is one of them."""
        special = set(self.tokenizer.all_special_ids)
        named = ("bos", "eos", "pad", "cls", "sep", "mask")
        kept = {getattr(self.tokenizer, f"{name}_token_id", None) for name in named}
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown not in kept:
            special.discard(unknown)
        return frozenset(int(token) for token in special)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        given = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ids = {*(given if isinstance(given, (list, tuple)) else [given]), self.tokenizer.eos_token_id}
        return frozenset(int(token) for token in ids if token is not None)

    def weight_hash(self) -> str:
        """Returns a sha256 over all parameters by name, shape and value, the same on every device.

        Half-precision values are hashed as the float32 they equal, so that holding a bf16 checkpoint in float32 does
        not change its hash.
        """
        return self._weight_hash

    @cached_property
    def _weight_hash(self) -> str:
        def digest(item: tuple[str, Tensor]) -> bytes:
            name, value = item
            value = value.detach()
            value = (value.float() if value.element_size() < 4 else value).cpu().contiguous()
            state = hashlib.sha256(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            state.update(value.flatten().view(torch.uint8).numpy().data)
            return state.digest()

        if is_spread(self.model):
            # one module after another, so that no more than its weights are in memory
            by_name = {name: digest((name, value)) for name, value in each_parameter(self.model)}
            return hashlib.sha256(b"".join(by_name[name] for name in sorted(by_name))).hexdigest()
        with ThreadPoolExecutor(4) as pool:
            digests = list(pool.map(digest, sorted(self.model.named_parameters(), key=lambda item: item[0])))
        return hashlib.sha256(b"".join(digests)).hexdigest()

    # Tokens

    def tokenize(self, text: str | Sequence[str]) -> TokenBatch:
        """Tokenises as the tokenizer's defaults do and pads to one length: decoders left, encoders right."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("got no texts, expected at least one: pass a text")
        ids = self.encode(texts)
        for index, row in enumerate(ids):
            if not row:
                raise ValueError(f"text {index} ({texts[index][:20]!r}) has no tokens, expected some: leave it out")
        length = max(map(len, ids))
        tokens = torch.full((len(ids), length), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(ids), length), dtype=torch.bool)
        for index, row in enumerate(ids):
            place = slice(length - len(row), length) if self.kind == "decoder" else slice(0, len(row))
            tokens[index, place] = torch.tensor(row)
            mask[index, place] = True
        return TokenBatch(tokens, mask)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without padding and without limit or warning about length."""
        encoded = self.tokenizer(
            list(texts), add_special_tokens=True, return_attention_mask=False, verbose=False, truncation=False
        )
        return encoded["input_ids"]

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows (masked, so any will do where the tokenizer names none)."""
        for name in ("pad_token_id", "eos_token_id"):
            if (token := getattr(self.tokenizer, name, None)) is not None:
                return int(token)
        return 0

    def token_strings(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Returns the faithful text of each token: marks for spaces and bytes undone, lone bytes as `\\xNN`."""
        strings = self._strings
        numbers = ids.flatten().tolist() if isinstance(ids, Tensor) else ids
        return [strings[int(token)] for token in numbers]

    @cached_property
    def _strings(self) -> list[str]:
        return vocabulary_strings(self.tokenizer, max(self.vocab_size, len(self.tokenizer)))

    # Sites

    def sites(self) -> list[str]:
        """Returns the names of the sites that this model has, in order of execution."""
        return self.site_map.names()

    def has_site(self, site: str) -> bool:
        """Says whether `site` is one of `sites()` or the path of a module of this model."""
        try:
            self.site_map.binding(site)
        except ValueError:
            return False
        return True

    def site_width(self, site: str) -> int:
        """Returns the width of one row at a site (for `head_out` all heads side by side)."""
        if site not in self._widths:
            tokens = torch.tensor([[min(5, self.vocab_size - 1)] * 2])
            value = self.capture(tokens, None, [site])[site]
            self._widths[site] = value[0, 0].numel()
        return self._widths[site]

    def mlp_norm_gain(self, layer: int) -> Float[Tensor, " d"]:
        """Returns what the RMS norm before the MLP of a layer multiplies each element by, in float32.

        Raises:
            ValueError: the family has no norm there, or one that also shifts.
        """
        stack = self.site_map.stacks[-1]
        path = stack.architecture.mid_norm
        norm = submodule(stack.layers[layer], path) if path and 0 <= layer < len(stack.layers) else None
        if norm is None or getattr(norm, "bias", None) is not None:
            raise ValueError(
                f"{self.name} has no RMS norm before the MLP of layer {layer}, expected one: give the SAE's own model"
            )
        # far above the norm's epsilon, every element of a constant row comes out as its gain
        constant = torch.full((self.d_model,), 1e3, device=self.device)
        with torch.no_grad():
            return copy.deepcopy(norm).float()(constant)

    @cached_property
    def _widths(self) -> dict[str, int]:
        return {}

    # Running

    def forward(self, tokens: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None) -> Any:
        """Runs the model without a cache and returns transformers' output; gradients flow if they are enabled.

        T5 reads the same tokens in both stacks: the decoder's are shifted right by its start token.
        """
        return self.model(**self._inputs(tokens, mask))

    def _inputs(self, tokens: Tensor, mask: Tensor | None) -> dict[str, Any]:
        if mask is not None and bool(mask.all()):
            mask = None  # kernels without a mask are faster
        self.check_length(tokens.shape[1])
        tokens = tokens.to(self.device, torch.long)
        inputs: dict[str, Any] = {"input_ids": tokens}
        if mask is not None:
            mask = mask.to(self.device)
            inputs["attention_mask"] = mask.long()
            if "position_ids" in self._accepts:
                offset = self._architecture.position_offset
                inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0) + offset
        if self.kind == "encoder-decoder":
            start = torch.full_like(tokens[:, :1], self.model.config.decoder_start_token_id)
            shifted = torch.cat([start, tokens[:, :-1]], dim=1)
            if mask is not None:
                # the start token stands right before the first real one, wherever padding is
                follows = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
                shifted = torch.where(follows, shifted, start)
                inputs["decoder_attention_mask"] = mask.long()
            inputs["decoder_input_ids"] = shifted
        if self.kind != "encoder":
            inputs["use_cache"] = False
        return inputs

    def check_length(self, length: int) -> None:
        """ValueError if a sequence of `length` tokens does not fit the model."""
        if length > self.context_tokens and self.kind != "encoder-decoder":
            raise ValueError(
                f"a sequence of {length} tokens was given, {self.name} takes at most {self.context_tokens}: "
                "shorten the text or ask for fewer tokens"
            )

    @torch.no_grad()
    def logits(
        self, tokens: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Returns the logits at every token."""
        with self.lock:
            output = self.forward(tokens, mask)
        if getattr(output, "logits", None) is None or output.logits.ndim != 3:
            raise ValueError(f"{type(self.model).__name__} has no logits over tokens: load it with its LM head")
        return output.logits

    @torch.no_grad()
    def token_losses(
        self, tokens: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch targets"]:
        """Returns −ln p of each token but the first given those before it, in nats; 0 where either is padding."""
        if self.kind != "decoder":
            raise ValueError(f"{self.name} is no decoder, expected a model with a next-token loss: use a decoder")
        logits = self.logits(tokens, mask)[:, :-1].float()
        targets = tokens.to(logits.device, torch.long)[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view(targets.shape)
        if mask is not None:
            both = mask.to(losses.device)
            losses = losses * (both[:, 1:] & both[:, :-1])
        return losses

    def loss(self, tokens: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None) -> float:
        """Returns the mean of `token_losses` over real tokens."""
        losses = self.token_losses(tokens, mask)
        count = losses.numel() if mask is None else int((mask[:, 1:] & mask[:, :-1]).sum())
        return float(losses.double().sum() / max(count, 1))

    @torch.no_grad()
    def capture(
        self, tokens: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None, sites: Sequence[str]
    ) -> dict[str, Tensor]:
        """Returns the activations at `sites` from one pass that stops at the deepest of them."""
        bindings = {site: self.site_map.binding(site) for site in sites}
        if not bindings:
            raise ValueError("got no sites, expected at least one: name a site such as resid_post.0")
        inputs = self._inputs(tokens, mask)
        with self.lock:
            values = self.taps.capture(bindings, lambda: self.model(**inputs))
        return {site: value.to(self.device) for site, value in values.items()} if is_spread(self.model) else values

    def activations(self, texts: str | Sequence[str] | Int[Tensor, "batch seq"], sites: Sequence[str]) -> Activations:
        """Returns the activations of texts (or of tokens without padding) at `sites`."""
        if isinstance(texts, Tensor):
            batch = TokenBatch(texts, torch.ones_like(texts, dtype=torch.bool))
        else:
            batch = self.tokenize(texts)
        wanted = [sites] if isinstance(sites, str) else list(sites)
        return Activations(self.capture(batch.tokens, batch.mask, wanted), batch.tokens, batch.mask)

    @contextmanager
    def intervene(self, edits: Mapping[str, Intervention | Edit]) -> Iterator[None]:
        """Rewrites sites in every forward pass while the block runs, cached generation included; blocks nest.

        An edit takes Float[batch, seq, …] and returns the same shape and type, or ValueError is raised.
        """
        with ExitStack() as stack:
            for site, edit in edits.items():
                stack.enter_context(self.taps.edit(self.site_map.binding(site), edit))
            yield

    def goes_on(self, is_wanted: bool) -> bool:
        """Says whether passes of this model go on; where processes share them, only while all want it."""
        return is_wanted

    def edits_as_of_now(self) -> Callable[[], AbstractContextManager[None]]:
        """Returns what opens blocks whose passes, in a thread of their own, meet the edits that are at work now and
        still are then, but none that other threads begin after this call."""
        return self.taps.as_of_now()

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        use_cache: bool = True,
        interventions: Mapping[str, Intervention | Edit] | None = None,
    ) -> Iterator[str]:
        """Yields the continuation of `prompt`, a piece for each token; closing the iterator stops the generation.

        `prompt` is a text, or a list of messages (mappings with `role` and `content`) that the assistant is to answer.

        `interventions` are at work during this generation's own passes only, so that several can run side by side
        (as behind a web page), which a surrounding `intervene` block would not keep apart.
        """
        how = Decoding(
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
            use_cache=use_cache,
        )
        return generate_pieces(self, prompt, how, interventions or {})

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        use_cache: bool = True,
        interventions: Mapping[str, Intervention | Edit] | None = None,
    ) -> str:
        """Returns the continuation of `prompt` (without it): greedy unless `do_sample`."""
        return "".join(
            self.stream(prompt, max_new_tokens, do_sample, temperature, top_p, seed, stop, use_cache, interventions)
        )

    # The way out

    @property
    def has_unembedding(self) -> bool:
        """Says whether logits are a linear map of the normed residual stream, which `unembedding` then returns."""
        head = self.model.get_output_embeddings()
        return head is not None and self._architecture.final_norm is not None and head.weight.shape[1] == self.d_model

    @property
    def final_site(self) -> str:
        """The site that the final norm reads: the residual stream behind the last layer."""
        return str(Site("resid_post", self.n_layers - 1, self._architecture.stack))

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """Returns W_U, the rows that turn the final residual stream into logits, in float32."""
        head = self.model.get_output_embeddings()
        if head is None or self._architecture.final_norm is None:
            raise ValueError(
                f"{type(self.model).__name__} has no linear map from the residual stream to logits: use a decoder"
            )
        with weights_of(head):
            weight = head.weight.detach().float().to(self.device)
        if weight.shape[1] != self.d_model:
            raise ValueError(
                f"{self.name} projects the stream from {self.d_model} to {weight.shape[1]} before its head"
            )
        return weight

    def logit_directions(self) -> Float[Tensor, "vocab d_model"]:
        """Returns W_U with the final norm's gain folded in (and, for LayerNorm, the mean taken out), in float32.

        `logit_directions() @ d` is the direct effect of a residual direction d on the logits up to the norm's scale.
        """
        directions = self.unembedding()
        norm, gain = self._final_norm(directions.device)
        directions = directions * gain
        if isinstance(norm, torch.nn.LayerNorm):
            directions = directions - directions.mean(dim=1, keepdim=True)
        return directions

    @torch.no_grad()
    def final_norm_scale(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """Returns what the final norm divides each row of the final residual stream by, in float32.

        The logits of a row are `logit_directions() @ x / scale`, plus what the norm's and the head's biases add.
        """
        norm, gain = self._final_norm(x.device)
        rows = x.detach().float()
        out = norm(rows)
        if (bias := getattr(norm, "bias", None)) is not None:
            out = out - bias
        rows = _centred(norm, rows) * gain
        # the norm's output is now rows / scale, whatever the family adds under the root
        return rows.square().sum(1) / (rows * out).sum(1)

    @torch.no_grad()
    def normed_logit_directions(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "vocab d_model"]:
        """Returns W_U J, with J the final norm's Jacobian as a mean over the rows `x` of `final_site`, in float32.

        `normed_logit_directions(x) @ d` is what adding d to these rows changes of the logits (before a cap on them, in
        the families that have one), to first order, as a mean over the rows. With c a row (for LayerNorm less its
        mean), s its `final_norm_scale` and D = `logit_directions()`, a row's part is D (I/s − c cᵀ / (d_model s³)):
        the norm divides by its scale, and takes out what d adds along the row itself.
        """
        if not len(x):
            raise ValueError(f"no rows of {self.final_site} were given, expected at least one: capture some")
        directions = self.logit_directions()
        x = x.detach().to(directions.device).float()
        rows = _centred(self._final_norm(x.device)[0], x)
        scale = self.final_norm_scale(x)
        weighted = rows / (scale**3 * self.d_model * len(x))[:, None]
        directions = directions * (1 / scale).mean() - directions @ (weighted.T @ rows)
        # T5 scales what leaves its norm
        return directions * self.d_model**-0.5 if getattr(self._config, "scale_decoder_outputs", False) else directions

    def _final_norm(self, device: torch.device) -> tuple[Any, Tensor | float]:
        """A copy of the final norm in float32, and what it multiplies each element by."""
        norm = submodule(body_of(self.model), self._architecture.final_norm or "")
        with weights_of(norm):
            norm = copy.deepcopy(norm).float().to(device)
        weight = getattr(norm, "weight", None)
        return norm, 1.0 if weight is None else weight.detach() + self._architecture.norm_gain_offset


def _centred(norm: Any, rows: Tensor) -> Tensor:
    """Rows as the norm scales them: less their mean, where it takes that out."""
    return rows - rows.mean(dim=1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else rows

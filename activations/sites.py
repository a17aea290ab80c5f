"""Names of places in a language model, and where each lies in the modules of every supported architecture.

Enters: a transformers model. Leaves: a `SiteMap` from site names to `Binding`s, module and side, that
`activations.capture` hooks. One table, `ARCHITECTURES`, holds all that differs between families; nothing here runs the
model, and `activations.verification` checks that the table is true of a model before anyone relies on it.

Sites, the same for every family (L counts layers from 0; width is that of one row):

    embed         token embeddings, before positions are added where a family adds them
    resid_pre.L   residual stream entering layer L
    head_out.L    values of the attention heads before the output projection  [batch seq heads d_head]
    attn_out.L    what attention writes into the residual stream (after its own norm in Gemma 2, 3 and OLMo 2)
    resid_mid.L   residual stream between attention and MLP (absent where both read the same stream)
    mlp_in.L      what the MLP reads: the stream after the norm before it (post-norm families: the stream itself)
    mlp_act.L     neurons: the input of the MLP's down projection
    mlp_out.L     what the MLP writes into the residual stream
    resid_post.L  residual stream leaving layer L

T5 is experimental: its two stacks put `encoder.` or `decoder.` before the name. A path of a module, as
`model.named_modules()` spells it, is a site too: that module's output.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

LAYER_KINDS = ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_in", "mlp_act", "mlp_out", "resid_post")
KINDS = ("embed", *LAYER_KINDS)
_LAYER_SITE = re.compile(rf"(?:(encoder|decoder)\.)?({'|'.join(LAYER_KINDS)})\.(\d+)")
_EMBED_SITE = re.compile(r"(?:(encoder|decoder)\.)?embed")

Residual = Literal["sequential", "parallel", "post_norm"]
ModelKind = Literal["decoder", "encoder", "encoder-decoder"]
Side = Literal["input", "output"]


@dataclass(frozen=True)
class Site:
    """A parsed site name: its kind, its layer (None for `embed` and modules) and, for T5, its stack."""

    kind: str
    layer: int | None = None
    stack: str = ""
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "module":
            return self.path
        prefix = f"{self.stack}." if self.stack else ""
        return f"{prefix}{self.kind}" if self.layer is None else f"{prefix}{self.kind}.{self.layer}"


def parse_site(name: str) -> Site:
    """Parses a site name; what has no site's form is taken for the path of a module."""
    if found := _LAYER_SITE.fullmatch(name):
        return Site(kind=found[2], layer=int(found[3]), stack=found[1] or "")
    if found := _EMBED_SITE.fullmatch(name):
        return Site(kind="embed", stack=found[1] or "")
    return Site(kind="module", path=name)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where one family keeps what. Paths in `layers`, `embed`, `final_norm` start at the model's body (its base model
    without a head), all others at a layer; an index may be negative."""

    kind: ModelKind = "decoder"
    residual: Residual = "sequential"
    layers: str
    """The list of layers."""
    embed: str
    """The token embedding."""
    attn: str
    """The module whose output attention adds to the residual stream."""
    heads: str
    """The output projection of attention: its input is the heads' values side by side."""
    mlp: str
    """The module whose output the MLP adds to the residual stream."""
    mlp_in: str | None = None
    """The module whose input is what the MLP reads, where that is not `mlp`."""
    neurons: str | None
    """The down projection: its input is the neurons. None where there are no dense neurons."""
    mid_norm: str | None = None
    """The norm that reads the stream between attention and MLP, to check `resid_mid` against."""
    mid_output: str | None = None
    """The module whose output is `resid_mid`, where it is not the sum of the layer's input and attention's output."""
    final_norm: str | None = None
    """The norm before the unembedding."""
    norm_gain_offset: float = 0.0
    """What the final norm adds to its weight before multiplying (1 in Gemma)."""
    position_offset: int = 0
    """Position id of the first token (RoBERTa: the padding id plus 1, filled in from the config)."""
    learned_positions: bool = False
    """Positions are a table that ends: longer sequences are impossible, not just untrained."""
    write_norms: tuple[str, str] | None = None
    """In post-norm families the norms over stream plus attention and over stream plus MLP."""
    cross: str | None = None
    """The module whose output cross-attention adds to the residual stream (T5's decoder)."""
    stack: str = ""
    """`encoder` or `decoder` in models that have both."""


_LLAMA = Architecture(
    layers="layers",
    embed="embed_tokens",
    attn="self_attn.o_proj",
    heads="self_attn.o_proj",
    mlp="mlp",
    neurons="mlp.down_proj",
    mid_norm="post_attention_layernorm",
    final_norm="norm",
)
# Gemma 2, 3 and OLMo 2 normalise what attention and MLP write: the norms' outputs are the writes
_GEMMA2 = replace(
    _LLAMA,
    attn="post_attention_layernorm",
    mlp="post_feedforward_layernorm",
    mlp_in="mlp",
    mid_norm="pre_feedforward_layernorm",
    norm_gain_offset=1.0,
)
_GPT2 = Architecture(
    layers="h",
    embed="wte",
    attn="attn.c_proj",
    heads="attn.c_proj",
    mlp="mlp",
    neurons="mlp.c_proj",
    mid_norm="ln_2",
    final_norm="ln_f",
    learned_positions=True,
)
_BERT = Architecture(
    kind="encoder",
    residual="post_norm",
    layers="encoder.layer",
    embed="embeddings.word_embeddings",
    attn="attention.output.dense",
    heads="attention.output.dense",
    mlp="output.dense",
    mlp_in="intermediate.dense",
    neurons="output.dense",
    mid_output="attention.output",
    write_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    learned_positions=True,
)
_T5_ENCODER = Architecture(
    kind="encoder-decoder",
    layers="encoder.block",
    embed="encoder.embed_tokens",
    attn="layer.0.SelfAttention.o",
    heads="layer.0.SelfAttention.o",
    mlp="layer.-1.DenseReluDense",
    neurons="layer.-1.DenseReluDense.wo",
    mid_norm="layer.-1.layer_norm",
    mid_output="layer.-2",
    final_norm="encoder.final_layer_norm",
    stack="encoder",
)
_T5_DECODER = replace(
    _T5_ENCODER,
    layers="decoder.block",
    embed="decoder.embed_tokens",
    cross="layer.1.EncDecAttention.o",
    final_norm="decoder.final_layer_norm",
    stack="decoder",
)

ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "gpt2": (_GPT2,),
    "gpt_neo": (replace(_GPT2, attn="attn.attention.out_proj", heads="attn.attention.out_proj", neurons="mlp.c_proj"),),
    "gptj": (
        replace(
            _GPT2,
            residual="parallel",
            attn="attn.out_proj",
            heads="attn.out_proj",
            neurons="mlp.fc_out",
            mid_norm=None,
            learned_positions=False,
        ),
    ),
    "gpt_neox": (
        Architecture(
            residual="parallel",
            layers="layers",
            embed="embed_in",
            attn="attention.dense",
            heads="attention.dense",
            mlp="mlp",
            neurons="mlp.dense_4h_to_h",
            final_norm="final_layer_norm",
        ),
    ),
    "llama": (_LLAMA,),
    "mistral": (_LLAMA,),
    "mixtral": (replace(_LLAMA, neurons=None),),
    "qwen2": (_LLAMA,),
    "qwen3": (_LLAMA,),
    "phi3": (_LLAMA,),
    "gemma": (replace(_LLAMA, norm_gain_offset=1.0),),
    "gemma2": (_GEMMA2,),
    "gemma3_text": (_GEMMA2,),
    "gemma3": (_GEMMA2,),
    "olmo2": (replace(_GEMMA2, mid_norm=None, norm_gain_offset=0.0),),
    "opt": (
        Architecture(
            layers="decoder.layers",
            embed="decoder.embed_tokens",
            attn="self_attn.out_proj",
            heads="self_attn.out_proj",
            mlp="fc2",
            mlp_in="fc1",
            neurons="fc2",
            mid_norm="final_layer_norm",
            final_norm="decoder.final_layer_norm",
            learned_positions=True,
        ),
    ),
    "bert": (_BERT,),
    "roberta": (_BERT,),
    "t5": (_T5_ENCODER, _T5_DECODER),
}
"""By `config.model_type`: one stack of layers each, two for encoder-decoders."""

EXPERIMENTAL = frozenset({"t5"})


def architectures_of(config: Any) -> tuple[Architecture, ...]:
    """Returns the stacks of a model with this transformers config; ValueError names the supported families."""
    family = str(getattr(config, "model_type", "") or "none")
    if family not in ARCHITECTURES:
        near = difflib.get_close_matches(family, ARCHITECTURES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ValueError(
            f"model family {family!r} has no map of sites{hint}, expected one of {', '.join(sorted(ARCHITECTURES))}: "
            "use a model of these families"
        )
    stacks = ARCHITECTURES[family]
    if family == "gpt_neox" and not config.use_parallel_residual:
        return (replace(stacks[0], residual="sequential", mid_norm="post_attention_layernorm"),)
    if family == "opt" and not config.do_layer_norm_before:
        norms = ("self_attn_layer_norm", "final_layer_norm")
        without = replace(stacks[0], mid_norm=None, final_norm=None)
        return (replace(without, residual="post_norm", mid_output=norms[0], write_norms=norms),)
    if family == "roberta":
        return (replace(stacks[0], position_offset=config.pad_token_id + 1),)
    return stacks


@dataclass(frozen=True, eq=False)
class Binding:
    """Where a site is read and rewritten: the input or the output of a module.

    With `residual` the site is the sum of that module's input and the bound output: the stream between attention and
    MLP, which no module returns. A rewrite then goes into the bound output.
    """

    site: Site
    module: nn.Module
    side: Side
    rank: int
    """Order of execution within a layer: what lies earlier is read and rewritten earlier."""
    heads: int | None = None
    residual: nn.Module | None = None


def submodule(root: nn.Module, path: str) -> nn.Module:
    """Follows a dotted path of attributes and (also negative) indices."""
    module = root
    for part in path.split(".") if path else ():
        module = module[int(part)] if part.startswith("-") else getattr(module, part)  # pyright: ignore
    return module


def body_of(model: nn.Module) -> nn.Module:
    """Returns the model without its head: the language part of a multimodal one."""
    body = getattr(model, "base_model", model)
    return getattr(body, "language_model", body)


@dataclass(frozen=True)
class Stack:
    """One stack of layers of a model at hand."""

    architecture: Architecture
    layers: list[nn.Module]
    heads: int


@dataclass
class SiteMap:
    """All sites of one model. `refused` says, by kind (with stack), why a site that others have is missing."""

    family: str
    model: nn.Module
    stacks: list[Stack]
    bindings: dict[str, Binding] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> SiteMap:
        """Lays the family's table over `model`; ValueError if a module of the table is not there."""
        config: Any = model.config
        text_config = config.get_text_config() if getattr(config, "model_type", "") == "gemma3" else config
        family = str(config.model_type) if hasattr(config, "model_type") else "none"
        body = body_of(model)
        sites = cls(family=family, model=model, stacks=[])
        for architecture in architectures_of(config):
            if architecture.stack == "decoder" and not hasattr(body, "decoder"):
                continue
            try:
                layers = list(submodule(body, architecture.layers))  # pyright: ignore
                heads = _head_count(text_config)
                stack = Stack(architecture, layers, heads)
                sites.stacks.append(stack)
                for binding in _bindings(body, stack):
                    sites.bindings[str(binding.site)] = binding
            except (AttributeError, IndexError, TypeError) as error:
                raise ValueError(
                    f"{type(model).__name__} is not laid out as family {family!r} in this version of transformers: "
                    f"{error}: use a model of the released class"
                ) from error
            prefix = f"{architecture.stack}." if architecture.stack else ""
            if architecture.residual == "parallel":
                sites.refused[f"{prefix}resid_mid"] = "attention and MLP read the same residual stream"
            if architecture.neurons is None:
                sites.refused[f"{prefix}mlp_act"] = "its MLP is a mixture of experts, which has no dense neurons"
        return sites

    def names(self) -> list[str]:
        """Returns the named sites that the model has, in order of execution."""
        return list(self.bindings)

    def binding(self, name: str) -> Binding:
        """Resolves a site name or module path; ValueError names the nearest site or says why a family has none."""
        if name in self.bindings:
            return self.bindings[name]
        site = parse_site(name)
        prefix = f"{site.stack}." if site.stack else ""
        if reason := self.refused.get(f"{prefix}{site.kind}"):
            raise ValueError(f"site {name!r} does not exist in {self.family} models: {reason}: choose another site")
        if site.kind == "module" and name:
            modules = dict(self.model.named_modules())
            if name in modules:
                return Binding(site=site, module=modules[name], side="output", rank=len(KINDS))
            near = difflib.get_close_matches(name, [*self.bindings, *modules], n=1, cutoff=0.5)
        else:
            near = difflib.get_close_matches(name, self.bindings, n=1, cutoff=0.3)
        counts = ", ".join(
            f"{stack.architecture.stack or 'layers'} 0 to {len(stack.layers) - 1}" for stack in self.stacks
        )
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise ValueError(
            f"unknown site {name!r}{hint}, expected embed, {', '.join(f'{kind}.L' for kind in LAYER_KINDS)} "
            f"({counts}) or the path of a module: correct the name"
        )


def _head_count(config: Any) -> int:
    for name in ("num_attention_heads", "n_head", "num_heads"):
        if (count := getattr(config, name, None)) is not None:
            return int(count)
    raise AttributeError("the config names no number of attention heads")


def _bindings(body: nn.Module, stack: Stack) -> Iterator[Binding]:
    family, name = stack.architecture, stack.architecture.stack
    yield Binding(Site("embed", None, name), submodule(body, family.embed), "output", KINDS.index("embed"))
    for number, layer in enumerate(stack.layers):

        def bind(
            kind: str,
            path: str,
            side: Side,
            heads: int | None = None,
            residual: nn.Module | None = None,
            number: int = number,
            layer: nn.Module = layer,
        ) -> Binding:
            site = Site(kind, number, name)
            return Binding(site, submodule(layer, path), side, KINDS.index(kind), heads, residual)

        yield bind("resid_pre", "", "input")
        yield bind("head_out", family.heads, "input", heads=stack.heads)
        yield bind("attn_out", family.attn, "output")
        if family.mid_output is not None:
            yield bind("resid_mid", family.mid_output, "output")
        elif family.residual == "sequential":
            yield bind("resid_mid", family.attn, "output", residual=layer)
        yield bind("mlp_in", family.mlp_in or family.mlp, "input")
        if family.neurons is not None:
            yield bind("mlp_act", family.neurons, "input")
        yield bind("mlp_out", family.mlp, "output")
        yield bind("resid_post", "", "output")

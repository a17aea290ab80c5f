"""Names of places in a language model, from other projects' words into sites and back.

Enters and leaves: strings. Sites are those of `activations.sites` (`resid_pre.8`, `mlp_in.3`, …); TransformerLens hooks
(`blocks.8.hook_resid_pre`), module paths of transformers (`gpt_neox.layers.3`, `layers.5.mlp`, and with a side, as
`model.layers.17.output`) and dictionary_learning's submodule names (`resid_post_layer_8`) are understood. What is not
stays as it is: a raw name that a model resolves itself or refuses by name.
"""

from __future__ import annotations

import re

_SITE_OF_HOOK = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "attn.hook_z": "head_out",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_in": "mlp_in",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in",
}
_HOOK_OF_SITE = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "head_out": "attn.hook_z",
    "mlp_act": "mlp.hook_post",
    "mlp_in": "mlp.hook_in",
}
KINDS = tuple(_HOOK_OF_SITE)

_LAYER = re.compile(r"(?:(?:[a-z_]+\.)*)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?")
_EMBED = re.compile(r"(?:[a-z_]+\.)*(?:embed_tokens|embed_in|wte|word_embeddings)(?:\.output)?")
_SUBMODULES = {
    None: "resid_post",
    "output": "resid_post",
    "input": "resid_pre",
    "mlp": "mlp_out",
    "mlp.output": "mlp_out",
    "mlp.input": "mlp_in",
    "feed_forward": "mlp_out",
    "attn": "attn_out",
    "attention": "attn_out",
    "self_attn": "attn_out",
    "attn.output": "attn_out",
    "attention.output": "attn_out",
    "self_attn.output": "attn_out",
    "self_attn.o_proj.input": "head_out",
    "attn.c_proj.input": "head_out",
    "attention.dense.input": "head_out",
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
    "post_feedforward_layernorm": "mlp_out",
    "mlp.down_proj.input": "mlp_act",
}
_OWNERS = {
    "pythia-": "EleutherAI",
    "gpt-neo": "EleutherAI",
    "gpt-j": "EleutherAI",
    "gemma-": "google",
    "Qwen": "Qwen",
    "Llama-": "meta-llama",
    "Meta-Llama-": "meta-llama",
    "Mistral-": "mistralai",
}
_RMS_NORM = re.compile(r"gemma|llama|mistral|mixtral|qwen|olmo|phi-?3", re.IGNORECASE)
_POST_NORM = re.compile(r"gemma-?[23]|olmo-?2", re.IGNORECASE)


def site_of(name: str | None, model_name: str | None = None) -> str | None:
    """Translates a hook, module path or submodule name into a site; an unknown one, or None, stays as it is.

    `ln2.hook_normalized` of a model with RMS norms stays too: it lies before the norm's gain, where `mlp_in` lies
    after it (see `sae.formats.fold_input_gain`). So does the path of an MLP whose output is normalised before it
    reaches the residual stream (Gemma 2 and 3, OLMo 2).
    """
    if name is None:
        return None
    model = model_name or ""
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        kind = _SITE_OF_HOOK.get(found[2])
        if kind and not (found[2] == "ln2.hook_normalized" and _RMS_NORM.search(model)):
            return f"{kind}.{found[1]}"
        if kind:
            return name
    if name in ("hook_embed", "embed") or _EMBED.fullmatch(name):
        return "embed"
    if found := re.fullmatch(rf"({'|'.join(KINDS)}|resid|mlp|attn)_layer_?(\d+)", name):
        kind = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out"}.get(found[1], found[1])
        return f"{kind}.{found[2]}"
    if found := _LAYER.fullmatch(name):
        kind = _SUBMODULES.get(found[2])
        if kind in ("mlp_out", "attn_out") and _POST_NORM.search(model) and "feedforward" not in (found[2] or ""):
            return name if name.startswith("model.") else f"model.{name}"
        if kind:
            return f"{kind}.{found[1]}"
    return name


def saelens_hook(site: str | None) -> str | None:
    """Translates a site into the hook name that SAELens uses; a raw module path or None stays as it is."""
    if site is None:
        return None
    kind, _, layer = site.partition(".")
    if site == "embed":
        return "hook_embed"
    place = _HOOK_OF_SITE.get(kind)
    return f"blocks.{layer}.{place}" if place and layer.isdigit() else site


def layer_of(site: str | None) -> int | None:
    """Returns the layer that a site or a raw name speaks of."""
    found = re.search(r"(?:^|[._])(\d+)(?:\.|$)", site or "")
    return int(found[1]) if found else None


def hookpoint(site: str | None, model_name: str | None) -> str:
    """Translates a site into the module path, below the model's body, by which sparsify names its folders."""
    kind, _, layer = (site or "sae").partition(".")
    model = (model_name or "").lower()
    stack = "h" if "gpt2" in model or "gpt-j" in model or "gpt-neo-" in model else "layers"
    if kind == "resid_pre" and layer.isdigit() and int(layer) > 0:
        return f"{stack}.{int(layer) - 1}"
    if not layer.isdigit() or kind not in ("resid_post", "mlp_out", "mlp_in", "attn_out"):
        return (site or "sae").replace("/", "_")
    attention = "attn" if stack == "h" else "attention" if "pythia" in model or "neox" in model else "self_attn"
    inner = {"resid_post": "", "mlp_out": ".mlp", "mlp_in": ".mlp", "attn_out": f".{attention}"}[kind]
    return f"{stack}.{layer}{inner}"


def hub_model(name: str | None) -> str | None:
    """Completes TransformerLens's short model names to names that transformers can load."""
    if not name or "/" in name:
        return name
    if found := re.fullmatch(r"gpt2-(small|medium|large|xl)", name):
        return "gpt2" if found[1] == "small" else name
    owner = next((owner for start, owner in _OWNERS.items() if name.startswith(start)), None)
    return f"{owner}/{name}" if owner else name

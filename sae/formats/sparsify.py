"""sparsify: a root `config.json`, and for each hookpoint a folder with `cfg.json` and `sae.safetensors`.

`encoder.weight [d_sae, d_in]`, `encoder.bias`, `W_dec [d_sae, d_in]`, `b_dec`, and `W_skip [d_in, d_in]` where there is
a skip connection. Latents are the k largest after ReLU; older folders may say `signed`, which chooses by magnitude and
keeps the sign. The encoder reads x − b_dec unless `transcode`. The folder's name is the module read (and, in
transcoders, the module whose output is predicted). Source: EleutherAI/sparsify, `sparse_coder.py`, `config.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.formats import hooks
from sae.formats.canonical import Reading, known, move_b_dec
from sae.formats.files import number, read_json, read_tensors, take, text, write_json, write_tensors

if TYPE_CHECKING:
    from sae.model import SAE

CONFIG, WEIGHTS, ROOT = "cfg.json", "sae.safetensors", "config.json"


def read(folder: Path) -> Reading:
    """Reads one hookpoint's folder, with the `config.json` of its root where that is there."""
    where = folder / CONFIG
    content = read_json(where)
    root = read_json(folder.parent / ROOT) if (folder.parent / ROOT).is_file() else {}
    d_in = number(content, "d_in", where)
    wide = content.get("num_latents")  # 0 or missing: by the expansion factor
    d_sae = number(content, "num_latents", where) if wide else d_in * number(content, "expansion_factor", where)
    function = content.get("activation", "topk")
    if function != "topk":
        raise ValueError(f"{where} says activation={function!r}, expected topk: such SAEs cannot be opened")
    skips, transcodes = bool(content.get("skip_connection")), bool(content.get("transcode"))
    predicts = transcodes or skips or bool(root.get("transcode"))
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if skips:
        shapes["W_skip"] = (d_in, d_in)
    taken = take(read_tensors(folder / WEIGHTS), shapes, folder / WEIGHTS, CONFIG, besides=())
    tensors = {"W_enc": taken.pop("encoder.weight"), "b_enc": taken.pop("encoder.bias"), **taken}
    config: dict[str, Any] = {
        "architecture": "abstopk" if content.get("signed") else "topk",
        "d_in": d_in,
        "d_sae": d_sae,
        "k": number(content, "k", where),
        "apply_b_dec_to_input": not transcodes,
        "normalize_activations": "none",
    }
    if predicts:
        if content.get("signed"):
            raise ValueError(f"{where} says signed for a transcoder, expected positive latents: it cannot be opened")
        config |= {"architecture": "skip_transcoder" if skips else "transcoder", "activation": "topk", "d_out": d_in}
    return Reading(config, tensors, _metadata(folder, root, predicts))


def _metadata(folder: Path, root: dict[str, Any], predicts: bool) -> dict[str, Any]:
    model = text(root, "model", folder.parent / ROOT)
    site = hooks.site_of(folder.name, model)
    sites: dict[str, Any] = {"site": site}
    if predicts and site:
        kind, _, layer = site.partition(".")
        source = {"mlp_out": "mlp_in", "resid_post": "resid_pre"}.get(kind)
        if folder.name.endswith(".mlp"):
            source, layer = "mlp_in", str(hooks.layer_of(folder.name))
        sites = {"site": f"{source}.{layer}" if source else f"{folder.name}.input", "target_sites": [site]}
    data = known(source=root.get("dataset"), context_tokens=root.get("ctx_len"))
    return known(**sites, model_name=model, data=data)


def write(sae: SAE, folder: Path) -> None:
    """Writes a root with one hookpoint's folder; ValueError names what sparsify cannot express."""
    config = sae.config
    activation = config.activation or "topk" if config.architecture in ("transcoder", "skip_transcoder") else None
    if config.architecture != "topk" and activation != "topk":
        said = config.architecture if activation is None else f"{activation} {config.architecture}"
        raise ValueError(
            f"sparsify has no architecture `{said}`, expected topk or a top-k transcoder: write the SAE as saelens"
        )
    if config.normalize_activations in ("constant_norm_rescale", "layer_norm"):
        raise ValueError(
            f"sparsify cannot express normalize_activations={config.normalize_activations!r}, expected none: write the "
            "SAE as saelens"
        )
    if config.output_width != config.d_in:
        raise ValueError(
            f"sparsify writes d_in={config.d_in} values, got d_out={config.output_width}: write the SAE as saelens"
        )
    predicts, metadata = activation is not None, sae.metadata
    tensors = {name: value.detach().cpu() for name, value in sae.state_dict().items()}
    tensors = move_b_dec(tensors, config.subtracts_b_dec, wanted=not predicts)
    site = metadata["target_sites"][0] if predicts and metadata.get("target_sites") else metadata.get("site")
    inner = folder / hooks.hookpoint(site, metadata.get("model_name"))
    inner.mkdir(parents=True, exist_ok=True)
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    write_tensors(inner / WEIGHTS, {names.get(name, name): value for name, value in tensors.items()})
    data = metadata.get("data") or {}
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, config.d_sae // config.d_in),
        "normalize_decoder": False,
        "num_latents": config.d_sae,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": config.architecture == "skip_transcoder",
        "transcode": predicts,
        "d_in": config.d_in,
    }
    write_json(inner / CONFIG, settings)
    root = {
        "sae": {name: value for name, value in settings.items() if name != "d_in"},
        "hookpoints": [inner.name],
        "model": metadata.get("model_name"),
        "dataset": data.get("source"),
        "ctx_len": data.get("context_tokens"),
    }
    write_json(folder / ROOT, known(**root))

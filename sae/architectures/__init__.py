"""Every kind of dictionary, one file each, behind one surface (`sae.architectures.architecture`)."""

from __future__ import annotations

from sae.architectures.abstopk import AbsTopK
from sae.architectures.architecture import Architecture, Forward, Moment
from sae.architectures.batchtopk import BatchTopK
from sae.architectures.gated import Gated
from sae.architectures.jumprelu import JumpReLU
from sae.architectures.matching_pursuit import MatchingPursuit
from sae.architectures.matryoshka import Matryoshka
from sae.architectures.p_anneal import PAnneal
from sae.architectures.standard import Standard
from sae.architectures.topk import TopK
from sae.config import SAEConfig

_BY_MECHANISM: dict[str, type[Architecture]] = {
    "standard": Standard,
    "p_anneal": PAnneal,
    "gated": Gated,
    "topk": TopK,
    "batchtopk": BatchTopK,
    "jumprelu": JumpReLU,
    "matryoshka_batchtopk": Matryoshka,
    "abstopk": AbsTopK,
    "matching_pursuit": MatchingPursuit,
}


def architecture_of(config: SAEConfig) -> Architecture:
    """Returns the architecture of a config."""
    return _BY_MECHANISM[config.mechanism](config)


def tensor_shapes(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a finished SAE and their shapes."""
    read = config.d_in if config.architecture == "clt" else config.d_in * config.n_sites
    written = config.output_width * config.n_sites
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (config.d_sae, read),
        "W_dec": (config.d_sae, written),
        "b_dec": (written,),
    }
    if config.mechanism == "gated":
        shapes |= dict.fromkeys(("b_gate", "r_mag", "b_mag"), (config.d_sae,))
    else:
        shapes["b_enc"] = (config.d_sae,)
    if config.mechanism in ("jumprelu", "batchtopk", "matryoshka_batchtopk"):
        shapes["threshold"] = (config.d_sae,)
    if config.architecture == "skip_transcoder":
        shapes["W_skip"] = (config.output_width, config.d_in)
    return shapes


__all__ = ["Architecture", "Forward", "Moment", "architecture_of", "tensor_shapes"]

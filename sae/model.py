"""The sparse autoencoder as a finished thing: encode, decode, save, load.

One canonical form in memory: row i of `W_enc` and of `W_dec` is latent i, and inputs are raw activations (any scale
learned in training is folded into the weights). `SAEConfig.architecture` says how latents are chosen; the arithmetic of
each is in `sae.architectures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.architectures import architecture_of, tensor_shapes
from sae.codes import Codes
from sae.config import SAEConfig

LAYER_NORM_EPSILON = 1e-5


class SAE(nn.Module):
    """A sparse autoencoder over activations of width `d_in` with `d_sae` latents.

    Transcoders write other rows than they read; crosscoders and cross-layer transcoders read and write several sites,
    Float[n, n_sites, d_in]. `metadata` says where the SAE comes from (model, site, data, training); it travels with the
    weights and is plain JSON.
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, config: SAEConfig, metadata: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = dict(metadata or {})
        self._architecture = architecture_of(config)
        for name, shape in tensor_shapes(config).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    @classmethod
    def from_tensors(
        cls, config: SAEConfig, tensors: Mapping[str, Tensor], metadata: dict[str, Any] | None = None
    ) -> SAE:
        """Returns an SAE with these weights.

        Raises:
            ValueError: a tensor is missing, unknown, of another shape than the config says, or not finite.
        """
        sae = cls(config, metadata)
        shapes = tensor_shapes(config)
        if unknown := sorted(set(tensors) - set(shapes)):
            raise ValueError(
                f"tensor {unknown[0]} is no part of architecture `{config.architecture}`, expected "
                f"{', '.join(shapes)}: check the architecture"
            )
        for name, shape in shapes.items():
            got = tuple(tensors[name].shape) if name in tensors else None
            if got != shape:
                raise ValueError(
                    f"{name} is of shape {got}, expected {shape} by the config: weights and config "
                    "do not belong together"
                )
            if not torch.isfinite(tensors[name]).all():
                raise ValueError(f"{name} holds non-finite values, expected numbers: train or copy the SAE again")
            setattr(sae, name, nn.Parameter(tensors[name].detach().float().contiguous()))
        return sae

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name."""
        return dict(self.named_parameters())

    @property
    def site(self) -> str:
        """The site whose activations this SAE reads (the first, where it reads several).

        Raises:
            ValueError: the SAE does not say (it was trained on bare rows).
        """
        site = self.metadata.get("site") or next(iter(self.metadata.get("sites") or ()), None)
        if not site:
            raise ValueError("this SAE names no site, expected metadata['site']: set it, for example 'resid_post.3'")
        return str(site)

    @property
    def sites(self) -> list[str]:
        """All sites that this SAE reads, in the order of its rows."""
        return [str(site) for site in self.metadata.get("sites") or (self.site,)]

    @property
    def target_sites(self) -> list[str]:
        """The sites that this SAE writes: those it reads, but for transcoders."""
        return [str(site) for site in self.metadata.get("target_sites") or self.sites]

    def encode(self, x: Float[Tensor, "n ..."]) -> Codes:
        """Returns the codes of `n` rows, padded with index −1 and value 0 to the length of the longest.

        Rows are [n, d_in], or [n, n_sites, d_in] where the SAE reads several sites. Differentiable unless gradients are
        switched off, which is also what keeps memory small.

        Raises:
            ValueError: `x` has another shape.
        """
        config = self.config
        expected = (config.d_in,) if config.n_sites == 1 else (config.n_sites, config.d_in)
        if tuple(x.shape[1:]) != expected or x.ndim != len(expected) + 1:
            raise ValueError(
                f"encode got rows of shape {tuple(x.shape)}, expected [n, {', '.join(map(str, expected))}]: flatten "
                "batch and sequence, and check that the site is the SAE's"
            )
        rows = x.to(self.W_enc.dtype).flatten(1)
        rows, scale, shift = normalized(rows, config)
        parameters = self.tensors
        selection = self._architecture.encode(parameters, self._architecture.centre(parameters, rows))
        indices = torch.where(selection.values != 0, selection.indices, -1)
        return Codes(selection.values, indices, config.d_sae, scale, shift)

    def decode(self, codes: Codes) -> Float[Tensor, "n ..."]:
        """Returns the reconstruction of codes, without a skip term; differentiable in values and weights."""
        config = self.config
        bags = nn.functional.embedding_bag(
            codes.indices.clamp(min=0), self.W_dec, per_sample_weights=codes.values, mode="sum"
        )
        rows = _denormalized(bags + self.b_dec, codes)
        return rows if config.n_sites == 1 else rows.unflatten(1, (config.n_sites, config.output_width))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Returns decode(encode(x)), and the skip term where there is one: what is predicted to stand at the target."""
        written = self.decode(self.encode(x))
        if self.config.architecture != "skip_transcoder":
            return written
        return written + x.to(self.W_enc.dtype) @ self.tensors["W_skip"].T

    def save(self, path: str | Path, format: str = "saelens") -> Path:
        """Writes the SAE to the folder `path` and returns it; the config comes last, so that a folder is whole or none.

        Raises:
            ValueError: an unknown format, or one that cannot hold this architecture.
        """
        from sae import formats

        return formats.save(self, Path(path), format)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        input_scale: float | Sequence[float] | None = None,
    ) -> SAE:
        """Opens an SAE of any supported format, recognised from its files: a local folder or file, or a hub repository.

        `subfolder` chooses among several, `revision` a state of the repository. `input_scale` folds in the factor by
        which activations were multiplied in training, for the formats that leave it to the user.

        Raises:
            FileNotFoundError: no such folder or repository, or no SAE in it.
            OSError: the hub cannot be reached.
            ValueError: files of an unknown or damaged format (the message names the field or tensor), or several SAEs.
        """
        from sae import formats

        return formats.load(path, subfolder, revision, input_scale).to(device)

    def push_to_hub(
        self, name: str, *, format: str = "saelens", subfolder: str | None = None, private: bool = False
    ) -> str:
        """Uploads the SAE with a model card to the hub repository `name` (`org/name`) and returns the commit's address.

        Raises:
            OSError: the hub cannot be reached.
            ValueError: a name of another form, or a format that cannot hold this architecture.
        """
        from sae import formats

        return formats.push(self, name, format=format, subfolder=subfolder, private=private)


def normalized(
    rows: Float[Tensor, "n d"], config: SAEConfig
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"] | None, Float[Tensor, " n"] | None]:
    """Returns rows under the config's row-wise normalisation, and the scale and shift that undo it (or None)."""
    if config.normalize_activations == "constant_norm_rescale":
        scale = rows.norm(dim=1).clamp(min=1e-12) / rows.shape[1] ** 0.5
        return rows / scale[:, None], scale, None
    if config.normalize_activations == "layer_norm":
        shift = rows.mean(1)
        moved = rows - shift[:, None]
        scale = moved.std(1)  # undone without the epsilon, as other projects do
        return moved / (scale + LAYER_NORM_EPSILON)[:, None], scale, shift
    return rows, None, None


def _denormalized(rows: Tensor, codes: Codes) -> Tensor:
    if codes.scale is not None:
        rows = rows * codes.scale[:, None]
    return rows if codes.shift is None else rows + codes.shift[:, None]


def finished_config(config: SAEConfig) -> SAEConfig:
    """Returns the config of a finished SAE: a scale that training estimated is folded into its weights."""
    if config.normalize_activations == "expected_average_only_in":
        return replace(config, normalize_activations="none")
    return config

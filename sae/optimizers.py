"""The optimisers of SAE training: Adam, Muon and Signum, each also schedule-free.

Enters: named parameters, and in each step their gradients and a rate. Leaves: parameters moved in place.

* adam: `torch.optim.Adam`, fused.
* muon: orthogonalised momentum (Jordan et al. 2024) for the matrices, Adam for the vectors.
* signum: the sign of the momentum (Bernstein et al. 2018, arXiv 1802.04434).
* schedule-free (Defazio et al. 2024, arXiv 2405.15682): the optimiser moves z, gradients are taken at
  y = (1 − β₁) z + β₁ x, and x, the mean of all z weighted by the squared rate, is what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sae.config import TrainSettings

UNSET_RATE = 0.0
"""Every step brings its own."""
Constraint = Callable[[dict[str, Tensor]], None]


class Signum(torch.optim.Optimizer):
    """p ← p − lr · sign(m), m ← β m + (1 − β) g."""

    def __init__(self, params: list[Tensor], lr: float, beta: float) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                entries = self.state[parameter]
                momentum = entries.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["beta"])
                parameter.sub_(momentum.sign(), alpha=group["lr"])


class Optimizer:
    """One optimiser over named parameters, with a state that can be saved."""

    def __init__(self, settings: TrainSettings, parameters: dict[str, Tensor], constrain: Constraint) -> None:
        self._settings, self._parameters, self._constrain = settings, parameters, constrain
        # schedule-free: the parameters hand out y, the optimiser moves z, the mean x is what remains
        self._moved = {n: v.clone() for n, v in parameters.items()} if settings.schedule_free else parameters
        self._mean = {n: v.clone() for n, v in parameters.items()} if settings.schedule_free else None
        self._weight = torch.zeros((), dtype=torch.float64)
        self._inner = _inner(settings, self._moved)

    def step(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """Moves the parameters by one step and restores their constraint."""
        for name, value in self._moved.items():
            value.grad = gradients[name]
        for optimizer in self._inner:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self._constrain(self._moved)
        if self._mean is None:
            return
        self._weight += lr**2
        share = lr**2 / max(float(self._weight), 1e-30)
        for name, mean in self._mean.items():
            mean.lerp_(self._moved[name], share)
            self._parameters[name].copy_(torch.lerp(self._moved[name], mean, self._settings.beta1))
        self._constrain(self._mean)
        self._constrain(self._parameters)

    def kept(self) -> dict[str, Tensor]:
        """Returns the parameters that training is for: x where schedule-free, else the parameters themselves."""
        return self._parameters if self._mean is None else self._mean

    def restart(self) -> None:
        """Takes the parameters as they now stand, after they were set from outside."""
        if self._mean is not None:
            for name, value in self._parameters.items():
                self._moved[name].copy_(value)
                self._mean[name].copy_(value)

    def forget(self, latents: Tensor) -> None:
        """Clears what is remembered of some latents (row indices)."""
        d_sae = len(self._parameters["W_dec"])
        for optimizer in self._inner:
            for entries in optimizer.state.values():
                for value in entries.values():
                    if torch.is_tensor(value) and value.ndim and len(value) == d_sae:
                        value[latents] = 0
        if self._mean is not None:
            for name, value in self._parameters.items():
                if len(value) == d_sae:
                    self._moved[name][latents] = value[latents]
                    self._mean[name][latents] = value[latents]

    def state(self) -> dict[str, Tensor]:
        """Returns everything that the next step depends on."""
        tensors = {"weight": self._weight}
        for place, optimizer in enumerate(self._inner):
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"{place}/{index}/{name}": value for name, value in entries.items()}
        if self._mean is not None:
            tensors |= {f"moved/{name}": value for name, value in self._moved.items()}
            tensors |= {f"mean/{name}": value for name, value in self._mean.items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a saved state."""
        inner: list[dict[int, dict[str, Any]]] = [{} for _ in self._inner]
        for name, value in tensors.items():
            where, _, rest = name.partition("/")
            if where.isdigit():
                index, _, key = rest.partition("/")
                inner[int(where)].setdefault(int(index), {})[key] = value
            elif where == "moved":
                self._moved[rest].copy_(value)
            elif where == "mean" and self._mean is not None:
                self._mean[rest].copy_(value)
        for optimizer, state in zip(self._inner, inner, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self._weight = tensors["weight"].clone()


def _inner(settings: TrainSettings, parameters: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
    # the schedule-free average takes momentum's place
    beta1 = 0.0 if settings.schedule_free else settings.beta1
    if settings.optimizer == "signum":
        return [Signum(list(parameters.values()), UNSET_RATE, beta1)]
    if settings.optimizer == "muon":
        matrices = [value for value in parameters.values() if value.ndim == 2]
        vectors = [value for value in parameters.values() if value.ndim != 2]
        muon = torch.optim.Muon(
            matrices, lr=UNSET_RATE, momentum=beta1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
        return [muon, _adam(settings, vectors, beta1)]
    return [_adam(settings, list(parameters.values()), beta1)]


def _adam(settings: TrainSettings, parameters: list[Tensor], beta1: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=UNSET_RATE, betas=(beta1, settings.beta2), fused=True)

"""The step to beat: TopK or BatchTopK training as it is written in plain torch, dense throughout.

Same loss, same AuxK, same input scale and decoder norm as `sae`, `torch.optim.Adam(fused=True)`; float32 on a CPU, bf16
autocast on a GPU; nothing waits for the device. `compiled` gives the forward and backward pass to `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sae.shares import total_variance


class DenseStep:
    """Weights, optimiser and one dense step."""

    def __init__(
        self,
        parameters: dict[str, Tensor],
        architecture: str,
        k: int,
        auxk_k: int,
        alpha: float,
        lr: float,
        *,
        compiled: bool = False,
    ) -> None:
        self.parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        self._kind, self._k, self._auxk_k, self._alpha = architecture, k, auxk_k, alpha
        device = parameters["W_dec"].device
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self._optimizer = torch.optim.Adam(list(self.parameters.values()), lr=lr, fused=True)
        self._loss: Callable[..., Tensor] = torch.compile(self.loss) if compiled else self.loss

    def loss(self, x: Tensor, dead: Tensor) -> Tensor:
        """Returns the loss of scaled rows; `dead` marks the latents of the auxiliary loss."""
        W_enc, W_dec, b_enc, b_dec = (self.parameters[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
        pre = (x - b_dec) @ W_enc.T + b_enc
        error = x - (self._chosen(pre) @ W_dec + b_dec)
        loss = error.float().pow(2).sum() / total_variance(x)
        held = error.detach().float()
        masked = torch.where(dead, pre, -torch.inf)
        values, indices = masked.topk(self._auxk_k, dim=1, sorted=False)
        revived = torch.zeros_like(pre).scatter(1, indices, values.relu()) @ W_dec
        return loss + self._alpha * (revived.float() - held).pow(2).sum() / total_variance(held)

    def _chosen(self, pre: Tensor) -> Tensor:
        if self._kind == "batchtopk":
            smallest = pre.detach().flatten().topk(self._k * len(pre), sorted=False).values.amin().clamp(min=0)
            return torch.where(pre >= smallest, pre, 0).relu()
        values, indices = pre.topk(self._k, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, indices, values.relu())

    def take(self, x: Tensor, dead: Tensor) -> Tensor:
        """Moves the weights by one step and returns the loss."""
        self._optimizer.zero_grad()
        with self._autocast:
            loss = self._loss(x, dead)
        loss.backward()
        W_dec = self.parameters["W_dec"]
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad.addcmul_((W_dec.grad * W_dec).sum(1, keepdim=True), W_dec, value=-1)
            self._optimizer.step()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        return loss.detach()

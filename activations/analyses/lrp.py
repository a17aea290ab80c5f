"""Layer-wise relevance propagation: gradient × input through a backward pass with rules of its own.

    attn_lrp(metric), cp_lrp(metric) -> parts of an `Attribution`

Enters: a `Metric`. Leaves: R_t = e_t · ∂̃m/∂e_t for each token, where ∂̃ is the backward pass of the model with these
rules in place of the true derivatives; what the model computes forward is untouched:

| part | AttnLRP | CP-LRP |
| --- | --- | --- |
| a norm's scale | a constant | a constant |
| an activation f(x), a softcap on the logits | slope f(x)/x | the same (a gate: a constant) |
| a product of gate and neuron | half to each | all to the neuron |
| pattern × values | half to each | all to the values: the pattern is a constant |
| query × key | half to each (a quarter of all) | nothing |
| softmax | its own derivative | nothing |

With these rules the model of CP-LRP is linear in its embeddings, given what was held constant: R sums to the logit,
less what biases and position embeddings wrote. AttnLRP keeps the softmax's derivative, and does not sum to it exactly.
`error` is the sum less the target's number, for targets that can be conserved: logits, their differences, and what is
read at a site. Log-probabilities and functions of yours are no sums of logits, and have none.

It misleads where the true derivative is small for a reason: a rule redistributes what is there, it does not ask what
would happen without a token. Biases take up relevance that is not shown.

The published method comes with a note on rights: the README of lxt calls LRP patented, and free for personal and
scientific use; that repository's licence (BSD 3-Clause Clear) grants no patents. Whoever uses it otherwise asks its
authors. The code here is our own.

Source: Achtibat et al. 2024, "AttnLRP" (2402.05602); Ali et al. 2022, "XAI for Transformers" (CP-LRP, 2202.07304).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from activations.analyses.gradients import at_the_text
from activations.analyses.targets import Metric
from activations.attention import AttentionCall, attention_as
from activations.readout import softcap
from activations.sites import submodule

if TYPE_CHECKING:
    from activations.model import LanguageModel


def attn_lrp(metric: Metric) -> dict[str, Any]:
    """AttnLRP; ValueError for models with experts, or with parts that the rules do not know."""
    return _relevance(metric, is_cp=False)


def cp_lrp(metric: Metric) -> dict[str, Any]:
    """CP-LRP; ValueError as `attn_lrp`."""
    return _relevance(metric, is_cp=True)


def _relevance(metric: Metric, is_cp: bool) -> dict[str, Any]:
    with relevance_rules(metric.lm, is_cp):
        value, rows, gradient = at_the_text(metric)
    scores = (rows * gradient).sum(-1).cpu().numpy()
    parts: dict[str, Any] = {"scores": scores, "value": value, "settings": {}}
    if metric.is_conserved:
        parts |= {"baseline_value": 0.0, "error": float(scores.sum() - value)}
    return parts


@contextmanager
def relevance_rules(lm: LanguageModel, is_cp: bool = False) -> Iterator[None]:
    """Lets backward passes follow the rules while the block runs; forward passes are the same, to the rounding of the
    reference attention.

    Raises:
        ValueError: a model whose neurons stand in experts, a norm that is neither LayerNorm nor RMS norm, or an
            attention that cannot be looked into.
    """
    stack = lm.site_map.stacks[-1]
    if stack.architecture.neurons is None:
        raise ValueError(
            f"{lm.name} has experts in place of one MLP a layer, expected a dense model: use integrated_gradients"
        )

    def attend(call: AttentionCall) -> tuple[Tensor, Tensor]:
        if is_cp:
            return call.compute(call.query.detach(), call.key.detach(), call.value)
        return call.compute(_scaled(call.query, 0.25), _scaled(call.key, 0.25), _scaled(call.value, 0.5))

    with ExitStack() as undo:

        def hook(handle: Any) -> None:
            undo.callback(handle.remove)

        undo.enter_context(attention_as(lm, attend))
        offset = stack.architecture.norm_gain_offset
        for module in lm.model.modules():
            if _is_norm(module):
                hook(module.register_forward_hook(_norm_rule(offset)))
        gates = [gate for layer in stack.layers if (gate := _gate(layer)) is not None]
        for module in lm.model.modules():
            if _is_activation(module):
                is_gate = any(module is gate for gate in gates)
                hook(module.register_forward_hook(_constant if is_cp and is_gate else _slope_rule))
        if gates and not is_cp:
            for layer in stack.layers:
                down = submodule(layer, stack.architecture.neurons)
                hook(down.register_forward_pre_hook(lambda _module, args: (_scaled(args[0], 0.5), *args[1:])))
        if softcap(lm) is not None:
            for handle in _softcap_rule(lm):
                hook(handle)
        yield


class _Instead(torch.autograd.Function):
    """The value of one tensor with the derivatives of another."""

    @staticmethod
    def forward(_context: Any, value: Tensor, _path: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> tuple[None, Tensor]:  # pyright: ignore
        return None, gradient


def _scaled(value: Tensor, share: float) -> Tensor:
    return _Instead.apply(value.detach(), value * share)  # pyright: ignore


def _constant(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
    return out.detach()


def _slope_rule(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return _with_slope(args[0], out)


def _with_slope(x: Tensor, out: Tensor) -> Tensor:
    """f(x) with the slope f(x)/x; where x is 0, activations are 0 too and any slope carries nothing."""
    slope = torch.where(x == 0, 0.0, out.detach() / x.detach())
    return _Instead.apply(out.detach(), x * slope)  # pyright: ignore


def _norm_rule(offset: float) -> Callable[..., Tensor]:
    def rule(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        weight: Any = getattr(module, "weight", None)
        bias: Any = getattr(module, "bias", None)
        is_centred = isinstance(module, nn.LayerNorm)
        gain = 1.0 if weight is None else weight.detach() + (0 if is_centred else offset)
        unscaled = (x - x.mean(-1, keepdim=True) if is_centred else x) * gain
        with torch.no_grad():
            plain = out if bias is None else out - bias
            power = (unscaled * unscaled).sum(-1, keepdim=True)
            # one number a row, whatever the family adds under the root; an empty row stays empty
            scale = torch.where(power > 0, (unscaled * plain).sum(-1, keepdim=True) / power, 0.0)
            worst = float((unscaled * scale - plain).abs().max())
            # norms that compute in a narrower type than the model's round as that does
            if worst > max(1e-3, 16 * torch.finfo(out.dtype).eps) * float(plain.abs().max()):
                raise ValueError(
                    f"{type(module).__name__} is off a norm with one scale a row by {worst:.3g}, expected LayerNorm or "
                    "RMS norm: use integrated_gradients"
                )
        return _Instead.apply(out.detach(), unscaled * scale)  # pyright: ignore

    return rule


def _softcap_rule(lm: LanguageModel) -> list[Any]:
    """Gives the cap on logits the slope of an activation: its input is the head's output."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Tensor) -> None:
        seen[:] = [out]

    def capped(_module: nn.Module, _args: Any, output: Any) -> Any:
        output.logits = _with_slope(seen.pop(), output.logits)
        return output

    return [
        lm.model.get_output_embeddings().register_forward_hook(keep),
        lm.model.register_forward_hook(capped),
    ]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("Norm")


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    return home == "transformers.activations" or (
        home == "torch.nn.modules.activation" and not isinstance(module, (nn.Softmax, nn.MultiheadAttention))
    )


def _gate(layer: nn.Module) -> nn.Module | None:
    """The activation whose output multiplies the neurons, in layers that have one."""
    mlp = getattr(layer, "mlp", None)
    if mlp is None or not (hasattr(mlp, "gate_proj") or hasattr(mlp, "gate_up_proj")):
        return None
    return next((module for module in mlp.modules() if _is_activation(module)), None)

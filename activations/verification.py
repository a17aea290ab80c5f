"""Checks that the table of sites is true of a model, on a few tokens, before anyone relies on it.

Enters: a `LanguageModel` whose sites are laid out. Leaves: nothing, or `ValueError` naming the site that fails.

1. Every site of every layer is reached by a forward pass and has the shape it should have.
2. Layers join: resid_post of a layer is resid_pre of the next, bit for bit.
3. The residual stream adds up: in + attention + MLP = out, at the points where the family adds (for post-norm families
   under their norms; T5's decoder adds cross-attention). The MLP reads the normed stream.
4. Rewriting matters: at one layer per stack, an edit at each kind of site changes the output, and an edit that returns
   what it was given changes no bit.

The idea of validating module maps by shapes, sums and causal effect at load time: nnterp (Butanium/nnterp).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activations.sites import Binding, Site, Stack, submodule

if TYPE_CHECKING:
    from activations.model import LanguageModel

TOKENS = (2, 5)


def verify(lm: LanguageModel) -> None:
    """Checks all sites of `lm`; ValueError names the first that is not where the table says."""
    tokens = _probe_tokens(lm)
    values, clean = _read_everything(lm, tokens)
    for stack in lm.site_map.stacks:
        _check_shapes(lm, stack, values)
        _check_sums(lm, stack, values)
    if not bool(torch.isfinite(clean).all()):
        raise ValueError(f"{lm.name}: its logits are not finite on a few tokens, expected numbers: check the weights")
    for stack in lm.site_map.stacks:
        _check_effects(lm, stack, tokens, clean)


def _probe_tokens(lm: LanguageModel) -> Tensor:
    batch, seq = TOKENS
    size = lm.vocab_size
    # spread over the vocabulary, without special tokens where the vocabulary allows it
    allowed = [token for token in range(size - 1, -1, max(1, size // 64)) if token not in lm.special_ids]
    allowed = allowed or list(range(size))
    ids = [allowed[i % len(allowed)] for i in range(batch * seq)]
    return torch.tensor(ids, device=lm.device).view(batch, seq)


def _read_everything(lm: LanguageModel, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    values: dict[str, Tensor] = {}
    bindings = dict(lm.site_map.bindings)
    for stack in lm.site_map.stacks:
        norm = stack.architecture.mid_norm
        for number, layer in enumerate(stack.layers if norm is not None else []):
            site = Site("mid_norm_input", number, stack.architecture.stack)
            bindings[str(site)] = Binding(site, submodule(layer, norm or ""), "input", 0)
    with ExitStack() as exits, torch.no_grad():
        for name, binding in bindings.items():
            exits.enter_context(
                lm.taps.read(binding, lambda value, name=name: values.__setitem__(name, value.to(lm.device)))
            )
        output = lm.forward(tokens)
    for name in bindings:
        if name not in values:
            raise ValueError(f"{lm.name}: site {name!r} was not reached by a forward pass: this model cannot be used")
    return values, _result(output)


def _result(output: Any) -> Tensor:
    value = getattr(output, "logits", None)
    return output.last_hidden_state if value is None else value


def _check_shapes(lm: LanguageModel, stack: Stack, values: dict[str, Tensor]) -> None:
    prefix = f"{stack.architecture.stack}." if stack.architecture.stack else ""
    for name in lm.sites():
        if not name.startswith(prefix):
            continue
        got, kind = tuple(values[name].shape), name.removeprefix(prefix).split(".")[0]
        if kind == "head_out":
            fits = got[:3] == (*TOKENS, stack.heads) and len(got) == 4
        elif kind in {"mlp_act", "embed"}:
            fits = got[:2] == TOKENS and len(got) == 3
        else:
            fits = got == (*TOKENS, lm.d_model)
        if not fits:
            raise ValueError(
                f"{lm.name}: site {name!r} has shape {got}, expected {TOKENS} tokens of width {lm.d_model}: "
                "this model cannot be used"
            )


def _check_sums(lm: LanguageModel, stack: Stack, values: dict[str, Tensor]) -> None:
    family = stack.architecture
    prefix = f"{family.stack}." if family.stack else ""
    for number, layer in enumerate(stack.layers):

        def value(kind: str, number: int = number) -> Tensor:
            return values[f"{prefix}{kind}.{number}"]

        into, attn, mlp, out = (value(kind) for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        if family.cross is not None:
            attn = value("resid_mid") - into  # cross-attention's share has no site of its own
        if number + 1 < len(stack.layers):
            _expect_equal(lm, f"{prefix}resid_post.{number}", out, value("resid_pre", number + 1))
        if family.mid_norm is not None:
            _expect_equal(lm, f"{prefix}resid_mid.{number}", value("resid_mid"), value("mid_norm_input").view_as(into))
            with torch.no_grad():
                normed = submodule(layer, family.mid_norm)(value("resid_mid"))
            _expect_close(lm, f"{prefix}mlp_in.{number}", value("mlp_in").view_as(into), normed)
        elif family.residual == "post_norm":
            _expect_equal(lm, f"{prefix}mlp_in.{number}", value("mlp_in").view_as(into), value("resid_mid"))
        if family.residual == "parallel":
            _expect_close(lm, f"{prefix}resid_post.{number}", into + attn + mlp, out)
        elif family.write_norms is not None:
            with torch.no_grad():
                mid_norm, out_norm = (submodule(layer, path) for path in family.write_norms)
                _expect_close(lm, f"{prefix}attn_out.{number}", mid_norm(into + attn), value("resid_mid"))
                _expect_close(lm, f"{prefix}mlp_out.{number}", out_norm(value("resid_mid") + mlp), out)
        else:
            _expect_close(lm, f"{prefix}attn_out.{number}", into + attn, value("resid_mid"))
            _expect_close(lm, f"{prefix}mlp_out.{number}", value("resid_mid") + mlp, out)


def _expect_equal(lm: LanguageModel, name: str, got: Tensor, expected: Tensor) -> None:
    if not torch.equal(got, expected.to(got.device)):
        raise ValueError(f"{lm.name}: site {name!r} is not what the next module reads: this model cannot be used")


def _expect_close(lm: LanguageModel, name: str, got: Tensor, expected: Tensor) -> None:
    # two additions round by half a unit each, in units of the largest value that took part
    expected = expected.to(got.device)
    scale = float(torch.maximum(got.abs().max(), expected.abs().max()))
    worst = float((got - expected).abs().max())
    if not worst <= 8 * torch.finfo(got.dtype).eps * scale:
        raise ValueError(
            f"{lm.name}: the residual stream does not add up at {name!r} (off by {worst:.3g} of {scale:.3g}): "
            "this model cannot be used"
        )


def _check_effects(lm: LanguageModel, stack: Stack, tokens: Tensor, clean: Tensor) -> None:
    prefix = f"{stack.architecture.stack}." if stack.architecture.stack else ""
    middle = len(stack.layers) // 2
    names = [name for name in lm.sites() if name in {f"{prefix}embed"} or _is_at(name, prefix, middle)]
    with lm.intervene({name: lambda value: value.clone() for name in names}), torch.no_grad():
        if not torch.equal(_result(lm.forward(tokens)), clean):
            raise ValueError(f"{lm.name}: an edit that changes nothing changed the output: this model cannot be used")
    shift = torch.Generator().manual_seed(0)
    for name in names:

        def push(value: Tensor) -> Tensor:
            noise = torch.randn(value.shape, generator=shift).to(value)
            return value + noise * (1 + value.abs().max())

        with lm.intervene({name: push}), torch.no_grad():
            pushed = _result(lm.forward(tokens))
        if torch.equal(pushed, clean):
            raise ValueError(f"{lm.name}: rewriting site {name!r} does not reach the output: this model cannot be used")


def _is_at(name: str, prefix: str, layer: int) -> bool:
    return name.startswith(prefix) and name.endswith(f".{layer}") and name.removeprefix(prefix).count(".") == 1

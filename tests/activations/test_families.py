"""One set of claims about sites, for every supported family, on tiny random models in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import DECODERS, FAMILIES, GENERATORS, VOCAB, build
from families import tokenizer as character_tokenizer
from torch import Tensor

from activations import Intervention, LanguageModel

TEXTS = ["def f(x): return", "a = 1"]
_MODELS: dict[str, LanguageModel] = {}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of(name: str) -> LanguageModel:
    if name not in _MODELS:
        _MODELS[name] = LanguageModel(build(name), character_tokenizer())
    return _MODELS[name]


@pytest.fixture
def lm(family: str) -> Iterator[LanguageModel]:
    lm = model_of(family)
    yield lm
    assert len(lm.taps) == 0


def first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def test_every_family_has_the_sites_of_the_design_or_says_why_not(lm: LanguageModel, family: str) -> None:
    kinds = {site.split(".")[-2] for site in lm.sites() if site[-1].isdigit()}
    missing = {"gptj": {"resid_mid"}, "gpt_neox": {"resid_mid"}, "mixtral": {"mlp_act"}}.get(family, set())
    wanted = {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out", "mlp_in", "mlp_act"}
    assert kinds == wanted - missing
    assert any(site.endswith("embed") for site in lm.sites())
    for kind in missing:
        with pytest.raises(ValueError, match=f"site '{kind}.0' does not exist in .* models: .*: choose another"):
            lm.activations("abc", [f"{kind}.0"])


def test_capture_equals_a_manual_hook(lm: LanguageModel, family: str) -> None:
    where = FAMILIES[family]
    batch = lm.tokenize(TEXTS)
    for number in (0, 2):
        layer = lm.model.get_submodule(where.layer.format(number))
        seen: dict[str, Tensor] = {}
        handles = [
            layer.register_forward_hook(lambda _m, _a, out, seen=seen: seen.__setitem__("resid_post", first(out))),
            layer.register_forward_pre_hook(
                lambda _m, args, kw, seen=seen: seen.__setitem__("resid_pre", args[0] if args else kw["hidden_states"]),
                with_kwargs=True,
            ),
            layer.get_submodule(where.attn).register_forward_hook(
                lambda _m, _a, out, seen=seen: seen.__setitem__("attn_out", first(out))
            ),
            layer.get_submodule(where.mlp).register_forward_hook(
                lambda _m, _a, out, seen=seen: seen.__setitem__("mlp_out", first(out))
            ),
            layer.get_submodule(where.heads).register_forward_pre_hook(
                lambda _m, args, seen=seen: seen.__setitem__("head_out", args[0])
            ),
        ]
        with torch.no_grad():
            lm.forward(batch.tokens, batch.mask)
        for handle in handles:
            handle.remove()
        captured = lm.capture(batch.tokens, batch.mask, [f"{where.stack}{kind}.{number}" for kind in seen])
        for kind, value in seen.items():
            got = captured[f"{where.stack}{kind}.{number}"]
            assert torch.equal(got.reshape(value.shape), value), kind
        heads = captured[f"{where.stack}head_out.{number}"]
        assert heads.shape[:3] == (*batch.tokens.shape, 4)


def test_in_plus_attention_plus_mlp_is_out(lm: LanguageModel, family: str) -> None:
    where = FAMILIES[family]
    if not where.adds_up:
        pytest.skip("norms stand between (post-norm), or cross-attention adds to the stream")
    acts = lm.activations(TEXTS, [site for site in lm.sites() if site.startswith(where.stack)])
    for number in range(3):
        value = {
            kind: acts[f"{where.stack}{kind}.{number}"] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        }
        total = value["resid_pre"] + value["attn_out"] + value["mlp_out"]
        assert torch.allclose(total, value["resid_post"], atol=where.tolerance)
        if f"resid_mid.{number}" in acts:
            assert torch.allclose(
                acts[f"resid_mid.{number}"], value["resid_pre"] + value["attn_out"], atol=where.tolerance
            )


def test_the_mlp_reads_the_stream_through_mlp_in_alone(lm: LanguageModel, family: str) -> None:
    stack = FAMILIES[family].stack
    batch = lm.tokenize(TEXTS)
    clean = lm.capture(batch.tokens, batch.mask, [f"{stack}mlp_in.1", f"{stack}mlp_out.1"])
    noise = torch.randn(clean[f"{stack}mlp_in.1"].shape, generator=torch.Generator().manual_seed(0)).to(lm.dtype)
    with lm.intervene({f"{stack}resid_pre.1": lambda x: x + noise.view(x.shape)}):
        moved = lm.capture(batch.tokens, batch.mask, [f"{stack}mlp_out.1"])
        with lm.intervene({f"{stack}mlp_in.1": lambda x: clean[f"{stack}mlp_in.1"]}):
            held = lm.capture(batch.tokens, batch.mask, [f"{stack}mlp_out.1"])
    assert not torch.equal(moved[f"{stack}mlp_out.1"], clean[f"{stack}mlp_out.1"])
    assert torch.equal(held[f"{stack}mlp_out.1"], clean[f"{stack}mlp_out.1"])


def test_truncated_capture_equals_full(lm: LanguageModel) -> None:
    batch = lm.tokenize(TEXTS)
    together = lm.capture(batch.tokens, batch.mask, lm.sites())
    for site in lm.sites():
        assert torch.equal(lm.capture(batch.tokens, batch.mask, [site])[site], together[site]), site


def test_left_padding_changes_nothing(lm: LanguageModel, family: str) -> None:
    tolerance = FAMILIES[family].tolerance
    ids = torch.randint(3, VOCAB, (1, 11), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = padded > 0
    plain, shifted = lm.capture(ids, None, lm.sites()), lm.capture(padded, mask, lm.sites())
    for site in lm.sites():
        got, expected = shifted[site][:, 5:], plain[site]
        assert torch.allclose(got, expected, atol=tolerance), site
    if lm.kind == "decoder":
        assert torch.allclose(lm.logits(padded, mask)[:, 5:], lm.logits(ids), atol=tolerance)
        assert torch.allclose(lm.token_losses(padded, mask)[:, 5:], lm.token_losses(ids), atol=1e-5)


def test_edits_at_every_site_reach_the_output_and_identity_is_exact(lm: LanguageModel) -> None:
    batch = lm.tokenize(TEXTS)
    clean = lm.logits(batch.tokens, batch.mask)
    noise = torch.Generator().manual_seed(0)
    for site in lm.sites():
        with lm.intervene({site: lambda x: x.clone()}):
            assert torch.equal(lm.logits(batch.tokens, batch.mask), clean), site
        with lm.intervene({site: lambda x: x + torch.randn(x.shape, generator=noise, dtype=x.dtype)}):
            assert not torch.allclose(lm.logits(batch.tokens, batch.mask), clean, atol=1e-6), site


def test_a_rewritten_site_is_what_the_next_site_reads(lm: LanguageModel, family: str) -> None:
    stack = FAMILIES[family].stack
    batch = lm.tokenize(TEXTS)
    sites = [f"{stack}{kind}.1" for kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out")]
    for site in (site for site in sites if site in lm.sites()):
        written = lm.capture(batch.tokens, batch.mask, [site])[site] * 0.5 + 1
        with lm.intervene({site: lambda x, value=written: value}):
            assert torch.allclose(
                lm.capture(batch.tokens, batch.mask, [site])[site], written, atol=FAMILIES[family].tolerance
            ), site
    with lm.intervene({f"{stack}resid_post.1": lambda x: torch.ones_like(x)}):
        assert torch.equal(
            lm.capture(batch.tokens, batch.mask, [f"{stack}resid_pre.2"])[f"{stack}resid_pre.2"],
            torch.ones(*batch.tokens.shape, 32, dtype=lm.dtype),
        )


@pytest.mark.parametrize("name", GENERATORS)
def test_cached_steering_equals_uncached(name: str) -> None:
    lm = model_of(name)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3)).to(lm.dtype) * 3
    stack = "decoder." if lm.kind == "encoder-decoder" else ""
    edits = {
        f"{stack}resid_post.1": lambda x: x + direction,
        f"{stack}head_out.0": lambda x: x * 2,
        f"{stack}attn_out.2": Intervention(edit=lambda x: x - direction, positions=[2, 17, 19]),
        f"{stack}mlp_out.1": Intervention(edit=torch.zeros_like, positions=slice(4, None, 2)),
    }
    prompt = "for i in range("
    plain = lm.generate(prompt, max_new_tokens=8)
    with lm.intervene(edits):
        cached = lm.generate(prompt, max_new_tokens=8)
        uncached = lm.generate(prompt, max_new_tokens=8, use_cache=False)
    assert cached == uncached
    assert cached != plain
    assert lm.generate(prompt, max_new_tokens=8, interventions=edits) == cached
    assert lm.generate(prompt, max_new_tokens=8) == plain


@pytest.mark.parametrize("name", DECODERS)
def test_generation_equals_transformers_own(name: str) -> None:
    lm = model_of(name)
    prompt = "import os"
    ids = lm.tokenize(prompt).tokens
    expected = lm.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert lm.generate(prompt, max_new_tokens=8) == lm.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "opt_post_norm"])
def test_logit_directions_give_the_direct_effect_on_logits(name: str) -> None:
    lm = model_of(name)
    tokens = lm.tokenize("x = y").tokens
    site = lm.sites()[-1]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5)).to(lm.dtype)
    x = lm.capture(tokens, None, [site])[site]
    centred = x - x.mean(-1, keepdim=True) if hasattr(_final_norm(lm), "bias") else x
    # a derivative along a direction, without the part by which the direction changes the norm's scale
    scale = centred.pow(2).mean(-1).sqrt()
    tiny = 1e-3  # some norms compute in float32, whose rounding a smaller step would magnify

    def at(step: float) -> Tensor:
        with lm.intervene({site: lambda value: value + step * direction}):
            return _uncapped(lm, lm.logits(tokens))

    change = (at(tiny) - at(-tiny)) / (2 * tiny)
    along = centred @ direction / (32 * scale**2)
    total = lm.logit_directions().to(lm.dtype) @ direction
    expected = (total - along[..., None] * (centred @ lm.logit_directions().to(lm.dtype).T)) / scale[..., None]
    assert torch.allclose(change, expected, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*(name for name in DECODERS if name != "opt_post_norm"), "t5"])
def test_normed_logit_directions_are_the_mean_gradient_of_the_logits(name: str) -> None:
    lm = model_of(name)
    assert lm.has_unembedding
    tokens = lm.tokenize("def f(x): return").tokens
    x = lm.capture(tokens, None, [lm.final_site])[lm.final_site]
    found = lm.normed_logit_directions(x[0])
    added = torch.zeros(32, dtype=lm.dtype, requires_grad=True)
    with lm.intervene({lm.final_site: lambda value: value + added}):
        logits = _uncapped(lm, lm.forward(tokens).logits)[0]
    for token in (0, 7, VOCAB - 1):
        (expected,) = torch.autograd.grad(logits[:, token].mean(), added, retain_graph=True)
        torch.testing.assert_close(found[token], expected.float(), rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match=r"no rows of .*resid_post.\d were given, expected at least one"):
        lm.normed_logit_directions(x[0, :0])


@pytest.mark.parametrize("name", ["bert", "opt_post_norm"])
def test_a_model_without_a_linear_way_to_logits_says_so(name: str) -> None:
    assert not model_of(name).has_unembedding


def _final_norm(lm: LanguageModel) -> Any:
    from activations.sites import body_of, submodule

    return submodule(body_of(lm.model), lm.site_map.stacks[-1].architecture.final_norm or "")


def _uncapped(lm: LanguageModel, logits: Tensor) -> Tensor:
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.atanh(logits / cap)

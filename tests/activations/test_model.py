"""Loading and wrapping models, capture and intervention, generation, tokens: beyond what every family shares."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from families import tokenizer as character_tokenizer
from torch import Tensor

from activations import Intervention, LanguageModel, parse_site
from activations.vocabulary import readable, vocabulary_strings


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    """The folder of a saved tiny model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_lm.model.save_pretrained(folder)
    tiny_lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Loading


@pytest.mark.usefixtures("no_network")
def test_a_local_folder_loads_as_it_was_saved_without_the_network(saved: Path, tiny_lm: LanguageModel) -> None:
    lm = LanguageModel.load(str(saved))
    batch = tiny_lm.tokenize(["abc def", "x"])
    assert torch.equal(lm.logits(batch.tokens, batch.mask), tiny_lm.logits(batch.tokens, batch.mask))
    assert lm.weight_hash() == tiny_lm.weight_hash()
    assert (lm.d_model, lm.n_layers, lm.context_tokens) == (32, 3, 256)


def test_weight_hash_sees_every_weight_and_not_the_width_it_is_held_in(saved: Path) -> None:
    half = LanguageModel.load(str(saved), dtype="bfloat16")
    widened = LanguageModel(half.model.float(), half.tokenizer)
    assert half.weight_hash() == widened.weight_hash()
    with torch.no_grad():
        widened.model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert LanguageModel(widened.model, half.tokenizer).weight_hash() != half.weight_hash()


def test_missing_models_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model folder at .*, expected one with config.json: correct"):
        LanguageModel.load(str(tmp_path / "nothing"))
    with pytest.raises(
        FileNotFoundError, match=r"model 'no-such/model' cannot be opened .*expected `embedded`"
    ) as caught:
        LanguageModel.load("no-such/model")
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        LanguageModel.load(str(tmp_path / "empty"))


def test_truncated_weights_are_refused_in_one_line(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or damaged .*: copy it again") as caught:
        LanguageModel.load(str(copied))
    assert "\n" not in str(caught.value)


def test_a_folder_without_safetensors_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds only pytorch_model.bin, expected safetensors weights"):
        LanguageModel.load(str(copied))


def test_a_checkpoint_that_lacks_weights_is_refused_not_filled_up(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack model.layers.1.mlp.up_proj.weight .*: use a complete checkpoint"):
        LanguageModel.load(str(copied))


def test_an_unknown_family_dtype_or_device_is_refused_by_name(copied: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'float12' is unknown, expected auto, float32"):
        LanguageModel.load(str(copied), dtype="float12")
    with pytest.raises(ValueError, match="device 'cuda:77' is not usable here"):
        LanguageModel.load(str(copied), device="cuda:77")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "bloom"}))
    with pytest.raises(ValueError, match="model family 'bloom' has no map of sites, expected one of bert, gemma"):
        LanguageModel.load(str(copied))


def test_half_precision_on_a_cpu_without_it_becomes_float32(saved: Path, copied: Path, monkeypatch: Any) -> None:
    LanguageModel.load(str(saved)).model.to(torch.bfloat16).save_pretrained(copied)
    monkeypatch.setattr("activations.loading.has_fast_bfloat16", lambda: False)
    assert LanguageModel.load(str(copied), device="cpu").dtype == torch.float32
    monkeypatch.setattr("activations.loading.has_fast_bfloat16", lambda: True)
    assert LanguageModel.load(str(copied), device="cpu").dtype == torch.bfloat16


def test_a_model_that_the_table_misdescribes_is_refused() -> None:
    model = build("llama")
    model.model.layers[1].register_forward_hook(lambda _m, _a, out: out + 1)
    with pytest.raises(ValueError, match=r"does not add up at 'mlp_out.1'"):
        LanguageModel(model, character_tokenizer())


def test_a_site_without_effect_is_refused() -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    with pytest.raises(ValueError, match=r"rewriting site 'mlp_in.1' does not reach the output"):
        LanguageModel(model, character_tokenizer())


# Sites


@pytest.mark.parametrize("name", ["resid_post.3", "embed", "encoder.mlp_act.0", "decoder.embed", "model.layers.1.mlp"])
def test_site_names_survive_parsing(name: str) -> None:
    assert str(parse_site(name)) == name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resid_pots.1", "resid_post.1"), ("resid_post.7", "resid_post.2"), ("model.layers.1.mpl", "")],
)
def test_an_unknown_site_names_the_nearest(tiny_lm: LanguageModel, name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown site '{name}' \(nearest: '{nearest}.*layers 0 to 2.*correct"):
        tiny_lm.activations("abc", [name])


def test_a_module_path_is_a_site(tiny_lm: LanguageModel) -> None:
    acts = tiny_lm.activations(
        "abc", ["model.layers.1", "resid_post.1", "model.layers.0.self_attn", "attn_out.0", "lm_head"]
    )
    assert torch.equal(acts["model.layers.1"], acts["resid_post.1"])
    assert torch.equal(acts["model.layers.0.self_attn"], acts["attn_out.0"])
    assert torch.equal(acts["lm_head"], tiny_lm.logits(acts.tokens))


def test_site_widths(tiny_lm: LanguageModel) -> None:
    assert [tiny_lm.site_width(site) for site in ("resid_post.1", "mlp_act.0", "head_out.2")] == [32, 64, 32]


# Capture and intervention


def test_capture_stops_at_the_deepest_site(tiny_lm: LanguageModel) -> None:
    ran: list[int] = []
    layers = tiny_lm.model.model.layers
    handles = [layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(layers)]
    tiny_lm.activations("abc", ["resid_mid.1", "resid_post.0"])
    for handle in handles:
        handle.remove()
    assert ran == [0]


def test_capture_inside_an_intervention_sees_what_the_model_sees(tiny_lm: LanguageModel) -> None:
    plain = tiny_lm.activations("abc", ["attn_out.1", "resid_mid.1"])
    with tiny_lm.intervene({"resid_mid.1": lambda x: x + 1}):
        seen = tiny_lm.activations("abc", ["attn_out.1", "resid_mid.1"])
    # the stream is rewritten behind attention's own output
    assert torch.equal(seen["attn_out.1"], plain["attn_out.1"])
    assert torch.allclose(seen["resid_mid.1"], plain["resid_mid.1"] + 1, atol=1e-6)


def test_interventions_nest_and_their_hooks_go_with_them(tiny_lm: LanguageModel) -> None:
    site = "resid_post.0"
    plain = tiny_lm.activations("abc", [site])[site]
    with tiny_lm.intervene({site: lambda x: x + 1}):
        with tiny_lm.intervene({site: lambda x: x * 2}):
            assert torch.equal(tiny_lm.activations("abc", [site])[site], (plain + 1) * 2)
        assert torch.equal(tiny_lm.activations("abc", [site])[site], plain + 1)
    assert torch.equal(tiny_lm.activations("abc", [site])[site], plain)
    assert _hooks(tiny_lm) == 0


def _hooks(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


def test_no_hook_survives_an_error(tiny_lm: LanguageModel) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("edit failed")

    with (
        pytest.raises(RuntimeError, match="edit failed"),
        tiny_lm.intervene({"resid_mid.1": fail, "embed": torch.clone}),
    ):
        tiny_lm.generate("abc")
    with (
        pytest.raises(ValueError, match="unknown site"),
        tiny_lm.intervene({"embed": torch.clone, "nowhere": torch.clone}),
    ):
        pass
    assert _hooks(tiny_lm) == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x[:, :1], r"the edit at resid_post.1 returned \(1, 1, 32\) .*expected \(1, 3, 32\)"),
        (lambda x: x.double(), r"returned .* torch.float64 on cpu, expected .* torch.float32"),
        (lambda x: None, r"returned NoneType, expected a tensor of shape"),
    ],
)
def test_an_edit_may_not_change_shape_or_type(tiny_lm: LanguageModel, edit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), tiny_lm.intervene({"resid_post.1": Intervention(edit=edit)}):
        tiny_lm.logits(tiny_lm.tokenize("abc").tokens)


def test_an_edit_may_write_in_place(tiny_lm: LanguageModel) -> None:
    for site in ("resid_pre.1", "resid_mid.1", "resid_post.1", "head_out.1"):
        tokens = tiny_lm.tokenize("abcd").tokens
        with tiny_lm.intervene({site: lambda x: x + 2}):
            expected = tiny_lm.capture(tokens, None, [site, "resid_post.2"])
        with tiny_lm.intervene({site: lambda x: x.add_(2)}):
            got = tiny_lm.capture(tokens, None, [site, "resid_post.2"])
        assert all(torch.equal(got[name], expected[name]) for name in got)


def test_positions_count_real_tokens_from_either_end(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.tokenize(["abcdef", "xyz"])
    site = "resid_post.1"
    plain = tiny_lm.capture(batch.tokens, batch.mask, [site])[site]
    for positions, expected in (
        ([0], [[0], [3]]),
        ([-1], [[5], [5]]),
        (slice(1, 3), [[1, 2], [4, 5]]),
        (slice(-2, None), [[4, 5], [4, 5]]),
        (slice(0, None, 2), [[0, 2, 4], [3, 5]]),
    ):
        with tiny_lm.intervene({site: Intervention(edit=torch.zeros_like, positions=positions)}):
            edited = tiny_lm.capture(batch.tokens, batch.mask, [site])[site]
        changed = (edited != plain).any(-1) & batch.mask
        assert [row.nonzero().flatten().tolist() for row in changed] == expected


def test_phases_divide_prompt_from_generation(tiny_lm: LanguageModel) -> None:
    calls: dict[str, list[int]] = {"prompt": [], "generated": [], "all": []}

    def watch(phase: str) -> Intervention:
        def edit(x: Tensor) -> Tensor:
            calls[phase].append(x.shape[1])
            return x

        return Intervention(edit=edit, phase=phase)  # pyright: ignore[reportArgumentType]

    with tiny_lm.intervene({"resid_post.0": watch("prompt")}), tiny_lm.intervene({"resid_post.1": watch("generated")}):
        tiny_lm.generate("abc", max_new_tokens=4, interventions={"resid_post.2": watch("all")})
    assert calls == {"prompt": [3], "generated": [1, 1, 1], "all": [3, 1, 1, 1]}


def test_negative_positions_stay_with_the_prompt_during_generation(tiny_lm: LanguageModel) -> None:
    edited: list[int] = []

    def edit(x: Tensor) -> Tensor:
        edited.append(x.shape[1])
        return x

    last = Intervention(edit=edit, positions=[-1])
    tiny_lm.generate("abc", max_new_tokens=4, interventions={"resid_post.1": last})
    with tiny_lm.intervene({"resid_post.1": last}):
        tiny_lm.generate("abc", max_new_tokens=4)
    assert edited == [3, 3]


def test_gradients_flow_through_captures(tiny_lm: LanguageModel) -> None:
    seen: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        seen.append(x.detach().requires_grad_())
        return seen[-1]

    with tiny_lm.intervene({"resid_post.0": leaf}):
        tiny_lm.forward(tiny_lm.tokenize("abc").tokens).logits.sum().backward()
    tiny_lm.model.zero_grad()
    assert seen[0].grad is not None
    assert bool(seen[0].grad.abs().sum() > 0)


# Generation


def test_generate_joins_stream_and_closing_the_stream_stops_the_model(tiny_lm: LanguageModel) -> None:
    whole = tiny_lm.generate("abc", max_new_tokens=12)
    assert "".join(tiny_lm.stream("abc", max_new_tokens=12)) == whole
    passes: list[int] = []
    handle = tiny_lm.model.register_forward_hook(lambda *_: passes.append(1))
    pieces: Iterator[str] = tiny_lm.stream("abc", max_new_tokens=12)
    assert next(pieces) == whole[:1]
    pieces.close()  # pyright: ignore[reportAttributeAccessIssue]
    handle.remove()
    assert len(passes) == 1
    assert _hooks(tiny_lm) == 0


def test_sampling_repeats_with_its_seed_and_narrows_with_top_p(tiny_lm: LanguageModel) -> None:
    def sample(seed: int, **how: Any) -> str:
        return tiny_lm.generate("abc", max_new_tokens=12, do_sample=True, seed=seed, **how)

    assert sample(0) == sample(0)
    assert len({sample(seed) for seed in range(4)}) == 4
    assert sample(0, top_p=1e-6) == sample(1, top_p=1e-6) == tiny_lm.generate("abc", max_new_tokens=12)
    assert sample(0, temperature=1e-4) == tiny_lm.generate("abc", max_new_tokens=12)


def test_a_stop_text_ends_the_continuation_before_it(tiny_lm: LanguageModel) -> None:
    whole = tiny_lm.generate("abc", max_new_tokens=12)
    stop = whole[4:6]
    assert tiny_lm.generate("abc", max_new_tokens=12, stop=stop) == whole[: whole.index(stop)]
    assert "".join(tiny_lm.stream("abc", max_new_tokens=12, stop=["never", stop])) == whole[: whole.index(stop)]
    assert tiny_lm.generate("abc", max_new_tokens=12, stop="never seen") == whole


def test_generations_side_by_side_do_not_see_each_others_edits(tiny_lm: LanguageModel) -> None:
    edits = {"resid_post.1": lambda x: x.flip(-1) * 3}
    alone = {False: tiny_lm.generate("abc", max_new_tokens=16)}
    alone[True] = tiny_lm.generate("abc", max_new_tokens=16, interventions=edits)
    assert alone[True] != alone[False]
    results: list[bool] = []

    def work(steered: bool) -> None:
        text = tiny_lm.generate("abc", max_new_tokens=16, interventions=edits if steered else None)
        results.append(text == alone[steered])

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_bad_requests_say_what_to_do(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="a sequence of 300 tokens was given, .* takes at most 256: shorten"):
        tiny_lm.activations("x" * 300, ["embed"])
    with pytest.raises(ValueError, match="a sequence of 260 tokens"):
        tiny_lm.generate("x" * 200, max_new_tokens=60)
    with pytest.raises(ValueError, match=r"text 1 \(''\) has no tokens"):
        tiny_lm.activations(["abc", ""], ["embed"])
    with pytest.raises(ValueError, match="got no texts"):
        tiny_lm.tokenize([])
    with pytest.raises(ValueError, match="the logits hold NaN"):
        tiny_lm.generate("abc", interventions={"resid_post.1": lambda x: x * float("nan")})
    with pytest.raises(ValueError, match="temperature=0"):
        tiny_lm.generate("abc", temperature=0)
    bert = LanguageModel(build("bert"), character_tokenizer())
    with pytest.raises(ValueError, match="is an encoder, expected a model that generates"):
        bert.generate("abc")
    with pytest.raises(ValueError, match="is no decoder, expected a model with a next-token loss"):
        bert.loss(bert.tokenize("abc").tokens)
    with pytest.raises(ValueError, match="has no linear map from the residual stream"):
        bert.logit_directions()


# Losses and tokens


def test_token_losses_are_cross_entropy_and_skip_padding(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.tokenize(["abcdef", "xyz"])
    losses = tiny_lm.token_losses(batch.tokens, batch.mask)
    alone = tiny_lm.token_losses(tiny_lm.tokenize("xyz").tokens)
    assert torch.allclose(losses[1], torch.cat([torch.zeros(3), alone[0]]), atol=1e-5)
    expected = tiny_lm.model(input_ids=batch.tokens[:1], labels=batch.tokens[:1]).loss
    assert tiny_lm.loss(batch.tokens[:1]) == pytest.approx(expected.item(), rel=1e-5)
    assert tiny_lm.loss(batch.tokens, batch.mask) == pytest.approx(float(losses.sum() / 7), rel=1e-5)


def test_tokenize_follows_the_tokenizer_and_pads_decoders_left(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.tokenize(["abc", "x"])
    assert batch.tokens[0].tolist() == tiny_lm.tokenizer("abc")["input_ids"]
    assert batch.mask.tolist() == [[True] * 3, [False, False, True]]
    bert = LanguageModel(build("bert"), character_tokenizer())
    assert bert.tokenize(["abc", "x"]).mask.tolist() == [[True] * 3, [True, False, False]]


def test_the_unknown_token_is_special_only_if_it_is_another_control_token(tiny_lm: LanguageModel) -> None:
    assert tiny_lm.special_ids == {0, 1, 2}
    tokenizer = character_tokenizer()
    tokenizer.unk_token = "~"
    assert LanguageModel(tiny_lm.model, tokenizer).special_ids == {0, 1, 2}


def _trained(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = ["def héllo(): return 'naïve' # ünï 日本"] * 4
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
        )
    elif kind == "metaspace":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", *fallback])
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[CLS]"])
    tokenizer.train_from_iterator(text, trainer)
    if kind == "metaspace":
        # as in published vocabularies, bytes are ordinary entries
        described = json.loads(tokenizer.to_str())
        described["added_tokens"] = described["added_tokens"][:1]
        tokenizer = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_token_strings_are_faithful_for_bytes() -> None:
    tokenizer = _trained("bytes")
    strings = vocabulary_strings(tokenizer, len(tokenizer) + 2)
    assert strings[0] == "<|end|>"
    assert strings[-2:] == [f"<unused {len(tokenizer)}>", f"<unused {len(tokenizer) + 1}>"]
    assert " return" in strings
    assert "\n" in strings
    for text in ("def f():\n\treturn", "naïve 日本"):
        pieces = [strings[i] for i in tokenizer(text)["input_ids"]]
        raw = b"".join(
            piece.encode() if "\\x" not in piece else bytes.fromhex(piece.replace("\\x", "")) for piece in pieces
        )
        assert raw.decode() == text


def test_token_strings_undo_metaspace_and_byte_fallback() -> None:
    strings = vocabulary_strings(_trained("metaspace"), 300)
    assert strings[1 + 0x0A] == "\n"
    assert strings[1 + 0xE6] == "\\xe6"
    assert not any("▁" in text for text in strings)


def test_token_strings_of_word_pieces_join_to_text() -> None:
    tokenizer = _trained("wordpiece")
    strings = vocabulary_strings(tokenizer, len(tokenizer))
    assert "".join(strings[i] for i in tokenizer("def return")["input_ids"]) == " def return"
    assert strings[1] == "[CLS]"


def test_readable_keeps_utf8_and_shows_lone_bytes() -> None:
    assert readable("ü".encode()) == "ü"
    assert readable(b"a\xc3") == "a\\xc3"


# The package


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, activations; from activations import DataConfig, ModelConfig;"
        "heavy = {'transformers', 'datasets', 'accelerate', 'duckdb', 'gradio', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve() -> None:
    import activations

    for name in activations.__all__:
        assert getattr(activations, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = activations.nothing

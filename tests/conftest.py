"""Settings and fixtures of the whole suite: shapes are checked at run time, nothing reaches the network."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if os.environ.get("GLASSBOX_SHAPE_CHECKS") != "0":
    # the hook breaks torch.compile: tests marked `compile` run in a process without it
    from jaxtyping import install_import_hook

    install_import_hook(["sae", "activations", "features"], "typechecker.checked")

import torch

if TYPE_CHECKING:
    from activations import LanguageModel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real material, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("GLASSBOX_REAL", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real material at {folder}: set GLASSBOX_REAL to its folder")
    return folder


def character_tokenizer() -> object:
    """Returns a tokenizer with a token per printable character, and pad, BOS and EOS tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *map(chr, range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


@pytest.fixture(scope="session")
def tiny_lm() -> LanguageModel:
    """A random three-layer Llama of width 32 over characters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from activations import LanguageModel

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),  # pyright: ignore[reportArgumentType]
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LanguageModel(LlamaForCausalLM(shape).eval(), tokenizer)


@pytest.fixture(scope="session")
def embedded_lm() -> LanguageModel:
    """The language model that ships with the package."""
    from activations import LanguageModel

    return LanguageModel.load("embedded", device="cpu")

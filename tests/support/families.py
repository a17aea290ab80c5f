"""A tiny random model of every supported family, and where its modules lie as transformers spells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

VOCAB = 99
CONTEXT = 64


@dataclass(frozen=True)
class Family:
    """How to build a family, and the modules that compute a layer's sites (`{}` is the layer's number)."""

    model: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    layer: str = "model.layers.{}"
    attn: str = "self_attn"
    mlp: str = "mlp"
    heads: str = "self_attn.o_proj"
    stack: str = ""
    adds_up: bool = True
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-10
    """What rounding may change; larger where the family computes a part in float32 whatever the model's type."""


_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_GPT2 = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 3, "n_head": 4}
_NEOX = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
}
_OPT = {
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_BERT = {**_NEOX}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}
_GEMMA2 = {**_LLAMA, "head_dim": 16, "sliding_window": 8}
_NEO = {
    "hidden_size": 32,
    "num_layers": 4,
    "attention_types": [[["global", "local"], 2]],
    "num_heads": 4,
    "max_position_embeddings": CONTEXT,
    "window_size": 8,
    "intermediate_size": 64,
}

FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", _GPT2, "transformer.h.{}", "attn", "mlp", "attn.c_proj"),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        _NEO,
        "transformer.h.{}",
        "attn",
        "mlp",
        "attn.attention.out_proj",
        tolerance=1e-5,
    ),
    "gptj": Family(
        "GPTJForCausalLM",
        "GPTJConfig",
        {**_GPT2, "rotary_dim": 4},
        "transformer.h.{}",
        "attn",
        "mlp",
        "attn.out_proj",
        tolerance=1e-5,
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", _NEOX, "gpt_neox.layers.{}", "attention", "mlp", "attention.dense"
    ),
    "gpt_neox_sequential": Family(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**_NEOX, "use_parallel_residual": False},
        "gpt_neox.layers.{}",
        "attention",
        "mlp",
        "attention.dense",
    ),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "mistral": Family("MistralForCausalLM", "MistralConfig", {**_LLAMA, "sliding_window": 8}),
    "mixtral": Family(
        "MixtralForCausalLM", "MixtralConfig", {**_LLAMA, "num_local_experts": 4, "experts_implementation": "eager"}
    ),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", _LLAMA),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", {**_LLAMA, "head_dim": 16}),
    "gemma": Family("GemmaForCausalLM", "GemmaConfig", {**_LLAMA, "head_dim": 16}),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _GEMMA2,
        attn="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
        # its eager mask holds float64's lowest number, which its float32 softmax turns into NaN at padding
        dtype=torch.float32,
        tolerance=1e-5,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _GEMMA2,
        attn="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
    ),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", _LLAMA),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        "Olmo2Config",
        _LLAMA,
        attn="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
    ),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {**_OPT, "word_embed_proj_dim": 32},
        "model.decoder.layers.{}",
        "self_attn",
        "fc2",
        "self_attn.out_proj",
    ),
    "opt_post_norm": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "model.decoder.layers.{}",
        "self_attn",
        "fc2",
        "self_attn.out_proj",
        adds_up=False,
    ),
    "bert": Family(
        "BertForMaskedLM",
        "BertConfig",
        _BERT,
        "bert.encoder.layer.{}",
        "attention.output.dense",
        "output.dense",
        "attention.output.dense",
        adds_up=False,
    ),
    "roberta": Family(
        "RobertaForMaskedLM",
        "RobertaConfig",
        _BERT,
        "roberta.encoder.layer.{}",
        "attention.output.dense",
        "output.dense",
        "attention.output.dense",
        adds_up=False,
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        _T5,
        "encoder.block.{}",
        "layer.0.SelfAttention",
        "layer.1.DenseReluDense",
        "layer.0.SelfAttention.o",
        stack="encoder.",
    ),
    "t5_gated": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "decoder.block.{}",
        "layer.0.SelfAttention",
        "layer.2.DenseReluDense",
        "layer.0.SelfAttention.o",
        stack="decoder.",
        adds_up=False,
    ),
}
DECODERS = [name for name, family in FAMILIES.items() if "ForMaskedLM" not in family.model and not family.stack]
GENERATORS = [*DECODERS, "t5", "t5_gated"]


def build(name: str, dtype: torch.dtype | None = None) -> Any:
    """Builds the family's random model in eval mode (in float64 where the family can)."""
    import transformers

    family = FAMILIES[name]
    torch.manual_seed(0)
    settings = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **family.settings}
    if name in {"bert", "roberta"}:
        settings |= {"max_position_embeddings": CONTEXT + (1 if name == "roberta" else 0)}
    config = getattr(transformers, family.config)(**settings)
    model = getattr(transformers, family.model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # untrained biases are zero and norms one: make every part of the table matter
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype or family.dtype).eval()


def tokenizer() -> Any:
    """Returns a tokenizer with a token per printable character, and pad, BOS and EOS tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *map(chr, range(32, 127)), "\n"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )

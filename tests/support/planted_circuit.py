"""A two-layer model whose weights are written by hand: an induction head, and nothing else that matters.

The stream has slots: the token, its position, the token before it, what comes next, and waste. Head 0.1 looks one token
back and copies what it sees there into the slot of the token before; head 1.2 looks for the place whose token before is
the token at hand, and copies the token there into the slot that the unembedding reads. All other heads and both MLPs
compute something small, and write it into waste that nobody reads.
"""

from __future__ import annotations

from typing import Any

import torch

LETTERS = "abcdefghijkl"
SLOT = 16
"""Width of a slot: tokens and positions fit into it."""
HEADS, LAYERS = 4, 2
CIRCUIT = {("embed", "head 0.1", "v"), ("head 0.1", "head 1.2", "k"), ("head 1.2", "logits", None)}
"""What carries the difference between texts in which the places of two tokens are exchanged."""


def tokenizer() -> Any:
    """Returns a tokenizer with a token per letter of `LETTERS`, and one for padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", *LETTERS])}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<pad>")


def build() -> Any:
    """Returns the model, in float64."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width = 5 * SLOT
    config = GPT2Config(
        vocab_size=SLOT,
        n_positions=SLOT,
        n_embd=width,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=8,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    token, place, before, following, waste = (slice(SLOT * slot, SLOT * (slot + 1)) for slot in range(5))
    d_head = width // HEADS
    one = torch.eye(SLOT, dtype=torch.float64)
    body: Any = model.transformer
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" not in name:
                parameter.zero_()
        body.wte.weight[:, token] = one
        body.wpe.weight[:, place] = one
        model.lm_head.weight[:, following] = 2 * one
        for block in body.h:
            little = torch.randn(width, 3 * width, generator=generator, dtype=torch.float64)
            block.attn.c_attn.weight.copy_(0.05 * little)
            block.attn.c_proj.weight[:, waste] = 0.02 * torch.randn(width, SLOT, generator=generator).double()
            block.mlp.c_fc.weight.copy_(0.1 * torch.randn(width, 8, generator=generator))
            block.mlp.c_proj.weight[:, waste] = 0.02 * torch.randn(8, SLOT, generator=generator).double()

        def wire(layer: int, head: int, query: Any, key: Any, copied: slice, gain: float) -> None:
            inputs, output = body.h[layer].attn.c_attn.weight, body.h[layer].attn.c_proj.weight
            rows = slice(head * d_head, (head + 1) * d_head)
            for part in range(3):
                inputs[:, part * width + rows.start : part * width + rows.stop] = 0
            output[rows] = 0
            columns = slice(rows.start, rows.start + SLOT)
            inputs[query[0], columns] = gain * query[1]
            inputs[key, width + columns.start : width + columns.stop] = one
            inputs[token, 2 * width + columns.start : 2 * width + columns.stop] = one
            # a norm makes about 5 of 1
            output[columns, copied] = one / 5

        back = torch.zeros(SLOT, SLOT, dtype=torch.float64)
        back[torch.arange(1, SLOT), torch.arange(SLOT - 1)] = 1
        wire(0, 1, (place, back), place, before, 2.0)
        wire(1, 2, (token, one), before, following, 1.2)
    return model

"""Trains a small Llama-shaped language model from scratch: the recipe of the embedded model.

Enters: a `PretrainConfig`. Leaves: a model folder that transformers opens (`config.json`, `model.safetensors` in bf16,
`tokenizer.json`), the resolved recipe, and `recipe.jsonl`, its log.

1. Train a byte-level BPE tokenizer on the training documents.
2. Lay out the token stream: the corpus several times over, mixed with other text found on the machine (refusing
   copies of held-out documents); the last pass over the corpus comes alone at the end, while the rate decays.
3. Train under bf16 autocast: Muon on the hidden matrices, AdamW on embeddings and norms, trapezoidal schedule.
4. Measure (`activations.lm_quality`) and write the folder.

The order of batches depends on the seed alone, so a killed run goes on from its last checkpoint.
Sources: Muon, Jordan et al. 2024 (torch.optim.Muon); the trapezoidal schedule, Hägele et al. 2024 (arXiv 2405.18392).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations import lm_quality
from activations.corpus import Document, ReadReport, installed_packages, standard_library
from activations.progress import progress

END_OF_TEXT = "<|endoftext|>"
SPLIT_PATTERN = r"(?:\r?\n)+[ \t]*| ?_*\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
COPY_LINE_CHARACTERS = 24
COPY_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A complete pretraining run."""

    __pydantic_config__ = {"extra": "forbid"}

    out: str
    """Folder to write: the model at the top, checkpoints in `state/`."""
    total_tokens: int
    """Tokens to train on."""
    seed: int = 0
    """Seed of the initial weights and of the order of the text."""
    vocab_size: int = 4096
    """Entries of the BPE tokenizer, its end-of-text token included."""
    hidden_size: int = 256
    """Width of the residual stream."""
    intermediate_size: int = 768
    """Neurons in each gated MLP."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads in each block."""
    context_tokens: int = 512
    """Length of a training sequence."""
    batch_tokens: int = 8192
    """Tokens in one optimiser step."""
    corpus_epochs: int = 4
    """Passes over the corpus; other installed text fills the rest of `total_tokens`."""
    heldout_percent: int = 8
    """Share of the corpus's documents, by hash of the name, that is never trained on."""
    max_file_bytes: int = 100_000
    """Larger files of installed packages are left out."""
    package_share: float = 0.15
    """Largest share of the installed text that one package may supply."""
    matrix_lr: float = 4e-3
    """Peak rate of Muon for the hidden matrices (scaled to the update size of AdamW)."""
    embedding_lr: float = 4e-3
    """Peak rate of AdamW for embeddings and norms."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the hidden matrices."""
    warmup_frac: float = 0.02
    """Share of the run over which the rate rises."""
    decay_frac: float = 0.5
    """Share of the run over which the rate falls to zero."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    compile: bool = True
    """Compile the model (1.6 times the tokens a second on two cores)."""
    checkpoint_every_steps: int = 100
    """Steps between checkpoints."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""
    corpus_bytes: int | None = None
    """Read at most this much of the corpus, and of its held-out part: for trials and tests."""

    def __post_init__(self) -> None:
        if self.batch_tokens % self.context_tokens:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is no multiple of context_tokens={self.context_tokens}: "
                f"choose one, such as {self.context_tokens * max(1, self.batch_tokens // self.context_tokens)}"
            )
        if self.total_tokens < self.batch_tokens:
            raise ValueError(
                f"total_tokens={self.total_tokens} is less than one step of batch_tokens={self.batch_tokens}: "
                "raise the first or lower the second"
            )

    @property
    def steps(self) -> int:
        return self.total_tokens // self.batch_tokens


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Trains a byte-level BPE tokenizer that keeps newline and indentation together and words apart."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def copy_detector(originals: Iterable[Document]) -> Callable[[Document], bool]:
    """Returns a test for documents that repeat `originals`: a fifth or more of their long lines stand there too."""
    known = {line for document in originals for line in _long_lines(document)}

    def is_copy(document: Document) -> bool:
        lines = _long_lines(document)
        return bool(lines) and len(lines & known) / len(lines) >= COPY_SHARE

    return is_copy


def _long_lines(document: Document) -> set[str]:
    lines = (line.strip() for line in document.text.splitlines())
    return {line for line in lines if len(line) >= COPY_LINE_CHARACTERS}


@dataclass(frozen=True)
class PretrainResult:
    """A trained model's folder and how good it is."""

    path: Path
    quality: lm_quality.LMQuality

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record a figure: `metric`, `value`."""
        return [{"metric": name, "value": value} for name, value in asdict(self.quality).items()]

    def to_json(self) -> str:
        """Returns folder and figures as JSON."""
        return json.dumps({"path": str(self.path), **asdict(self.quality)}, indent=2)


@dataclass(frozen=True)
class PretrainText:
    """The text of a run: tokens in training order, each distinct token once for the baseline, and what was read."""

    stream: np.ndarray
    distinct: np.ndarray
    heldout: list[Document]
    counts: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """A sha256 over the stream: a run goes on only over the text that it began with."""
        return hashlib.sha256(self.stream.tobytes()).hexdigest()


def _encode(tokenizer: Any, documents: list[Document]) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return [np.array([0, *item.ids], dtype=np.uint16) for item in encoded]


def lay_out_text(config: PretrainConfig, tokenizer: Any, corpus: list[Document]) -> PretrainText:
    """Lays out the token stream of the run (step 2 of the module's algorithm)."""
    heldout = _limited(standard_library("heldout", config.heldout_percent), config.corpus_bytes)
    is_copy = copy_detector(heldout)
    rng = np.random.default_rng(config.seed)
    own = _encode(tokenizer, corpus)
    own_tokens = sum(map(len, own))
    wanted = config.steps * config.batch_tokens + 1
    budget = wanted - config.corpus_epochs * own_tokens
    other: list[np.ndarray] = []
    report, refused, taken = ReadReport(), 0, 0
    if budget > 0:
        by_package: dict[str, int] = {}

        def accept(document: Document) -> bool:
            nonlocal refused
            package = document.name.split("/")[0]
            if by_package.get(package, 0) > config.package_share * budget * 3.5:
                return False
            if is_copy(document):
                refused += 1
                return False
            by_package[package] = by_package.get(package, 0) + len(document.text)
            return True

        chunk: list[Document] = []
        for document in installed_packages(config.max_file_bytes, accept, report):
            chunk.append(document)
            if len(chunk) == 200:
                other += _encode(tokenizer, chunk)
                taken += sum(map(len, other[-len(chunk) :]))
                chunk = []
                if taken >= budget:
                    break
        other += _encode(tokenizer, chunk)
    mixed = own * (config.corpus_epochs - 1) + other
    first = [mixed[i] for i in rng.permutation(len(mixed))]
    last = [own[i] for i in rng.permutation(len(own))]
    tail = np.concatenate(last)
    head_tokens = max(wanted - len(tail), 0)
    head = np.concatenate(first)[:head_tokens] if first and head_tokens else np.zeros(0, dtype=np.uint16)
    stream = np.concatenate([head, tail])
    while len(stream) < wanted:
        stream = np.concatenate([stream, stream])
    counts = {
        "corpus_documents": len(corpus),
        "corpus_tokens": own_tokens,
        "package_documents": len(other),
        "package_tokens": sum(map(len, other)),
        "package_copies_refused": refused,
        "package_files_undecodable": report.undecodable,
    }
    # the baseline tunes its weights on the end of this: a fair sample of all the text
    distinct = own + other
    mixing = np.random.default_rng(config.seed + 2)
    mixed_once = np.concatenate([distinct[i] for i in mixing.permutation(len(distinct))])
    return PretrainText(stream[:wanted], mixed_once, heldout, counts)


def build_model(config: PretrainConfig) -> Any:
    """Builds the untrained model: Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context_tokens,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(shape)


def _optimizers(model: Any, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=config.matrix_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=config.embedding_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [muon, adam]


def _rate(config: PretrainConfig, step: int) -> float:
    warmup = max(1, round(config.warmup_frac * config.steps))
    decay = max(1, round(config.decay_frac * config.steps))
    return min(1.0, (step + 1) / warmup, (config.steps - step) / decay)


def _save_state(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], step: int, text: PretrainText) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {f"model/{name}": value.detach() for name, value in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                tensors[f"optimizer{number}/{index}/{key}"] = torch.as_tensor(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        partial,
        metadata={"step": str(step), "text": text.fingerprint},
    )
    os.replace(partial, path)


def _load_state(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], text: PretrainText) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        step = int(stored.metadata()["step"])
        if stored.metadata()["text"] != text.fingerprint:
            raise ValueError(
                f"{path} was trained on other text than this machine gives now, expected the same files: restore the "
                "installed packages, or delete the state to start afresh"
            )
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        for name in stored.keys():
            owner, rest = name.split("/", 1)
            if owner == "model":
                with torch.no_grad():
                    model.get_parameter(rest).copy_(stored.get_tensor(name))
            else:
                index, key = rest.split("/")
                states[int(owner.removeprefix("optimizer"))].setdefault(int(index), {})[key] = stored.get_tensor(name)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step


def _fingerprint(config: PretrainConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in {"out", "device", "compile"}}


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Trains, or goes on training, the model of `config`; a finished run is returned as it is.

    Raises:
        ValueError: the folder holds the run of another recipe.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    recipe, log, state = out / "recipe.json", out / "recipe.jsonl", out / "state" / "state.safetensors"
    if recipe.exists() and json.loads(recipe.read_text()) != _fingerprint(config):
        raise ValueError(f"{out} holds the run of another recipe, expected this one: choose another `out` or delete it")
    if (out / "model.safetensors").exists():
        return _finished_result(out, log)
    recipe.write_text(json.dumps(_fingerprint(config), indent=2) + "\n")
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    )
    corpus = _limited(standard_library("train", config.heldout_percent), config.corpus_bytes)
    tokenizer = train_tokenizer((document.text for document in corpus), config.vocab_size)
    text = lay_out_text(config, tokenizer, corpus)
    model = build_model(config).to(device)
    optimizers = _optimizers(model, config)
    start = _load_state(state, model, optimizers, text) if state.exists() else 0
    if start:
        kept = [line for line in log.read_text().splitlines() if json.loads(line).get("step", 0) < start]
        log.write_text("".join(line + "\n" for line in kept))
    else:
        log.write_text(json.dumps(text.counts) + "\n")
    _train_steps(config, model, optimizers, text, start, log, state, device)
    _finish(config, model, tokenizer, text, out, log)
    return _finished_result(out, log)


def _finished_result(out: Path, log: Path) -> PretrainResult:
    figures = json.loads(log.read_text().splitlines()[-1])["quality"]
    return PretrainResult(out, lm_quality.LMQuality(**figures))


def _limited(documents: Iterable[Document], most_bytes: int | None) -> list[Document]:
    kept, size = [], 0
    for document in documents:
        if most_bytes is not None and size >= most_bytes:
            break
        kept.append(document)
        size += len(document.text.encode())
    return kept


def _train_steps(
    config: PretrainConfig,
    model: Any,
    optimizers: list[torch.optim.Optimizer],
    text: PretrainText,
    start: int,
    log: Path,
    state: Path,
    device: torch.device,
) -> None:
    rows = config.batch_tokens // config.context_tokens
    inputs = text.stream[: config.steps * config.batch_tokens].reshape(-1, config.context_tokens)
    targets = text.stream[1 : config.steps * config.batch_tokens + 1].reshape(-1, config.context_tokens)
    # the last pass over the corpus stays last: rows are shuffled within each of the two parts
    rng = np.random.default_rng(config.seed + 1)
    boundary = max(0, len(inputs) - text.counts["corpus_tokens"] // config.context_tokens)
    order = np.concatenate([rng.permutation(boundary), boundary + rng.permutation(len(inputs) - boundary)])

    def loss_of(tokens: Tensor, wanted: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())

    step_loss = torch.compile(loss_of) if config.compile else loss_of
    model.train()
    total, done = config.steps * config.batch_tokens, start * config.batch_tokens
    with progress("pretrain", total, "tok", done) as advance:
        running, began = 0.0, time.time()
        for step in range(start, config.steps):
            rate = _rate(config, step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * (config.matrix_lr if optimizer is optimizers[0] else config.embedding_lr)
            chosen = order[step * rows : (step + 1) * rows]
            batch = torch.from_numpy(inputs[chosen].astype(np.int64)).to(device)
            wanted = torch.from_numpy(targets[chosen].astype(np.int64)).to(device)
            loss = step_loss(batch, wanted)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            running = loss.item() if step == start else 0.95 * running + 0.05 * loss.item()
            advance(config.batch_tokens, f"loss {running:.3f}")
            if step % 20 == 0 or step + 1 == config.steps:
                seen = (step + 1) * config.batch_tokens
                speed = (step + 1 - start) * config.batch_tokens / (time.time() - began)
                entry = {"step": step, "tokens": seen, "loss": round(running, 4), "tokens_per_s": round(speed)}
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            if (step + 1) % config.checkpoint_every_steps == 0:
                _save_state(state, model, optimizers, step + 1, text)


def _finish(config: PretrainConfig, model: Any, tokenizer: Any, text: PretrainText, out: Path, log: Path) -> None:
    """Measures the model as it ships (rounded to bf16) and writes the folder; the weights come last."""
    from transformers import PreTrainedTokenizerFast

    shipped = model.to("cpu").to(torch.bfloat16)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    wrapped.model_max_length = config.context_tokens
    quality = lm_quality.measure(model.float().eval(), wrapped, text.heldout, text.distinct, config.context_tokens)
    with log.open("a") as file:
        file.write(json.dumps({"quality": asdict(quality)}) + "\n")
    wrapped.save_pretrained(out)
    partial = out / "partial"
    shipped.to(torch.bfloat16).save_pretrained(partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        os.replace(path, out / path.name)
    partial.rmdir()

"""Every number of the training step on a GPU, in one command of under eight minutes.

    python -m benchmarks.step_gpu [--write] [--smoke] [--only SECTION …] [--minutes M]

1. parity: fused steps against the dense step; nothing is measured when it is red.
2. machine: the rates that the roofline is made of (bf16 products, copies).
3. steps: ours, the dense step and its compiled form in turn, beside the roofline.
4. variants: moments and products of fewer bits, and the architectures.
5. memory: peaks of fused training.
6. density: dense and sparse passes of thresholded kinds, at several L0.
7. curve: cost against d_sae and against rows.
8. kernels: each operation beside the best plain torch.

Each figure is a line of `benchmarks/results/step_gpu.jsonl`, written as soon as it is known; what the minutes do not
suffice for is left out and named. `--smoke` takes tiny sizes on any device, where no figure means anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.dense_step import DenseStep
from benchmarks.report import Records, interleaved, spread
from sae import density as density_of
from sae.architectures import Architecture, Moment
from sae.config import SAEConfig, TrainConfig
from sae.fused import FusedTraining
from sae.kernels import encode, topk_select
from sae.kernels.above_select import above_select
from sae.kernels.decode_loss import decode_loss
from sae.kernels.dispatch import default_backend
from sae.kernels.gate import gate
from sae.kernels.jump import jump
from sae.kernels.latent_adam import MOVED, Adam, Moments, latent_adam
from sae.kernels.latent_order import latent_order
from sae.kernels.latent_reduce import latent_reduce
from sae.kernels.shrink import Penalty, shrink
from sae.learner import Learner
from sae.sparse import RaggedCodes
from sae.step import StepResult

Case = dict[str, Any]
STEPS: list[Case] = [
    dict(architecture="topk", d_in=768, d_sae=24576, k=32, batch_rows=4096),
    dict(architecture="topk", d_in=2304, d_sae=65536, k=64, batch_rows=8192),
    dict(architecture="batchtopk", d_in=768, d_sae=24576, k=32, batch_rows=4096),
]
VARIANTS: list[Case] = [
    dict(compute_dtype="float32"),
    dict(moments="bfloat16"),
    dict(moments="int8"),
    dict(compute_dtype="fp8"),
    dict(architecture="matryoshka_batchtopk", k_start=32, nesting_start=0),
    dict(architecture="jumprelu", compute_dtype="float32"),
    dict(architecture="standard", compute_dtype="float32"),
    dict(architecture="gated", compute_dtype="float32"),
]
"""Changes of the first of STEPS."""
MEMORY: list[Case] = [*STEPS[:2], dict(architecture="topk", d_in=4096, d_sae=131072, k=64, batch_rows=16384)]
WIDTHS = [8192, 16384, 32768, 65536, 131072]
ROWS = [1024, 2048, 4096, 8192, 16384]
DENSITY: list[Case] = [
    {**STEPS[0], "architecture": architecture, "k": k}
    for architecture in ("standard", "jumprelu")
    for k in (16, 64, 256, 1024)
]
"""`k` is the L0 that the first batch is set to."""
SMOKE: Case = dict(d_in=16, d_sae=128, k=4, batch_rows=32)
DEAD_SHARE = 50
"""One latent in so many is dead in every measured step."""


class Bench:
    """What all sections share."""

    def __init__(self, device: torch.device, smoke: bool, records: Records, repeats: int, minutes: float) -> None:
        self.device, self.smoke, self.records = device, smoke, records
        self.repeats = 2 if smoke else repeats
        self.inner = 1 if smoke else 5
        self._ends = time.monotonic() + 60 * minutes
        self.gemm_flops, self.copy_bytes = float("nan"), float("nan")

    def sized(self, case: Case) -> Case:
        return {**case, **SMOKE} if self.smoke else case

    def has_time(self) -> bool:
        return time.monotonic() < self._ends

    def times(self, candidates: dict[str, Callable[[], object]], inner: int | None = None) -> dict[str, list[float]]:
        """Returns seconds of one call each; several calls stand between two waits for the device, as in training."""
        inner = self.inner if inner is None else inner

        def repeated(run: Callable[[], object]) -> Callable[[], None]:
            def several() -> None:
                for _ in range(inner):
                    run()

            return several

        found = interleaved({name: repeated(run) for name, run in candidates.items()}, self.repeats)
        return {name: [value / inner for value in values] for name, values in found.items()}

    def rows(self, n: int, d: int) -> Tensor:
        """Returns sparse sums of random directions."""
        generator = torch.Generator(self.device).manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=self.device)

        features = torch.nn.functional.normalize(drawn(2 * d, d) - 0.5, dim=1)
        return ((drawn(n, 2 * d) < 0.04) * drawn(n, 2 * d)) @ features

    def learner(self, case: Case, **changes: Any) -> Learner:
        """Returns a learner in the middle of a long run, its schedules flat."""
        settings = {**case, **changes}
        train = {n: settings.pop(n) for n in ("moments", "compute_dtype", "batch_rows", "clip_norm") if n in settings}
        if settings["architecture"] in ("jumprelu", "standard", "gated"):
            settings["target_l0"] = float(settings.pop("k"))
        rows = train["batch_rows"]
        settings["auxk_k"] = max(1, min(settings["d_in"] // 2, settings["d_sae"] // DEAD_SHARE))
        config = TrainConfig(
            sae=SAEConfig(**settings),
            total_rows=rows * 100_000,
            out=tempfile.gettempdir(),
            device=str(self.device),
            lr=1e-5,
            warmup_frac=0.0,
            auxk_after_tokens=rows * 100,
            **train,
        )
        return Learner(config, self.device)


def stepping(learner: Learner, batch: Tensor) -> Callable[[], None]:
    """Returns one step of a learner with its share of dead latents."""
    dead = len(learner.silent_rows) // DEAD_SHARE

    def step() -> None:
        learner.silent_rows[:dead].fill_(1 << 40)
        learner.take({"rows": batch})

    return step


def parity(bench: Bench) -> None:
    """Compares one fused step with the dense step in float32, and a captured step with one that is not."""
    kinds = ("topk", "batchtopk")
    shape = SMOKE if bench.smoke else dict(d_in=256, d_sae=4096, k=16, batch_rows=512)
    for kind in kinds:
        case = {"architecture": kind, **shape}
        batch = bench.rows(case["batch_rows"], case["d_in"])
        first, second = (bench.learner(case, compute_dtype="float32") for _ in range(2))
        for _ in range(4):  # on a GPU the third is captured
            stepping(first, batch)()
        for _ in range(4):
            stepping(second, batch)()
        for name, value in first.parameters.items():
            assert torch.equal(second.parameters[name], value), f"{kind}: two runs differ in {name}"
        x = batch * first.scale_in
        dead = first.silent_rows >= first.config.auxk_after_rows
        held = {name: value.clone() for name, value in first.parameters.items()}
        dense = Architecture.step(first.architecture, held, x, x, first._moment()._replace(room=None, dead=dead))
        before = first._window.clone()
        first.take({"rows": batch})
        loss = (first._window - before)[0]
        torch.testing.assert_close(loss.float(), dense.loss, rtol=1e-3, atol=0, msg=f"{kind}: losses differ")
        for name, gradient in dense.gradients.items():
            if name != "W_dec":  # projected before it moves anything
                moved = first.parameters[name] - held[name]
                against = (moved * gradient).sum() / (moved.norm() * gradient.norm()).clamp(min=1e-30)
                assert float(against) < 0.2, f"{kind}: {name} moves up its gradient"
    for kind in ("standard", "jumprelu"):
        dense, sparse, _ = passes(bench, {"architecture": kind, **shape})
        found, expected = sparse(), dense()
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=0, msg=f"{kind}: losses differ")
        for name, gradient in expected.gradients.items():
            close = 1e-3 * float(gradient.abs().max())
            torch.testing.assert_close(
                found.gradients[name], gradient, rtol=0, atol=close, msg=f"{kind}: gradients of {name} differ"
            )
    bench.records.add("parity", kinds=[*kinds, "standard", "jumprelu"], passed=True)


def passes(bench: Bench, case: Case) -> tuple[Callable[[], StepResult], Callable[[], StepResult], float]:
    """Returns the dense and the sparse pass (no update) of a thresholded kind on its first batch, and entries a row."""
    batch = bench.rows(case["batch_rows"], case["d_in"])
    learner = bench.learner(case, compute_dtype="float32")
    learner.take({"rows": batch})  # calibrates
    architecture, parameters, x = learner.architecture, learner.parameters, batch * learner.scale_in
    known = density_of.Density()
    moment = Moment(0, learner.config.steps, density=known)
    architecture.step(parameters, x, x, moment)  # counts
    later = moment._replace(step=density_of.EVERY_STEPS)
    entries = known.expected(later.step)
    if entries > x.shape[0] * len(parameters["W_dec"]):
        raise ValueError(f"a threshold lies within half a bandwidth of zero, expected sparse entries: {case}")

    def dense() -> StepResult:
        return Architecture.step(architecture, parameters, x, x, later)

    def sparse() -> StepResult:
        share, density_of.SPARSE_SHARE = density_of.SPARSE_SHARE, 1.0
        try:
            return architecture.step(parameters, x, x, later._replace(step=later.step + 1))
        finally:
            density_of.SPARSE_SHARE = share

    sparse()
    assert known.expected(later.step + 1) == entries, f"{case}: entries do not fit, so that the dense pass was taken"
    return dense, sparse, entries / len(x)


def machine(bench: Bench) -> None:
    """Measures bf16 products at an encoder's shape and copies of a gigabyte."""
    n, d, f = (64, 64, 64) if bench.smoke else (8192, 2304, 65536)
    a, b = (torch.randn(*shape, device=bench.device).bfloat16() for shape in ((n, d), (d, f)))
    source = torch.randn((1 << 12) if bench.smoke else (1 << 28), device=bench.device)
    target = torch.empty_like(source)
    times = bench.times({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)})
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    bench.gemm_flops = 2 * n * d * f / middle["gemm"]
    bench.copy_bytes = 2 * source.numel() * 4 / middle["copy"]
    bench.records.add(
        "machine", gemm_tflops=round(bench.gemm_flops / 1e12, 1), copy_gb_s=round(bench.copy_bytes / 1e9, 1)
    )


def roofline_s(bench: Bench, case: Case) -> float:
    """Returns the least time of a step: one encoder product, and everything that must move moved once.

    Weights and both moments are read and written in float32, rows read in float32, codes (value and index) written and
    read.
    """
    n, d, f, k = (case[name] for name in ("batch_rows", "d_in", "d_sae", "k"))
    moved = 24 * 2 * d * f + 4 * n * d + 2 * 8 * n * k
    return 2 * n * d * f / bench.gemm_flops + moved / bench.copy_bytes


def steps(bench: Bench) -> None:
    """Times ours, the dense step and its compiled form in turn."""
    for given in STEPS[:1] if bench.smoke else STEPS:
        if bench.has_time():
            _step(bench, bench.sized(given))
            _release()
        else:
            bench.records.add("skipped", section="steps", case=given)


def _step(bench: Bench, case: Case) -> None:
    batch = bench.rows(case["batch_rows"], case["d_in"])
    learner = bench.learner(case, compute_dtype="float32" if bench.smoke else "bfloat16")
    ours = stepping(learner, batch)
    ours()
    assert isinstance(learner.optimizer, FusedTraining)
    sae = learner.config.sae
    dead = torch.arange(sae.d_sae, device=bench.device) < sae.d_sae // DEAD_SHARE
    x = batch * learner.scale_in
    options = (case["architecture"], case["k"], sae.auxk_latents, sae.auxk_alpha, 1e-5)
    dense = DenseStep(learner.parameters, *options)
    candidates: dict[str, Callable[[], object]] = {"fused": ours, "dense": lambda: dense.take(x, dead)}
    compiled = DenseStep(learner.parameters, *options, compiled=not bench.smoke)
    try:
        compiled.take(x, dead)
        candidates["compiled"] = lambda: compiled.take(x, dead)
    except (RuntimeError, ImportError, OSError) as error:  # what a machine without a working compiler gives
        bench.records.add("refused", **case, why=f"torch.compile: {error}"[:500])
    times = bench.times(candidates)
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    least = roofline_s(bench, case)
    bench.records.add(
        "step",
        **case,
        **{name: spread(values) for name, values in times.items()},
        roofline_ms=round(1e3 * least, 4),
        of_roofline=round(middle["fused"] / least, 2),
        over_dense=round(middle["dense"] / middle["fused"], 2),
        over_compiled=round(middle["compiled"] / middle["fused"], 2) if "compiled" in middle else None,
        rows_per_s=round(case["batch_rows"] / middle["fused"]),
    )


def variants(bench: Bench) -> None:
    """Times changes of the first case."""
    for change in VARIANTS:
        if not bench.has_time():
            bench.records.add("skipped", section="variants", case=change)
            continue
        case = bench.sized({**STEPS[0], "compute_dtype": "bfloat16", **change})
        batch = bench.rows(case["batch_rows"], case["d_in"])
        try:
            step = stepping(bench.learner(case), batch)
        except ValueError as error:  # fp8 where it does not run
            bench.records.add("refused", **case, why=str(error))
            continue
        bench.records.add("variant", **case, fused=spread(bench.times({"fused": step})["fused"]))
        _release()


def memory(bench: Bench) -> None:
    """Measures the peak of a few fused steps against weights and moments."""
    for given in MEMORY[:1] if bench.smoke else MEMORY:
        case = bench.sized(given)
        if bench.device.type != "cuda":
            bench.records.add("memory", **case, peak_gb=None)
            continue
        _release()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        learner = bench.learner(case, compute_dtype="float32" if bench.smoke else "bfloat16")
        step = stepping(learner, bench.rows(case["batch_rows"], case["d_in"]))
        held = 12 * sum(value.numel() for value in learner.parameters.values())
        step()
        _release()
        torch.cuda.reset_peak_memory_stats()  # the first batch calibrates, once
        for _ in range(4):
            step()
        peak, reserved = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
        bench.records.add(
            "memory",
            **case,
            weights_and_moments_gb=round(held / 1e9, 3),
            peak_gb=round(peak / 1e9, 3),
            reserved_gb=round(reserved / 1e9, 3),
            over=round(peak / held, 3),
        )
        del learner, step
    _release()


def density(bench: Bench) -> None:
    """Times dense and sparse passes in turn: where they cross, `sae.density.SPARSE_SHARE` belongs."""
    for given in DENSITY[::4] if bench.smoke else DENSITY:
        if not bench.has_time():
            bench.records.add("skipped", section="density", case=given)
            continue
        case = bench.sized(given)
        try:
            dense, sparse, entries = passes(bench, case)
        except ValueError as error:
            bench.records.add("refused", **case, why=str(error))
            continue
        times = bench.times({"dense": dense, "sparse": sparse})
        bench.records.add(
            "density",
            **case,
            entries_per_row=round(entries, 1),
            share=entries / case["d_sae"],
            **{name: spread(values) for name, values in times.items()},
        )
        del dense, sparse
        _release()


def curve(bench: Bench) -> None:
    """Times the fused step against the number of latents, and against rows."""
    first = STEPS[0]
    cases = [{**first, "d_sae": width} for width in WIDTHS] + [{**first, "batch_rows": rows} for rows in ROWS]
    for given in cases[:1] if bench.smoke else cases:
        if not bench.has_time():
            bench.records.add("skipped", section="curve", case=given)
            continue
        case = bench.sized(given)
        learner = bench.learner(case, compute_dtype="float32" if bench.smoke else "bfloat16")
        step = stepping(learner, bench.rows(case["batch_rows"], case["d_in"]))
        bench.records.add("curve", **case, fused=spread(bench.times({"fused": step})["fused"]))
        del learner, step
        _release()


def kernels(bench: Bench) -> None:
    """Times each operation beside plain torch, at the first case's shape."""
    case = bench.sized(STEPS[0])
    n, d, f, k = (case[name] for name in ("batch_rows", "d_in", "d_sae", "k"))
    low = torch.float32 if bench.smoke else torch.bfloat16
    x = bench.rows(n, d)
    W = torch.nn.functional.normalize(torch.randn(f, d, device=bench.device), dim=1)
    W_low, b = W.to(low), torch.zeros(f, device=bench.device)
    pre = encode.product(x, W_low, b)
    codes = RaggedCodes.of(*encode.strongest(x, W_low, b, k))
    order, zeros = latent_order(codes, f), torch.zeros(d, device=bench.device)
    scale = torch.tensor(-1e-4, device=bench.device)
    decoded = decode_loss(codes, W_low, zeros, x, scale, gradient_dtype=low)
    sums = (order, codes.values, decoded.dvalues, decoded.gradient, x.to(low))
    parameters = {"W_dec": W, "W_enc": W.clone(), "b_enc": b}
    moments = {name: Moments.zeros(value) for name, value in parameters.items()}
    plain = [value.clone().requires_grad_() for value in parameters.values()]
    optimizer = torch.optim.Adam(plain, lr=1e-5, fused=True)
    lr, count = torch.tensor(1e-5, device=bench.device), torch.tensor(1, device=bench.device)
    indices, values = codes.indices.view(n, k), codes.values.view(n, k)

    def dense_selection() -> None:
        torch.topk(pre, k, dim=1, sorted=False)

    def torch_decode() -> None:
        bag = torch.nn.functional.embedding_bag(indices, W_low, per_sample_weights=values.to(low), mode="sum")
        ((x - bag) * scale).to(low)

    def torch_adam() -> None:
        given = latent_reduce(*sums)
        for parameter, name in zip(plain, MOVED, strict=True):
            parameter.grad = getattr(given, name)
        optimizer.step()

    threshold = torch.full((f,), 0.5, device=bench.device)
    full = pre.float()
    room = max(1, int((full > threshold).sum()))
    leaves = [full.clone().requires_grad_(), *(torch.zeros(f, device=bench.device).requires_grad_() for _ in range(3))]
    norms = torch.ones(f, device=bench.device)

    def torch_shrink(pre: Tensor) -> tuple[Tensor, ...]:
        values = pre.relu()
        return values, (values * norms).sum()

    def torch_gate(product: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> tuple[Tensor, ...]:
        opened = (product + b_gate).relu()
        values = torch.where(opened > 0, (product * r_mag.exp() + b_mag).relu(), 0)
        return values, opened, (opened * norms).sum()

    def both_ways(run: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> Callable[[], object]:
        def there_and_back() -> None:
            made = run(*given)
            torch.autograd.grad(made, given, [full if value.ndim else norms[0] for value in made])

        return there_and_back

    pairs: dict[str, dict[str, Callable[[], object]]] = {
        "topk_select": {"ours": lambda: topk_select.topk_select(pre, k), "torch": dense_selection},
        "threshold_select": {
            "ours": lambda: topk_select.threshold_select(pre, n * k),
            "torch": lambda: pre.flatten().topk(n * k, sorted=False),
        },
        "encode": {
            "ours": lambda: encode.strongest(x, W_low, b, k),
            "torch": lambda: encode.product(x, W_low, b).topk(k, dim=1, sorted=False),
        },
        "decode_loss": {
            "ours": lambda: decode_loss(codes, W_low, zeros, x, scale, gradient_dtype=low),
            "torch": torch_decode,
        },
        "latent_order": {"ours": lambda: latent_order(codes, f), "torch": lambda: torch.argsort(codes.indices)},
        "latent_adam": {
            "ours": lambda: latent_adam(*sums, parameters, moments, lr, count, Adam()),
            "torch": torch_adam,
        },
        "above_select": {
            "ours": lambda: above_select(full, threshold, room),
            "torch": lambda: (full > threshold).nonzero(),
        },
        "jump": {
            "ours": lambda: jump(full, threshold, 0.1),
            "torch": lambda: (full * (full > threshold), (full > threshold).sum()),
        },
        "shrink": {
            "ours": both_ways(lambda pre: shrink(pre, norms, Penalty("l1"))[:2], leaves[0]),
            "torch": both_ways(torch_shrink, leaves[0]),
        },
        "gate": {
            "ours": both_ways(lambda p, b, r, m: gate(p, b, r, m, norms), *leaves),
            "torch": both_ways(torch_gate, *leaves),
        },
    }
    for name, pair in pairs.items():
        if not bench.has_time():
            bench.records.add("skipped", section="kernels", case={"kernel": name})
            continue
        times = bench.times(pair)
        bench.records.add("kernel", kernel=name, **case, **{who: spread(values) for who, values in times.items()})
    for size in _chunk_sizes(bench):
        found = bench.times({"encode": lambda: encode.strongest(x, W_low, b, k)})["encode"]
        bench.records.add("chunk", chunk_mb=size >> 20, **case, encode=spread(found))


def _chunk_sizes(bench: Bench) -> Iterator[int]:
    """Yields sizes of the encoder's chunks, set while the caller measures."""
    usual = encode.CHUNK_BYTES
    for size in (usual,) if bench.smoke else (16 << 20, 32 << 20, 64 << 20, 256 << 20):
        if bench.has_time():
            encode.CHUNK_BYTES = size
            yield size
    encode.CHUNK_BYTES = usual


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


SECTIONS = {
    "machine": machine,
    "steps": steps,
    "memory": memory,
    "variants": variants,
    "density": density,
    "curve": curve,
    "kernels": kernels,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU too")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    given = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or given.smoke):
        sys.exit("step_gpu found no CUDA device, expected one: run it on a GPU, or try --smoke")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = Records("step", given.write)
    bench = Bench(device, given.smoke, records, given.repeats, given.minutes)
    with default_backend("reference") if device.type == "cpu" else nullcontext():
        parity(bench)
        for name in given.only:
            SECTIONS[name](bench)


if __name__ == "__main__":
    main()

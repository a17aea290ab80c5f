"""Compiles the kernels for a GPU that need not be there: every launch becomes a compilation and a line of output.

Run in a process of its own with TRITON_INTERPRET=0: python compiling.py d architecture
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sae.kernels import above_select, decode_loss, dispatch, gate, jump, latent_adam, latent_reduce, shrink, topk_select
from sae.kernels.cases import random_codes
from sae.kernels.latent_order import latent_order

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
}
OPTIONS = ("num_warps", "num_stages")


def compile_instead(architecture: int) -> None:
    """Makes every launch compile its kernel for compute capability `architecture` and run nothing."""

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        marked = {self.arg_names[place] for place in self.constexprs}
        # a launch takes an integer of value 1 for a constant
        constants = {name: v for name, v in given.items() if name in marked or (isinstance(v, int) and v == 1)}
        signature = {
            name: "constexpr" if name in constants else POINTERS[v.dtype] if torch.is_tensor(v) else "i32"
            for name, v in given.items()
        }
        source = ASTSource(self, {name: signature[name] for name in self.arg_names}, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        sys.stdout.write(f"{self.__name__} {options} {usage(compiled.asm['cubin'])}\n")

    JITFunction.run = run


def usage(cubin: bytes) -> str:
    """Returns registers and spilled bytes of a thread, and the shared memory of a program."""
    from triton.knobs import nvidia

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(re.findall(r"(?:REG|STACK|SHARED):\d+", told))


def launch_all(d: int, has_fp8: bool) -> None:
    """Launches every kernel in float32, with rows, weights and moments of bf16, and what takes float64 in that."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        low: Any = {"dtype": dtype}
        n, d_sae = 8, 64
        codes = random_codes(2 * n, d_sae, 4)
        W_dec, gradient, centred = torch.zeros(d_sae, d, **low), torch.zeros(2 * n, d, **low), torch.zeros(n, d, **low)
        values, scale = codes.values.to(dtype), torch.tensor(1.0)
        codes = codes._replace(values=values)
        for weights in (None, torch.ones(2)):
            held = codes if weights is not None else random_codes(n, d_sae, 4)
            decode_loss.decode_loss(held, W_dec, W_dec[0], centred, scale, weights, backend="triton")
        decode_loss.decode_loss(
            random_codes(n, d_sae, 4), W_dec, W_dec[0], centred, scale, has_silent=True, backend="triton"
        )
        order = latent_order(codes, d_sae)
        sums = (order, values, values, gradient, centred)
        latent_reduce.latent_reduce(*sums, groups=2, segment=8, backend="triton")
        parameters = {"W_dec": torch.zeros(d_sae, d), "W_enc": torch.zeros(d_sae, d), "b_enc": torch.zeros(d_sae)}
        moments = {n: latent_adam.Moments.zeros(v, dtype if v.ndim == 2 else None) for n, v in parameters.items()}
        copies = {name: parameters[name].bfloat16() for name in ("W_dec", "W_enc")}
        time = torch.tensor(1e-3), torch.tensor(1)
        adam = latent_adam.Adam()
        latent_adam.latent_adam(
            *sums, parameters, moments, *time, adam, copies=copies, groups=2, segment=8, backend="triton"
        )
        if dtype == torch.bfloat16:
            small = {
                name: latent_adam.Moments.zeros(v, torch.int8 if v.ndim == 2 else None)
                for name, v in parameters.items()
            }
            if has_fp8:
                copies["W_enc"] = copies["W_enc"].to(torch.float8_e4m3fn)
            slots, listed = torch.zeros(d_sae, dtype=torch.int32), torch.zeros(4, d)
            added = latent_adam.Added(slots, listed, listed, listed[:, 0].contiguous())
            latent_adam.latent_adam(
                *sums, parameters, small, *time, adam, added=added, copies=copies, groups=2, segment=8, backend="triton"
            )
        if dtype != torch.float64:
            pre = torch.zeros(n, 1 << 12, **low)
            for k in (1, 32):
                topk_select.topk_select(pre, k, backend="triton")
            topk_select.threshold_select(pre, 100, backend="triton")
        above_select.above_select(torch.zeros(n, 512, **low), torch.ones(512, **low), 100, backend="triton")
        z, threshold = torch.zeros(n, 512, **low).requires_grad_(), torch.ones(512).requires_grad_()
        active, count = jump.jump(z, threshold, 0.1, backend="triton")
        (active.sum() + count).backward()
        for penalty in (shrink.Penalty("l1"), shrink.Penalty("lp", 0.5), shrink.Penalty("tanh", 4.0)):
            values, charged, _ = shrink.shrink(z, threshold, penalty, backend="triton")
            (values.sum() + charged).backward()
        values, opened, charged = gate.gate(z, threshold, threshold, threshold, threshold.detach(), backend="triton")
        (values.sum() + opened.sum() + charged).backward()


if __name__ == "__main__":
    compile_instead(int(sys.argv[2]))
    for module in (above_select, decode_loss, latent_reduce, latent_adam, topk_select, jump, shrink, gate):
        vars(module)["uses_triton"] = lambda backend, tensor: True
    assert not dispatch.uses_triton("auto", torch.zeros(1))
    launch_all(int(sys.argv[1]), has_fp8=int(sys.argv[2]) >= 89)

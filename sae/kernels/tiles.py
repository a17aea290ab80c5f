"""Launch sizes that several kernels share; imported where kernels are launched. Tune them here."""

from __future__ import annotations

import torch
import triton.language as tl

TILE_ELEMENTS = 4096
"""Elements of a tile of gathered rows that a program holds at once."""
MAX_TILE_ROWS = 16


def next_power(size: int) -> int:
    """Returns the least power of two that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


def row_tile(block_d: int) -> tuple[int, int]:
    """Returns how many rows of `block_d` columns a tile holds, and the warps of its program."""
    rows = max(1, min(MAX_TILE_ROWS, TILE_ELEMENTS // block_d))
    return rows, 4 if block_d <= 1024 else 8 if block_d <= 4096 else 16


def accumulator(wide: torch.dtype) -> tl.dtype:
    """Returns the kernel's dtype for sums."""
    return tl.float64 if wide == torch.float64 else tl.float32

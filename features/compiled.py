# pyright: reportUnknownParameterType=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
"""How the index's loops are compiled: by numba, without the interpreter's lock, so that threads run side by side.

Compiled at first use, some seconds in all, and kept in a cache on disk where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic


def compiled(loop: Callable[..., Any]) -> Any:
    """Compiles a loop at its first call; what it calls has to be compiled too."""
    try:
        return njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # no folder to keep it in: compiled anew by every process
        return njit(nogil=True)(loop)


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Asks for the memory at `index` of a contiguous array, which will be read or written soon.

    A processor looks a few hundred instructions ahead by itself; what lies further away and is scattered, it waits for.
    Nothing is read: any index will do.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(held.data, [arguments[1]]), byte)
        builder.call(ask, [place, number(0), number(3), number(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.void(array, index), generate

"""Programmatic dependent launch: a kernel begins while the one before it in its stream still runs.

Until `wait_for_previous` it may only touch what no kernel of the stream writes: it asks for its
weights to be brought into the L2 cache. Hopper (9.0) and later; off unless a target asks for it.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda

CACHE_LINE = 128
"""Bytes that one prefetch brings."""


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Let the next kernel begin, and go on when the previous one is complete and visible."""
    if OVERLAP:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()


@triton.jit
def prefetch_weights(
    w_ptr,
    column,
    columns_end,
    k_size,
    k_begin,
    k_end,
    BLOCK_K: tl.constexpr,
    LINE: tl.constexpr,
):
    """Rows `column` of a weight, k_begin to k_end, into L2. LINE: elements of a cache line."""
    row = tl.minimum(column, columns_end - 1).to(tl.int64)
    for k0 in range(k_begin, k_end, BLOCK_K):
        k = tl.minimum(k0 + tl.arange(0, BLOCK_K // LINE) * LINE, k_end - 1)
        address = (w_ptr + row[:, None] * k_size + k[None, :]).to(tl.uint64, bitcast=True)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [address],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )

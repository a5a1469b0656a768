"""Products of few rows with a large matrix, which are bound by reading that matrix once.

Tiles are narrow, weights stream through a deep pipeline in their own format (E4M3 is widened on the
way, exactly), and where one pass over K leaves multiprocessors idle, K is split: the block that
arrives last adds the parts in a fixed order, so that results do not vary from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.overlap import (
    CACHE_LINE,
    prefetch_weights,
    wait_for_previous,
)
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import GemmTiles, ceil_div, gemm_tiles
from thor_policy_ros.backends.kernels.weights import Weight


@triton.jit
def accumulate(
    x_ptr,
    w_ptr,
    fold_ptr,
    row,
    rows,
    column,
    column_inside,
    k_size,
    k_begin,
    k_end,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """x[row] @ w[column].T over a part of K; also each row's sum of squares if x is folded.

    fold_ptr: f32[K] by which x is multiplied first, or None.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    x_rows = x_ptr + row[:, None] * k_size
    w_rows = w_ptr + column[None, :].to(tl.int64) * k_size
    for k0 in range(k_begin, k_end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        x_mask = row[:, None] < rows
        w_mask = column_inside[None, :]
        if not EVEN_K:
            x_mask &= (k < k_size)[None, :]
            w_mask &= (k < k_size)[:, None]
        x = tl.load(x_rows + k[None, :], mask=x_mask, other=0.0)
        w = tl.load(w_rows + k[:, None], mask=w_mask, other=0.0)
        if fold_ptr is not None:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            fold = tl.load(fold_ptr + k, mask=k < k_size, other=0.0)
            x = (wide * fold[None, :]).to(x.dtype)
        acc = tl.dot(x, w.to(x.dtype), acc, input_precision="ieee")
    return acc, squares


@triton.jit
def k_range(k_size, split, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Where a part of K begins and ends; parts are whole blocks."""
    part = tl.cdiv(tl.cdiv(k_size, BLOCK_K), SPLITS) * BLOCK_K
    begin = split * part
    return begin, tl.minimum(k_size, begin + part)


@triton.jit
def arrive_last(counter_ptr, SPLITS: tl.constexpr):
    """Whether all other parts of this tile have stored theirs; the counter is then 0 again."""
    tl.debug_barrier()  # every thread's stores come before the release below
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == SPLITS - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def summed_tile(parts_ptr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The parts of a tile added up, always in the same order."""
    offsets = tile_offsets(BLOCK_M, BLOCK_N)
    total = tl.load(parts_ptr + offsets, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        part_ptr = parts_ptr + split * BLOCK_M * BLOCK_N
        total += tl.load(part_ptr + offsets, cache_modifier=".cg")
    return total


@triton.jit
def summed_rows(parts_ptr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr):
    """The same for one value in each row."""
    offsets = tl.arange(0, BLOCK_M)
    total = tl.load(parts_ptr + offsets, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        total += tl.load(parts_ptr + split * BLOCK_M + offsets, cache_modifier=".cg")
    return total


@triton.jit
def tile_offsets(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def gated_linear_kernel(
    x_ptr,
    y_ptr,
    w_ptr,
    w_scale_ptr,
    gate_ptr,
    partial_ptr,
    counter_ptr,
    rows,
    columns,
    k_size,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    LINE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < columns
    split = tl.program_id(2)
    begin, end = k_range(k_size, split, SPLITS, BLOCK_K)
    if OVERLAP:
        prefetch_weights(w_ptr, column, columns, k_size, begin, end, BLOCK_K, LINE)
    wait_for_previous(OVERLAP)
    acc, _ = accumulate(
        y_ptr,
        w_ptr,
        None,
        row,
        rows,
        column,
        inside,
        k_size,
        begin,
        end,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
    )
    last = True
    if SPLITS > 1:
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        parts_ptr = partial_ptr + tile * SPLITS * BLOCK_M * BLOCK_N
        own_ptr = parts_ptr + split * BLOCK_M * BLOCK_N
        tl.store(own_ptr + tile_offsets(BLOCK_M, BLOCK_N), acc)
        last = arrive_last(counter_ptr + tile, SPLITS)
        if last:
            acc = summed_tile(parts_ptr, SPLITS, BLOCK_M, BLOCK_N)
    if last:
        gate = tl.load(gate_ptr + column, mask=inside, other=0.0)
        if w_scale_ptr is not None:
            gate *= tl.load(w_scale_ptr + column, mask=inside, other=0.0)
        mask = (row[:, None] < rows) & inside[None, :]
        pointers = x_ptr + row[:, None] * columns + column[None, :]
        x = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        tl.store(pointers, (x + gate[None, :] * acc).to(x_ptr.dtype.element_ty), mask=mask)


def gated_linear(
    target: KernelTarget,
    x: Tensor,
    y: Tensor,
    weight: Weight,
    gate: Tensor,
    tiles: GemmTiles | None = None,
) -> None:
    """`Ops.gated_linear`. tiles: instead of those that follow from the sizes."""
    require_contiguous(x=x, y=y, weight=weight.data, scale=weight.scale, gate=gate)
    rows, k = y.shape
    columns = weight.data.shape[0]
    t = tiles or product_tiles(target, y, weight)
    grid = (ceil_div(columns, t.block_n), ceil_div(rows, t.block_m), t.splits)
    target.launch(
        gated_linear_kernel,
        grid,
        x,
        y,
        weight.data,
        weight.scale,
        gate,
        target.partials(grid[0] * grid[1] * t.splits * t.block_m * t.block_n),
        target.arrivals(grid[0] * grid[1]),
        rows,
        columns,
        k,
        **product_options(t, weight),
        **target.overlap_options,
    )


def product_tiles(target: KernelTarget, x: Tensor, weight: Weight) -> GemmTiles:
    """Those of x [M,K] with a weight [N,K]."""
    rows, k = x.shape
    sizes = weight.data.element_size(), x.element_size()
    return gemm_tiles(rows, weight.data.shape[0], k, *sizes, target.limits)


def product_options(tiles: GemmTiles, weight: Weight) -> dict[str, int]:
    """Compile-time arguments that every product's kernel takes."""
    k, line = weight.data.shape[1], CACHE_LINE // weight.data.element_size()
    return {
        "SPLITS": tiles.splits,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "EVEN_K": k % tiles.block_k == 0,
        "LINE": min(line, tiles.block_k),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }

"""Products of few rows with a large matrix, which are bound by reading that matrix once.

Tiles are narrow, so that every multiprocessor reads a part of the weights, in their own format
(E4M3 is widened on the way, exactly): the first step's before anything else, since they wait for
nobody, further ones through a pipeline in shared memory. The sum over K is shared by the warps of a
block, each with a slice of its own: with so few rows one warp's sum is a chain of dependent matrix
instructions, whose latency binds. Where tiles are still fewer than multiprocessors K is split
between blocks too: the one that arrives last adds the parts in a fixed order, so that results do
not vary from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import GemmTiles, ceil_div, gemm_tiles
from thor_policy_ros.backends.kernels.weights import Scaled, Weight


@triton.jit
def load_weights(
    w_ptr,
    column,
    inside,
    k_size,
    k_begin,
    SLICES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """[SLICES,BLOCK_K,BLOCK_N]: what one step reads of the columns of w.T."""
    k = k_begin + tl.arange(0, SLICES)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    mask = inside[None, None, :]
    if not EVEN_K:
        mask = mask & (k < k_size)[:, :, None]
    rows = w_ptr + column[None, None, :].to(tl.int64) * k_size
    return tl.load(rows + k[:, :, None], mask=mask, other=0.0)


@triton.jit
def load_rows(
    x_ptr,
    row,
    rows,
    k_size,
    k_begin,
    SLICES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """[SLICES,BLOCK_M,BLOCK_K]: what one step reads of x."""
    k = k_begin + tl.arange(0, SLICES)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    mask = (row < rows)[None, :, None]
    if not EVEN_K:
        mask = mask & (k < k_size)[:, None, :]
    return tl.load(x_ptr + row[None, :, None] * k_size + k[:, None, :], mask=mask, other=0.0)


@triton.jit
def accumulate(
    first,
    x_ptr,
    w_ptr,
    row,
    rows,
    column,
    inside,
    k_size,
    k_begin,
    k_end,
    SLICES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ONE_STEP: tl.constexpr,
):
    """f32[BLOCK_M,BLOCK_N]: x[row] @ w[column].T over a part of K, in SLICES sums.

    first: weights of the first step, which were asked for before x was there.
    """
    x = load_rows(x_ptr, row, rows, k_size, k_begin, SLICES, BLOCK_K, EVEN_K)
    acc = tl.zeros((SLICES, BLOCK_M, BLOCK_N), tl.float32)
    acc = tl.dot(x, first.to(x.dtype), acc, input_precision="ieee")
    if not ONE_STEP:
        for k0 in range(k_begin + SLICES * BLOCK_K, k_end, SLICES * BLOCK_K):
            x = load_rows(x_ptr, row, rows, k_size, k0, SLICES, BLOCK_K, EVEN_K)
            w = load_weights(w_ptr, column, inside, k_size, k0, SLICES, BLOCK_K, EVEN_K)
            acc = tl.dot(x, w.to(x.dtype), acc, input_precision="ieee")
    return tl.sum(acc, 0)


@triton.jit
def k_range(k_size, split, SPLITS: tl.constexpr, STEP: tl.constexpr):
    """Where a part of K begins and ends; parts are whole steps, the last ones may be empty."""
    part = tl.cdiv(tl.cdiv(k_size, STEP), SPLITS) * STEP
    begin = tl.minimum(split * part, k_size)
    return begin, tl.minimum(k_size, begin + part)


@triton.jit
def arrive_last(counter_ptr, parts):
    """Whether all other parts of this tile have stored theirs; the counter is then 0 again."""
    tl.debug_barrier()  # every thread's stores come before the release below
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == parts - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def summed_over_splits(
    acc,
    partial_ptr,
    counter_ptr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The whole sum of a tile, and whether this block has it: the one that arrives last."""
    last = True
    if SPLITS > 1:
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        parts_ptr = partial_ptr + tile * SPLITS * BLOCK_M * BLOCK_N
        offsets = tile_offsets(BLOCK_M, BLOCK_N)
        tl.store(parts_ptr + tl.program_id(2) * BLOCK_M * BLOCK_N + offsets, acc)
        last = arrive_last(counter_ptr + tile, SPLITS)
        if last:
            acc = tl.load(parts_ptr + offsets, cache_modifier=".cg")
            for split in tl.static_range(1, SPLITS):
                part_ptr = parts_ptr + split * BLOCK_M * BLOCK_N
                acc += tl.load(part_ptr + offsets, cache_modifier=".cg")
    return acc, last


@triton.jit
def tile_offsets(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def store_scaled(value, scale, mask, pointers, squares_ptr, row, rows, h_ptr):
    """The part of a `Scaled` that belongs to a tile of x, whose rounded values are `value`."""
    tl.store(h_ptr + pointers, (value * scale[None, :]).to(h_ptr.dtype.element_ty), mask=mask)
    squares = tl.sum(tl.where(mask, value * value, 0.0), 1)
    tl.store(squares_ptr + tl.program_id(0) * rows + row, squares, mask=row < rows)


@triton.jit
def gated_linear_kernel(
    x_ptr,
    y_ptr,
    w_ptr,
    w_scale_ptr,
    gate_ptr,
    scale_ptr,
    h_ptr,
    squares_ptr,
    partial_ptr,
    counter_ptr,
    rows,
    columns,
    k_size,
    SPLITS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ONE_STEP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < columns
    begin, end = k_range(k_size, tl.program_id(2), SPLITS, SLICES * BLOCK_K)
    first = load_weights(w_ptr, column, inside, k_size, begin, SLICES, BLOCK_K, EVEN_K)
    mask = (row[:, None] < rows) & inside[None, :]
    pointers = row[:, None] * columns + column[None, :]
    # Constants, and an x that was complete before the kernel in front of this one began.
    x = tl.load(x_ptr + pointers, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    gate = tl.load(gate_ptr + column, mask=inside, other=0.0)
    if w_scale_ptr is not None:
        gate *= tl.load(w_scale_ptr + column, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
    wait_for_previous(OVERLAP)
    acc = accumulate(
        first,
        y_ptr,
        w_ptr,
        row,
        rows,
        column,
        inside,
        k_size,
        begin,
        end,
        SLICES,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        ONE_STEP,
    )
    acc, last = summed_over_splits(acc, partial_ptr, counter_ptr, SPLITS, BLOCK_M, BLOCK_N)
    if last:
        new = (x + gate[None, :] * acc).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + pointers, new, mask=mask)
        value = new.to(tl.float32)
        store_scaled(value, scale, mask, pointers, squares_ptr, row, rows, h_ptr)


def gated_linear(
    target: KernelTarget,
    x: Tensor,
    y: Tensor,
    weight: Weight,
    gate: Tensor,
    scale: Tensor,
    tiles: GemmTiles | None = None,
) -> Scaled:
    """`Ops.gated_linear`. tiles: instead of those that follow from the sizes."""
    require_contiguous(x=x, y=y, weight=weight.data, w_scale=weight.scale, gate=gate, scale=scale)
    rows, k = y.shape
    columns = weight.data.shape[0]
    t = tiles or product_tiles(target, y, weight)
    grid = (ceil_div(columns, t.block_n), ceil_div(rows, t.block_m), t.splits)
    made = empty_scaled(x, grid[0])
    target.launch(
        gated_linear_kernel,
        grid,
        x,
        y,
        weight.data,
        weight.scale,
        gate,
        scale,
        *made,
        *split_scratch(target, grid, t),
        rows,
        columns,
        k,
        **product_options(target, t, weight),
    )
    return made


def empty_scaled(x: Tensor, parts: int) -> Scaled:
    """For x [M,W], its squares in `parts` sums."""
    squares = torch.empty((parts, x.shape[0]), device=x.device, dtype=torch.float32)
    return Scaled(torch.empty_like(x), squares)


def split_scratch(
    target: KernelTarget, grid: tuple[int, int, int], t: GemmTiles
) -> tuple[Tensor, Tensor]:
    """Partial tiles and their counters; of an unsplit product none are used."""
    tiles = grid[0] * grid[1] if t.splits > 1 else 0
    return target.partials(tiles * t.splits * t.block_m * t.block_n), target.arrivals(tiles)


def product_tiles(target: KernelTarget, x: Tensor, weight: Weight) -> GemmTiles:
    """Tiles for x [M,K] and weight [N,K]."""
    columns, k = weight.data.shape
    sizes = (weight.data.element_size(), x.element_size())
    return gemm_tiles(x.shape[0], columns, k, *sizes, target.limits)


def product_options(target: KernelTarget, tiles: GemmTiles, weight: Weight) -> dict[str, Any]:
    """Options of the kernel that say how it computes a product."""
    k = weight.data.shape[1]
    steps = ceil_div(k, tiles.warps * tiles.block_k)
    even = k % (tiles.warps * tiles.block_k) == 0 and steps % tiles.splits == 0
    return {
        "SPLITS": tiles.splits,
        "SLICES": tiles.warps,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "EVEN_K": even,
        "ONE_STEP": steps <= tiles.splits,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        **target.overlap_options,
    }

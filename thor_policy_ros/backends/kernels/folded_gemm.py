"""Products behind an adaptive RMSNorm, the norm being part of them: expert_geglu and expert_qkv.

`(norm(x) * scale + shift) @ W.T` is `rstd * ((x * scale) @ W.T) + shift @ W.T`. The last term is a
constant of layer and step; the sum of squares runs along with the product. So nothing waits for a
norm, and no block repeats it. Two columns that belong together (gate and up, or the two halves that
RoPE turns) lie side by side in a tile: they meet in one thread's registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.activations import gelu_tanh
from thor_policy_ros.backends.kernels.overlap import prefetch_weights, wait_for_previous
from thor_policy_ros.backends.kernels.rope import group_stride, store_rotated
from thor_policy_ros.backends.kernels.small_gemm import (
    accumulate,
    arrive_last,
    k_range,
    product_options,
    product_tiles,
    summed_rows,
    summed_tile,
    tile_offsets,
)
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import GemmTiles, ceil_div
from thor_policy_ros.backends.kernels.weights import Folded, Weight
from thor_policy_ros.model.gemma import RMS_NORM_EPS


@triton.jit
def folded_tile(
    x_ptr,
    w_ptr,
    w_scale_ptr,
    fold_ptr,
    bias_ptr,
    partial_ptr,
    counter_ptr,
    row,
    rows,
    column,
    columns,
    inside,
    k_size,
    EPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    LINE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """f32[BLOCK_M,BLOCK_N] of the whole product, and whether this block is the one to store it."""
    split = tl.program_id(2)
    begin, end = k_range(k_size, split, SPLITS, BLOCK_K)
    if OVERLAP:
        prefetch_weights(w_ptr, column, columns, k_size, begin, end, BLOCK_K, LINE)
    wait_for_previous(OVERLAP)
    acc, squares = accumulate(
        x_ptr,
        w_ptr,
        fold_ptr,
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
        tiles = tl.num_programs(0) * tl.num_programs(1)
        squares_ptr = partial_ptr + (tiles * BLOCK_N + tile) * SPLITS * BLOCK_M
        own_ptr = parts_ptr + split * BLOCK_M * BLOCK_N
        tl.store(own_ptr + tile_offsets(BLOCK_M, BLOCK_N), acc)
        tl.store(squares_ptr + split * BLOCK_M + tl.arange(0, BLOCK_M), squares)
        last = arrive_last(counter_ptr + tile, SPLITS)
        if last:
            acc = summed_tile(parts_ptr, SPLITS, BLOCK_M, BLOCK_N)
            squares = summed_rows(squares_ptr, SPLITS, BLOCK_M)
    rstd = tl.rsqrt(squares / k_size + EPS)
    if w_scale_ptr is not None:
        acc *= tl.load(w_scale_ptr + column, mask=inside, other=0.0)[None, :]
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
    return acc * rstd[:, None] + bias[None, :], last


@triton.jit
def geglu_product_kernel(
    x_ptr,
    w_ptr,
    w_scale_ptr,
    fold_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    rows,
    hidden,
    k_size,
    EPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    LINE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_N)
    unit = tl.program_id(0) * (BLOCK_N // 2) + lane // 2
    value, last = folded_tile(
        x_ptr,
        w_ptr,
        w_scale_ptr,
        fold_ptr,
        bias_ptr,
        partial_ptr,
        counter_ptr,
        row,
        rows,
        unit + (lane % 2) * hidden,
        2 * hidden,
        unit < hidden,
        k_size,
        EPS,
        SPLITS,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        LINE,
        OVERLAP,
    )
    if last:
        gate, up = tl.split(tl.reshape(value, (BLOCK_M, BLOCK_N // 2, 2)))
        column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        mask = (row[:, None] < rows) & (column < hidden)[None, :]
        pointers = out_ptr + row[:, None] * hidden + column[None, :]
        tl.store(pointers, (gelu_tanh(gate) * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def qkv_product_kernel(
    x_ptr,
    w_ptr,
    w_scale_ptr,
    fold_ptr,
    bias_ptr,
    partial_ptr,
    counter_ptr,
    cos_ptr,
    sin_ptr,
    start_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    rows,
    heads,
    groups,
    capacity,
    kv_stride,
    k_size,
    HALF: tl.constexpr,
    EPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    LINE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_N)
    pair_of_lane = tl.program_id(0) * (BLOCK_N // 2) + lane // 2
    pairs = (heads + 2 * groups) * HALF
    value, last = folded_tile(
        x_ptr,
        w_ptr,
        w_scale_ptr,
        fold_ptr,
        bias_ptr,
        partial_ptr,
        counter_ptr,
        row,
        rows,
        (pair_of_lane // HALF) * 2 * HALF + pair_of_lane % HALF + (lane % 2) * HALF,
        2 * pairs,
        pair_of_lane < pairs,
        k_size,
        EPS,
        SPLITS,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        LINE,
        OVERLAP,
    )
    if last:
        low, high = tl.split(tl.reshape(value, (BLOCK_M, BLOCK_N // 2, 2)))
        pair = (tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2))[None, :]
        store_rotated(
            low,
            high,
            row[:, None],
            pair // HALF,
            pair % HALF,
            tl.load(start_ptr),
            cos_ptr,
            sin_ptr,
            q_ptr,
            keys_ptr,
            values_ptr,
            heads,
            groups,
            capacity,
            kv_stride,
            HALF,
            (row[:, None] < rows) & (pair < pairs),
        )


def expert_geglu(
    target: KernelTarget,
    x: Tensor,
    folded: Folded,
    weight: Weight,
    out: Tensor | None = None,
    tiles: GemmTiles | None = None,
) -> Tensor:
    """`Ops.expert_geglu`. tiles: instead of those that follow from the sizes."""
    require_contiguous(x=x, weight=weight.data, w_scale=weight.scale, **folded._asdict(), out=out)
    rows, k = x.shape
    hidden = weight.data.shape[0] // 2
    if out is None:
        out = torch.empty((rows, hidden), device=x.device, dtype=x.dtype)
    t = tiles or product_tiles(target, x, weight)
    grid = (ceil_div(2 * hidden, t.block_n), ceil_div(rows, t.block_m), t.splits)
    target.launch(
        geglu_product_kernel,
        grid,
        x,
        weight.data,
        weight.scale,
        folded.scale,
        folded.bias,
        out,
        *_scratch(target, grid, t),
        rows,
        hidden,
        k,
        EPS=RMS_NORM_EPS,
        **product_options(t, weight),
        **target.overlap_options,
    )
    return out


def expert_qkv(
    target: KernelTarget,
    x: Tensor,
    folded: Folded,
    weight: Weight,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor | None = None,
    tiles: GemmTiles | None = None,
) -> Tensor:
    """`Ops.expert_qkv`. tiles: instead of those that follow from the sizes."""
    require_contiguous(x=x, weight=weight.data, w_scale=weight.scale, **folded._asdict(), out=out)
    require_contiguous(cos=cos, sin=sin)
    groups, capacity, head_dim = keys.shape
    rows, k = x.shape
    columns = weight.data.shape[0]
    heads = columns // head_dim - 2 * groups
    if out is None:
        out = torch.empty((rows, heads, head_dim), device=x.device, dtype=x.dtype)
    t = tiles or product_tiles(target, x, weight)
    grid = (ceil_div(columns, t.block_n), ceil_div(rows, t.block_m), t.splits)
    target.launch(
        qkv_product_kernel,
        grid,
        x,
        weight.data,
        weight.scale,
        folded.scale,
        folded.bias,
        *_scratch(target, grid, t),
        cos,
        sin,
        start,
        out,
        keys,
        values,
        rows,
        heads,
        groups,
        capacity,
        group_stride(keys, values),
        k,
        HALF=head_dim // 2,
        EPS=RMS_NORM_EPS,
        **product_options(t, weight),
        **target.overlap_options,
    )
    return out


def _scratch(target: KernelTarget, grid: tuple[int, int, int], t: GemmTiles) -> tuple[Tensor, ...]:
    """Partial tiles with a sum of squares for each of their rows, and the counters."""
    tiles = grid[0] * grid[1]
    floats = tiles * t.splits * t.block_m * (t.block_n + 1)
    return target.partials(floats), target.arrivals(tiles)

"""Products behind an adaptive RMSNorm, the norm being part of them: expert_geglu and expert_qkv.

`(norm(x) * scale + shift) @ W.T` is `rstd * ((x * scale) @ W.T) + shift @ W.T`. The last term is a
constant of layer and step; `x * scale` and the sum of squares are made by whoever writes x. So
nothing waits for a norm, no block repeats it, and the product's loop is a product alone. Two
columns that belong together (gate and up, or the two halves that RoPE turns) lie side by side in a
tile: they meet in one thread's registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.activations import gelu_tanh
from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.rope import load_rotation, store_rotated
from thor_policy_ros.backends.kernels.small_gemm import (
    accumulate,
    k_range,
    load_weights,
    product_options,
    product_tiles,
    split_scratch,
    summed_over_splits,
)
from thor_policy_ros.backends.kernels.target import (
    KernelTarget,
    group_stride,
    require_contiguous,
)
from thor_policy_ros.backends.kernels.tiles import GemmTiles, ceil_div, power_of_2
from thor_policy_ros.backends.kernels.weights import Scaled, Weight
from thor_policy_ros.model.gemma import RMS_NORM_EPS


@triton.jit
def folded_tile(
    h_ptr,
    squares_ptr,
    parts,
    w_ptr,
    w_scale_ptr,
    bias_ptr,
    partial_ptr,
    counter_ptr,
    row,
    rows,
    column,
    inside,
    k_size,
    EPS: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    ONE_STEP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """f32[BLOCK_M,BLOCK_N] of the whole product, and whether this block is the one to store it."""
    begin, end = k_range(k_size, tl.program_id(2), SPLITS, SLICES * BLOCK_K)
    first = load_weights(w_ptr, column, inside, k_size, begin, SLICES, BLOCK_K, EVEN_K)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
    if w_scale_ptr is not None:
        w_scale = tl.load(w_scale_ptr + column, mask=inside, other=0.0)
    wait_for_previous(OVERLAP)
    part = tl.arange(0, PARTS)
    squares = tl.load(
        squares_ptr + part[:, None] * rows + row[None, :],
        mask=(part < parts)[:, None] & (row < rows)[None, :],
        other=0.0,
    )
    acc = accumulate(
        first,
        h_ptr,
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
    rstd = tl.rsqrt(tl.sum(squares, 0) / k_size + EPS)
    if w_scale_ptr is not None:
        acc *= w_scale[None, :]
    return acc * rstd[:, None] + bias[None, :], last


@triton.jit
def geglu_product_kernel(
    h_ptr,
    squares_ptr,
    parts,
    w_ptr,
    w_scale_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    rows,
    hidden,
    k_size,
    EPS: tl.constexpr,
    PARTS: tl.constexpr,
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
    lane = tl.arange(0, BLOCK_N)
    unit = tl.program_id(0) * (BLOCK_N // 2) + lane // 2
    value, last = folded_tile(
        h_ptr,
        squares_ptr,
        parts,
        w_ptr,
        w_scale_ptr,
        bias_ptr,
        partial_ptr,
        counter_ptr,
        row,
        rows,
        unit + (lane % 2) * hidden,
        unit < hidden,
        k_size,
        EPS,
        PARTS,
        SPLITS,
        SLICES,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        ONE_STEP,
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
    h_ptr,
    squares_ptr,
    parts,
    w_ptr,
    w_scale_ptr,
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
    PARTS: tl.constexpr,
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
    lane = tl.arange(0, BLOCK_N)
    pair_of_lane = tl.program_id(0) * (BLOCK_N // 2) + lane // 2
    pairs = (heads + 2 * groups) * HALF
    pair = (tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2))[None, :]
    inside = (row[:, None] < rows) & (pair < pairs)
    start = tl.load(start_ptr)
    cos, sin = load_rotation(
        cos_ptr,
        sin_ptr,
        start + row[:, None],
        pair // HALF,
        pair % HALF,
        heads + groups,
        HALF,
        inside,
    )
    value, last = folded_tile(
        h_ptr,
        squares_ptr,
        parts,
        w_ptr,
        w_scale_ptr,
        bias_ptr,
        partial_ptr,
        counter_ptr,
        row,
        rows,
        (pair_of_lane // HALF) * 2 * HALF + pair_of_lane % HALF + (lane % 2) * HALF,
        pair_of_lane < pairs,
        k_size,
        EPS,
        PARTS,
        SPLITS,
        SLICES,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        ONE_STEP,
        OVERLAP,
    )
    if last:
        low, high = tl.split(tl.reshape(value, (BLOCK_M, BLOCK_N // 2, 2)))
        store_rotated(
            low,
            high,
            cos,
            sin,
            row[:, None],
            pair // HALF,
            pair % HALF,
            start,
            q_ptr,
            keys_ptr,
            values_ptr,
            heads,
            groups,
            capacity,
            kv_stride,
            HALF,
            inside,
        )


def expert_geglu(
    target: KernelTarget,
    x: Scaled,
    bias: Tensor,
    weight: Weight,
    out: Tensor | None = None,
    tiles: GemmTiles | None = None,
) -> Tensor:
    """`Ops.expert_geglu`. tiles: instead of those that follow from the sizes."""
    require_contiguous(h=x.h, squares=x.squares, weight=weight.data, bias=bias, out=out)
    require_contiguous(w_scale=weight.scale)
    rows, k = x.h.shape
    hidden = weight.data.shape[0] // 2
    if out is None:
        out = torch.empty((rows, hidden), device=x.h.device, dtype=x.h.dtype)
    t = tiles or product_tiles(target, x.h, weight)
    grid = (ceil_div(2 * hidden, t.block_n), ceil_div(rows, t.block_m), t.splits)
    target.launch(
        geglu_product_kernel,
        grid,
        x.h,
        x.squares,
        x.squares.shape[0],
        weight.data,
        weight.scale,
        bias,
        out,
        *split_scratch(target, grid, t),
        rows,
        hidden,
        k,
        EPS=RMS_NORM_EPS,
        PARTS=power_of_2(x.squares.shape[0]),
        **product_options(target, t, weight),
    )
    return out


def expert_qkv(
    target: KernelTarget,
    x: Scaled,
    bias: Tensor,
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
    require_contiguous(h=x.h, squares=x.squares, weight=weight.data, bias=bias, out=out)
    require_contiguous(w_scale=weight.scale)
    require_contiguous(cos=cos, sin=sin)
    groups, capacity, head_dim = keys.shape
    rows, k = x.h.shape
    columns = weight.data.shape[0]
    heads = columns // head_dim - 2 * groups
    if out is None:
        out = torch.empty((rows, heads, head_dim), device=x.h.device, dtype=x.h.dtype)
    t = tiles or product_tiles(target, x.h, weight)
    grid = (ceil_div(columns, t.block_n), ceil_div(rows, t.block_m), t.splits)
    target.launch(
        qkv_product_kernel,
        grid,
        x.h,
        x.squares,
        x.squares.shape[0],
        weight.data,
        weight.scale,
        bias,
        *split_scratch(target, grid, t),
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
        PARTS=power_of_2(x.squares.shape[0]),
        **product_options(target, t, weight),
    )
    return out

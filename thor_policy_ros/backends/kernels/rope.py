"""Queries, keys and values out of one projection: rotated, and written where they are read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.target import (
    KernelTarget,
    group_stride,
    require_contiguous,
)
from thor_policy_ros.backends.kernels.tiles import ceil_div, power_of_2

ROWS = 4


@triton.jit
def load_rotation(cos_ptr, sin_ptr, position, head, j, turned_heads, HALF: tl.constexpr, inside):
    """cos and sin of the elements of heads (tiles that broadcast); 1 and 0 for values."""
    rotated = inside & (head < turned_heads)
    cos = tl.load(cos_ptr + position * HALF + j, mask=rotated, other=1.0)
    sin = tl.load(sin_ptr + position * HALF + j, mask=rotated, other=0.0)
    return cos, sin


@triton.jit
def store_rotated(
    low,
    high,
    cos,
    sin,
    row,
    head,
    j,
    start,
    q_ptr,
    keys_ptr,
    values_ptr,
    heads,
    groups,
    capacity,
    kv_stride,
    HALF: tl.constexpr,
    inside,
):
    """Halves of heads as tiles that broadcast to [rows, pairs]: rotate, and store by kind of head.

    cos and sin: of `load_rotation`. row, head and j (the place within a half) say where an element
    belongs. Heads are ordered queries, keys, values. Rows beyond the buffers are dropped.
    """
    position = start + row
    is_value = head >= heads + groups
    first, second = low * cos - high * sin, high * cos + low * sin
    is_query = inside & (head < heads)
    q = q_ptr + (row.to(tl.int64) * heads + head) * 2 * HALF + j
    tl.store(q, first.to(q_ptr.dtype.element_ty), mask=is_query)
    tl.store(q + HALF, second.to(q_ptr.dtype.element_ty), mask=is_query)
    fits = inside & (position < capacity)
    is_key = fits & (head >= heads) & ~is_value
    k = keys_ptr + (head - heads).to(tl.int64) * kv_stride + position * 2 * HALF + j
    tl.store(k, first.to(keys_ptr.dtype.element_ty), mask=is_key)
    tl.store(k + HALF, second.to(keys_ptr.dtype.element_ty), mask=is_key)
    v = values_ptr + (head - heads - groups).to(tl.int64) * kv_stride + position * 2 * HALF + j
    tl.store(v, first.to(values_ptr.dtype.element_ty), mask=fits & is_value)
    tl.store(v + HALF, second.to(values_ptr.dtype.element_ty), mask=fits & is_value)


@triton.jit
def split_qkv_kernel(
    qkv_ptr,
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
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_previous(OVERLAP)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    j = tl.arange(0, BLOCK)[None, :]
    head = tl.program_id(1)
    inside = (row < rows) & (j < HALF)
    source = qkv_ptr + (row.to(tl.int64) * (heads + 2 * groups) + head) * 2 * HALF + j
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(start_ptr)
    cos, sin = load_rotation(cos_ptr, sin_ptr, start + row, head, j, heads + groups, HALF, inside)
    store_rotated(
        low,
        high,
        cos,
        sin,
        row,
        head,
        j,
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


def split_qkv(
    target: KernelTarget,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """`Ops.split_qkv`."""
    require_contiguous(qkv=qkv, cos=cos, sin=sin, out=out)
    kv_stride = group_stride(keys, values)
    groups, capacity, head_dim = keys.shape
    rows, heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * groups
    if out is None:
        out = torch.empty((rows, heads, head_dim), device=qkv.device, dtype=qkv.dtype)
    half = head_dim // 2
    target.launch(
        split_qkv_kernel,
        (ceil_div(rows, ROWS), heads + 2 * groups),
        qkv,
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
        kv_stride,
        ROWS=ROWS,
        HALF=half,
        BLOCK=power_of_2(half),
        num_warps=4,
        **target.overlap_options,
    )
    return out

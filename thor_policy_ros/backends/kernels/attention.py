"""Attention in which every query sees every valid key: of the prefix and of an image.

The query heads that share a kv head are more rows of one product, so K and V are read once for
all of them. Softmax runs along (flash attention). Where a wide head's sums would leave no registers
and its rows keep few multiprocessors busy, the columns of V are shared between blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.rounding import store
from thor_policy_ros.backends.kernels.target import (
    KernelTarget,
    group_stride,
    require_contiguous,
)
from thor_policy_ros.backends.kernels.tiles import (
    AttentionTiles,
    ceil_div,
    head_blocks,
    prefix_tiles,
)


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    quantise_ptr,
    length_ptr,
    capacity,
    rows,
    inner,
    q_outer,
    q_token,
    kv_outer,
    kv_row,
    out_outer,
    out_token,
    scale,
    Q_INNER: tl.constexpr,
    KV_INNER: tl.constexpr,
    OUT_INNER: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A group is one kv head of one image or sequence: outer index and inner one. Row r of it is
    token r // HEADS and query head r % HEADS. A block makes VALUES columns of a head's first MAIN.
    scale: of the products, times log2(e).

    Inner strides are known at compile time: a head of 72 is then seen to begin at 16 bytes.
    """
    wait_for_previous(OVERLAP)
    group = tl.program_id(1)
    outer, inner_index = (group // inner).to(tl.int64), (group % inner).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_inside = row < rows
    q_rows = q_ptr + outer * q_outer + inner_index * Q_INNER
    q_rows += (row // HEADS) * q_token + (row % HEADS) * HEAD_DIM
    kv_start = outer * kv_outer + inner_index * KV_INNER
    d = tl.arange(0, MAIN)
    q = tl.load(
        q_rows[:, None] + d[None, :], mask=row_inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0
    )
    if REST > 0:
        e = MAIN + tl.arange(0, REST)
        e_inside = e < HEAD_DIM
        q_rest = tl.load(
            q_rows[:, None] + e[None, :], mask=row_inside[:, None] & e_inside[None, :], other=0.0
        )
        acc_rest = tl.zeros((BLOCK_M, REST), tl.float32)
    length = capacity
    if length_ptr is not None:
        length = tl.minimum(tl.load(length_ptr), capacity)
    c = tl.program_id(2) * VALUES + tl.arange(0, VALUES)

    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, VALUES), tl.float32)
    for first in range(0, length, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        seen = key < length
        kv_rows = kv_start + key.to(tl.int64) * kv_row
        across = kv_rows[None, :] + d[:, None]
        k = tl.load(k_ptr + across, mask=seen[None, :] & (d < HEAD_DIM)[:, None], other=0.0)
        score = tl.dot(q, k, input_precision="ieee")
        if REST > 0:
            across = kv_rows[None, :] + e[:, None]
            k_rest = tl.load(k_ptr + across, mask=seen[None, :] & e_inside[:, None], other=0.0)
            score = tl.dot(q_rest, k_rest, score, input_precision="ieee")
        score = tl.where(seen[None, :], score * scale, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weight, 1)
        highest = new_highest
        weight = weight.to(v_ptr.dtype.element_ty)
        down = kv_rows[:, None] + c[None, :]
        v = tl.load(v_ptr + down, mask=seen[:, None] & (c < HEAD_DIM)[None, :], other=0.0)
        acc = tl.dot(weight, v, acc * shrink[:, None], input_precision="ieee")
        if REST > 0:
            down = kv_rows[:, None] + e[None, :]
            v_rest = tl.load(v_ptr + down, mask=seen[:, None] & e_inside[None, :], other=0.0)
            acc_rest = tl.dot(weight, v_rest, acc_rest * shrink[:, None], input_precision="ieee")

    share = 1.0 / total[:, None]
    out_rows = out_ptr + outer * out_outer + inner_index * OUT_INNER
    out_rows += (row // HEADS) * out_token + (row % HEADS) * HEAD_DIM
    mask = row_inside[:, None] & (c < HEAD_DIM)[None, :]
    pointers = out_rows[:, None] + c[None, :]
    store(pointers, acc * share, quantise_ptr, mask, quantise_ptr is not None)
    if REST > 0:
        mask = row_inside[:, None] & e_inside[None, :]
        pointers = out_rows[:, None] + e[None, :]
        store(pointers, acc_rest * share, quantise_ptr, mask, quantise_ptr is not None)


@dataclass(frozen=True)
class _Strides:
    """Elements between groups (outer, inner) and tokens of queries, keys and result."""

    q_outer: int
    q_inner: int
    q_token: int
    kv_outer: int
    kv_inner: int
    kv_row: int
    out_outer: int
    out_inner: int
    out_token: int


def prefix_attention(
    target: KernelTarget,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    quantise: Tensor | None = None,
    out: Tensor | None = None,
    tiles: AttentionTiles | None = None,
) -> Tensor:
    """`Ops.prefix_attention`. tiles: instead of those that follow from the sizes."""
    require_contiguous(q=q, out=out)
    tokens, heads, head_dim = q.shape
    groups, capacity, _ = keys.shape
    if out is None:
        dtype = q.dtype if quantise is None else E4M3
        out = torch.empty((tokens, heads * head_dim), device=q.device, dtype=dtype)
    shared = heads // groups
    rows = tokens * shared
    t = tiles or prefix_tiles(rows, groups, head_dim, q.element_size(), target.limits)
    of_queries = (0, shared * head_dim, heads * head_dim)
    strides = _Strides(*of_queries, 0, group_stride(keys, values), head_dim, *of_queries)
    tensors, sizes = (q, keys, values, out), (capacity, rows, groups)
    _launch(target, tensors, quantise, length, sizes, groups, strides, shared, head_dim, t)
    return out


def vision_attention(
    target: KernelTarget,
    qkv: Tensor,
    heads: int,
    quantise: Tensor | None = None,
    out: Tensor | None = None,
    tiles: AttentionTiles | None = None,
) -> Tensor:
    """`Ops.vision_attention`. tiles: instead of those that follow from the sizes."""
    require_contiguous(qkv=qkv, out=out)
    images, tokens, triple = qkv.shape
    width = triple // 3
    head_dim = width // heads
    if out is None:
        dtype = qkv.dtype if quantise is None else E4M3
        out = torch.empty((images, tokens, width), device=qkv.device, dtype=dtype)
    element = qkv.element_size()
    t = tiles or prefix_tiles(tokens, images * heads, head_dim, element, target.limits)
    q, k, v = qkv.view(-1).split((width, width, qkv.numel() - 2 * width))
    one = (tokens * triple, head_dim, triple)
    strides = _Strides(*one, *one, tokens * width, head_dim, width)
    sizes = (tokens, tokens, heads)
    _launch(target, (q, k, v, out), quantise, None, sizes, images * heads, strides, 1, head_dim, t)
    return out


def _launch(
    target: KernelTarget,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    quantise: Tensor | None,
    length: Tensor | None,
    sizes: tuple[int, int, int],
    groups: int,
    strides: _Strides,
    shared_heads: int,
    head_dim: int,
    t: AttentionTiles,
) -> None:
    """sizes: capacity, rows of a group, inner groups."""
    main, rest = head_blocks(head_dim)
    grid = (ceil_div(sizes[1], t.block_m), groups, t.value_parts)
    target.launch(
        attention_kernel,
        grid,
        *tensors,
        quantise,
        length,
        *sizes,
        strides.q_outer,
        strides.q_token,
        strides.kv_outer,
        strides.kv_row,
        strides.out_outer,
        strides.out_token,
        math.log2(math.e) / math.sqrt(head_dim),
        Q_INNER=strides.q_inner,
        KV_INNER=strides.kv_inner,
        OUT_INNER=strides.out_inner,
        HEADS=shared_heads,
        HEAD_DIM=head_dim,
        MAIN=main,
        REST=rest,
        VALUES=main // t.value_parts,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        num_warps=t.warps,
        num_stages=t.stages,
        **target.overlap_options,
    )

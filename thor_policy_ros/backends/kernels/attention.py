"""Attention in which every query sees every valid key: of the prefix, the suffix and an image.

The query heads that share a kv head are more rows of one product, so K and V are read once for
all of them. Softmax runs along (flash attention); where rows alone keep few multiprocessors busy
the keys are split, and the block that arrives last joins the parts in a fixed order.
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
from thor_policy_ros.backends.kernels.rope import group_stride
from thor_policy_ros.backends.kernels.rounding import store
from thor_policy_ros.backends.kernels.small_gemm import arrive_last, tile_offsets
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import (
    AttentionTiles,
    ceil_div,
    head_blocks,
    prefix_tiles,
    suffix_tiles,
)


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    quantise_ptr,
    length_ptr,
    more_keys,
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
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A group is one kv head of one image or sequence: outer index and inner one. Row r of it is
    token r // HEADS and query head r % HEADS. scale: of the products, times log2(e).

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
    length = more_keys
    if length_ptr is not None:
        length += tl.load(length_ptr)
    length = tl.minimum(length, capacity)
    split = tl.program_id(2)
    part = tl.cdiv(tl.cdiv(length, BLOCK_N), SPLITS) * BLOCK_N
    begin = split * part
    end = tl.minimum(length, begin + part)

    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, MAIN), tl.float32)
    for first in range(begin, end, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        seen = key < end
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
        down = kv_rows[:, None] + d[None, :]
        v = tl.load(v_ptr + down, mask=seen[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        acc = tl.dot(weight, v, acc * shrink[:, None], input_precision="ieee")
        if REST > 0:
            down = kv_rows[:, None] + e[None, :]
            v_rest = tl.load(v_ptr + down, mask=seen[:, None] & e_inside[None, :], other=0.0)
            acc_rest = tl.dot(weight, v_rest, acc_rest * shrink[:, None], input_precision="ieee")

    last = True
    if SPLITS > 1:
        tl.static_assert(REST == 0, "split keys with a head of two blocks are not written")
        tile = group * tl.num_programs(0) + tl.program_id(0)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        parts_ptr = partial_ptr + tile * SPLITS * BLOCK_M * MAIN
        stats_ptr = partial_ptr + (tiles * MAIN + tile * 2) * SPLITS * BLOCK_M
        own_row = split * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(parts_ptr + split * BLOCK_M * MAIN + tile_offsets(BLOCK_M, MAIN), acc)
        tl.store(stats_ptr + own_row, highest)
        tl.store(stats_ptr + SPLITS * BLOCK_M + own_row, total)
        last = arrive_last(counter_ptr + tile, SPLITS)
        if last:
            acc, total = joined(parts_ptr, stats_ptr, SPLITS, BLOCK_M, MAIN)
    if last:
        share = 1.0 / total[:, None]
        out_rows = out_ptr + outer * out_outer + inner_index * OUT_INNER
        out_rows += (row // HEADS) * out_token + (row % HEADS) * HEAD_DIM
        mask = row_inside[:, None] & (d < HEAD_DIM)[None, :]
        pointers = out_rows[:, None] + d[None, :]
        store(pointers, acc * share, quantise_ptr, mask, quantise_ptr is not None)
        if REST > 0:
            mask = row_inside[:, None] & e_inside[None, :]
            pointers = out_rows[:, None] + e[None, :]
            store(pointers, acc_rest * share, quantise_ptr, mask, quantise_ptr is not None)


@triton.jit
def joined(parts_ptr, stats_ptr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, MAIN: tl.constexpr):
    """Sums over all keys from those of each part, and their softmax denominators."""
    row = tl.arange(0, BLOCK_M)
    highest = tl.load(stats_ptr + row, cache_modifier=".cg")  # the first part is never empty
    for split in tl.static_range(1, SPLITS):
        highest = tl.maximum(
            highest, tl.load(stats_ptr + split * BLOCK_M + row, cache_modifier=".cg")
        )
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, MAIN), tl.float32)
    offsets = tile_offsets(BLOCK_M, MAIN)
    for split in tl.static_range(SPLITS):
        own_row = split * BLOCK_M + row
        shrink = tl.exp2(tl.load(stats_ptr + own_row, cache_modifier=".cg") - highest)
        sums_ptr = stats_ptr + SPLITS * BLOCK_M + own_row
        total += tl.load(sums_ptr, cache_modifier=".cg") * shrink
        part = tl.load(parts_ptr + split * BLOCK_M * MAIN + offsets, cache_modifier=".cg")
        acc += part * shrink[:, None]
    return acc, total


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
    t = tiles or prefix_tiles(*_problem(q, keys), target.limits)
    return _grouped(target, q, keys, values, length, 0, quantise, out, t)


def suffix_attention(
    target: KernelTarget,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    out: Tensor | None = None,
    tiles: AttentionTiles | None = None,
) -> Tensor:
    """`Ops.suffix_attention`. tiles: instead of those that follow from the sizes."""
    t = tiles or suffix_tiles(*_problem(q, keys), target.limits)
    return _grouped(target, q, keys, values, length, q.shape[0], None, out, t)


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
    t = tiles or prefix_tiles(
        tokens, images * heads, head_dim, tokens, qkv.element_size(), target.limits
    )
    q, k, v = qkv.view(-1).split((width, width, qkv.numel() - 2 * width))
    one = (tokens * triple, head_dim, triple)
    strides = _Strides(*one, *one, tokens * width, head_dim, width)
    sizes = (tokens, tokens, tokens, heads)
    _launch(target, (q, k, v, out), quantise, None, sizes, images * heads, strides, 1, head_dim, t)
    return out


def _problem(q: Tensor, keys: Tensor) -> tuple[int, int, int, int, int]:
    """Rows of a group, groups, head_dim, keys, bytes of an element."""
    tokens, heads, head_dim = q.shape
    groups = keys.shape[0]
    return tokens * heads // groups, groups, head_dim, keys.shape[1], q.element_size()


def _grouped(
    target: KernelTarget,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    more_keys: int,
    quantise: Tensor | None,
    out: Tensor | None,
    tiles: AttentionTiles,
) -> Tensor:
    """q [M,heads,D] over the first length + more_keys rows of keys, values [G,R,D]."""
    require_contiguous(q=q, out=out)
    tokens, heads, head_dim = q.shape
    groups, capacity, _ = keys.shape
    if out is None:
        dtype = q.dtype if quantise is None else E4M3
        out = torch.empty((tokens, heads * head_dim), device=q.device, dtype=dtype)
    shared = heads // groups
    of_queries = (0, shared * head_dim, heads * head_dim)
    strides = _Strides(*of_queries, 0, group_stride(keys, values), head_dim, *of_queries)
    sizes = (more_keys, capacity, tokens * shared, groups)
    tensors = (q, keys, values, out)
    _launch(target, tensors, quantise, length, sizes, groups, strides, shared, head_dim, tiles)
    return out


def _launch(
    target: KernelTarget,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    quantise: Tensor | None,
    length: Tensor | None,
    sizes: tuple[int, int, int, int],
    groups: int,
    strides: _Strides,
    shared_heads: int,
    head_dim: int,
    t: AttentionTiles,
) -> None:
    """sizes: more_keys, capacity, rows of a group, inner groups."""
    main, rest = head_blocks(head_dim)
    grid = (ceil_div(sizes[2], t.block_m), groups, t.splits)
    blocks = grid[0] * groups
    scratch = blocks * t.splits * t.block_m * (main + 2) if t.splits > 1 else 0
    target.launch(
        attention_kernel,
        grid,
        *tensors,
        target.partials(scratch),
        target.arrivals(blocks if t.splits > 1 else 0),
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
        SPLITS=t.splits,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        num_warps=t.warps,
        num_stages=t.stages,
        **target.overlap_options,
    )

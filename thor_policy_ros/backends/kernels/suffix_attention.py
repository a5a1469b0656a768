"""Attention of the action tokens: few queries over a long prefix, its keys split between blocks.

A block has the queries of one head, a part of the keys and a part of the columns of V: so every
multiprocessor reads a little of K and V at once. The block that arrives last joins the parts of its
head and columns in a fixed order, so that results do not vary from run to run.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.small_gemm import arrive_last, tile_offsets
from thor_policy_ros.backends.kernels.target import (
    KernelTarget,
    group_stride,
    require_contiguous,
)
from thor_policy_ros.backends.kernels.tiles import (
    LEAST_ROWS,
    SuffixTiles,
    ceil_div,
    power_of_2,
    suffix_tiles,
)


@triton.jit
def load_keys(k_ptr, key, end, d, HEAD_DIM: tl.constexpr):
    """[DIM,BLOCK_N], zeros from `end` on."""
    mask = (key < end)[None, :] & (d < HEAD_DIM)[:, None]
    return tl.load(k_ptr + key[None, :] * HEAD_DIM + d[:, None], mask=mask, other=0.0)


@triton.jit
def load_values(v_ptr, key, end, column, HEAD_DIM: tl.constexpr):
    """[BLOCK_N,VALUES], zeros from `end` on."""
    mask = (key < end)[:, None] & (column < HEAD_DIM)[None, :]
    return tl.load(v_ptr + key[:, None] * HEAD_DIM + column[None, :], mask=mask, other=0.0)


@triton.jit
def attended_block(q, k, v, seen, highest, total, acc, scale):
    """Softmax that runs along: the sums with a block of keys added."""
    score = tl.dot(q, k, input_precision="ieee")
    score = tl.where(seen[None, :], score * scale, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(score, 1))
    weight = tl.exp2(score - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weight, 1)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_highest, total, acc


@triton.jit
def suffix_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    length_ptr,
    tokens,
    capacity,
    heads,
    heads_of_group,
    kv_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    VALUES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Heads and blocks of tokens, parts of the columns of V (VALUES each), parts of the keys.

    DIM: a power of 2 that holds HEAD_DIM. scale: of the products, times log2(e).
    """
    head = tl.program_id(0) % heads
    token = (tl.program_id(0) // heads) * BLOCK_M + tl.arange(0, BLOCK_M)
    token_inside = token < tokens
    kv_start = (head // heads_of_group).to(tl.int64) * kv_stride
    d = tl.arange(0, DIM)
    column = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    prefix = tl.load(length_ptr)
    length = tl.minimum(prefix + tokens, capacity)
    part = tl.cdiv(tl.cdiv(length, BLOCK_N), SPLITS) * BLOCK_N
    parts = tl.cdiv(length, part)
    split = tl.program_id(2)
    if split >= parts:
        return
    begin = split * part
    end = tl.minimum(length, begin + part)
    # The prefix's keys have long been there; the suffix's come from the kernel in front.
    key = begin + tl.arange(0, BLOCK_N)
    known = tl.minimum(end, prefix)
    k = load_keys(k_ptr + kv_start, key, known, d, HEAD_DIM)
    v = load_values(v_ptr + kv_start, key, known, column, HEAD_DIM)
    wait_for_previous(OVERLAP)
    q = tl.load(
        q_ptr + (token[:, None] * heads + head) * HEAD_DIM + d[None, :],
        mask=token_inside[:, None] & (d < HEAD_DIM)[None, :],
        other=0.0,
    )
    if tl.minimum(begin + BLOCK_N, end) > prefix:
        k = load_keys(k_ptr + kv_start, key, end, d, HEAD_DIM)
        v = load_values(v_ptr + kv_start, key, end, column, HEAD_DIM)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, VALUES), tl.float32)
    highest, total, acc = attended_block(q, k, v, key < end, highest, total, acc, scale)
    for first in range(begin + BLOCK_N, end, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        k = load_keys(k_ptr + kv_start, key, end, d, HEAD_DIM)
        v = load_values(v_ptr + kv_start, key, end, column, HEAD_DIM)
        highest, total, acc = attended_block(q, k, v, key < end, highest, total, acc, scale)

    last = True
    if SPLITS > 1:
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tiles = tl.num_programs(0) * tl.num_programs(1)
        parts_ptr = partial_ptr + tile * SPLITS * BLOCK_M * VALUES
        stats_ptr = partial_ptr + (tiles * VALUES + tile * 2) * SPLITS * BLOCK_M
        own_row = split * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = token_inside[:, None] & (column >= 0)[None, :]
        own_ptr = parts_ptr + split * BLOCK_M * VALUES
        tl.store(own_ptr + tile_offsets(BLOCK_M, VALUES), acc, mask=inside)
        tl.store(stats_ptr + own_row, highest)
        tl.store(stats_ptr + SPLITS * BLOCK_M + own_row, total)
        last = arrive_last(counter_ptr + tile, parts)
        if last:
            acc, total = joined(parts_ptr, stats_ptr, parts, inside, SPLITS, BLOCK_M, VALUES)
    if last:
        pointers = out_ptr + (token[:, None] * heads + head) * HEAD_DIM + column[None, :]
        mask = token_inside[:, None] & (column < HEAD_DIM)[None, :]
        tl.store(pointers, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def joined(
    parts_ptr,
    stats_ptr,
    parts,
    inside,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Sums over all keys from those of each part, and their softmax denominators.

    All parts are asked for before the first is used; those that are not there count nothing.
    """
    row = tl.arange(0, BLOCK_M)
    offsets = tile_offsets(BLOCK_M, VALUES)
    highest = tl.load(stats_ptr + row, cache_modifier=".cg")  # the first part is never empty
    for split in tl.static_range(1, SPLITS):
        there = row * 0 + split < parts
        of_part = tl.load(
            stats_ptr + split * BLOCK_M + row,
            mask=there,
            other=float("-inf"),
            cache_modifier=".cg",
        )
        highest = tl.maximum(highest, of_part)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, VALUES), tl.float32)
    for split in tl.static_range(SPLITS):
        there = row * 0 + split < parts
        own_row = stats_ptr + split * BLOCK_M + row
        of_part = tl.load(own_row, mask=there, other=float("-inf"), cache_modifier=".cg")
        sums = tl.load(own_row + SPLITS * BLOCK_M, mask=there, other=0.0, cache_modifier=".cg")
        shrink = tl.exp2(of_part - highest)
        total += sums * shrink
        part = tl.load(
            parts_ptr + split * BLOCK_M * VALUES + offsets,
            mask=inside & (split < parts),
            other=0.0,
            cache_modifier=".cg",
        )
        acc += part * shrink[:, None]
    return acc, total


def suffix_attention(
    target: KernelTarget,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    out: Tensor | None = None,
    tiles: SuffixTiles | None = None,
) -> Tensor:
    """`Ops.suffix_attention`. tiles: instead of those that follow from the sizes."""
    require_contiguous(q=q, out=out)
    tokens, heads, head_dim = q.shape
    groups, capacity, _ = keys.shape
    if out is None:
        out = torch.empty((tokens, heads * head_dim), device=q.device, dtype=q.dtype)
    element = q.element_size()
    t = tiles or suffix_tiles(tokens, heads, head_dim, capacity, element, target.limits)
    dim = power_of_2(max(head_dim, LEAST_ROWS))
    columns = dim // t.value_parts
    grid = (heads * ceil_div(tokens, t.block_m), t.value_parts, t.splits)
    blocks = grid[0] * t.value_parts if t.splits > 1 else 0
    target.launch(
        suffix_attention_kernel,
        grid,
        q,
        keys,
        values,
        out,
        target.partials(blocks * t.splits * t.block_m * (columns + 2)),
        target.arrivals(blocks),
        length,
        tokens,
        capacity,
        heads,
        heads // groups,
        group_stride(keys, values),
        math.log2(math.e) / math.sqrt(head_dim),
        HEAD_DIM=head_dim,
        DIM=dim,
        VALUES=columns,
        SPLITS=t.splits,
        BLOCK_M=t.block_m,
        BLOCK_N=t.block_n,
        num_warps=t.warps,
        num_stages=t.stages,
        **target.overlap_options,
    )
    return out

"""How much of a product or an attention one block computes, from sizes and the device's limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thor_policy_ros.backends.kernels.capability import DeviceLimits

LEAST_ROWS = 16
"""Rows of the matrix units' smallest product; fewer are padded with zeros."""
_RESERVE = 4 * 1024  # shared memory that the compiler takes for reductions and layouts


def power_of_2(least: int) -> int:
    """The smallest power of 2 that is not below `least` (1 or more)."""
    return 1 << (least - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def head_blocks(head_dim: int) -> tuple[int, int]:
    """A head as one or two powers of 2 that the matrix units take: 72 is 64 and 16, not 128."""
    main = 1 << (head_dim.bit_length() - 1)
    if main < LEAST_ROWS or main == head_dim:
        return max(main, LEAST_ROWS), 0
    return main, max(LEAST_ROWS, power_of_2(head_dim - main))


@dataclass(frozen=True)
class GemmTiles:
    """Of a product with few rows. splits: parts of the sum over K, added up in a fixed order.

    stages: depth of the software pipeline that streams the weights through shared memory.
    """

    block_m: int
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int

    def shared_memory(self, weight_bytes: int, activation_bytes: int) -> int:
        """Bytes of the pipeline's buffers, which the compiler's figure stays below."""
        rows = self.block_n * weight_bytes + self.block_m * activation_bytes
        return self.stages * rows * self.block_k + _RESERVE


@dataclass(frozen=True)
class AttentionTiles:
    """block_m: query rows (of all heads that share a kv head); block_n: keys at a time;
    splits: parts of the keys."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int

    def shared_memory(self, head_dim: int, element_bytes: int, limits: DeviceLimits) -> int:
        """Bytes of the pipeline's keys and values, and of the queries where they lie there too."""
        rows = 2 * self.stages * self.block_n
        if limits.multiplies_from_shared_memory:
            rows += self.block_m
        return rows * sum(head_blocks(head_dim)) * element_bytes + _RESERVE


def gemm_tiles(
    rows: int, columns: int, k: int, weight_bytes: int, activation_bytes: int, limits: DeviceLimits
) -> GemmTiles:
    """Narrow tiles, so that every multiprocessor streams a part of the weights.

    The sum over K is split where there are still fewer tiles than multiprocessors.
    """
    block_m = min(64, max(LEAST_ROWS, power_of_2(rows)))
    block_n = 16
    while block_n < 64 and ceil_div(columns, 2 * block_n) >= limits.multiprocessors * 0.9:
        block_n *= 2
    # 256 bytes of each row of the weight; more rows of activations leave registers for 128 values.
    block_k = 256 // weight_bytes if block_m == LEAST_ROWS else 128
    block_k = max(LEAST_ROWS, min(block_k, power_of_2(k)))
    tiles = ceil_div(rows, block_m) * ceil_div(columns, block_n)
    splits = max(1, min(round(limits.multiprocessors / tiles), ceil_div(k, 2 * block_k)))
    warps = 2 if block_n == 16 and block_m == LEAST_ROWS else 4
    for stages in (5, 4, 3, 2):
        tile = GemmTiles(block_m, block_n, block_k, splits, warps, stages)
        if tile.shared_memory(weight_bytes, activation_bytes) <= limits.shared_memory:
            return tile
    return GemmTiles(block_m, block_n, min(32, block_k), splits, warps, 1)


def suffix_tiles(
    rows: int, groups: int, head_dim: int, keys: int, element_bytes: int, limits: DeviceLimits
) -> AttentionTiles:
    """For few query rows: the keys are split, since rows alone keep few multiprocessors busy."""
    block_m = LEAST_ROWS if rows <= 128 else 64
    tiles = groups * ceil_div(rows, block_m)
    splits = max(1, min(8, limits.multiprocessors // tiles, ceil_div(keys, 64)))
    pipelines = ((32, 2), (32, 1), (16, 1))
    return _fitting(block_m, splits, pipelines, head_dim, element_bytes, limits)


def prefix_tiles(
    rows: int, groups: int, head_dim: int, keys: int, element_bytes: int, limits: DeviceLimits
) -> AttentionTiles:
    """For many query rows: 128 at a time where that still gives each multiprocessor a tile and
    the sums need not share registers with the operands, else 64."""
    block_m = min(128, max(LEAST_ROWS, power_of_2(rows)))
    enough = groups * ceil_div(rows, 128) >= limits.multiprocessors
    if not (enough and limits.multiplies_from_shared_memory):
        block_m = min(64, block_m)
    pipelines = ((64, 2), (32, 2), (64, 1), (32, 1), (16, 1))
    return _fitting(block_m, 1, pipelines, head_dim, element_bytes, limits)


def _fitting(
    block_m: int,
    splits: int,
    pipelines: Sequence[tuple[int, int]],
    head_dim: int,
    element_bytes: int,
    limits: DeviceLimits,
) -> AttentionTiles:
    """The first of `pipelines` (keys at a time, depth) that shared memory holds; fewer rows if
    none does."""
    for rows in (block_m, max(LEAST_ROWS, block_m // 2), LEAST_ROWS):
        # With 4 warps a tile of 64 rows spills registers, but for small heads in shared memory.
        small = rows == 64 and head_dim <= 128 and limits.multiplies_from_shared_memory
        warps = 4 if rows < 64 or small else 8
        for block_n, stages in pipelines:
            tile = AttentionTiles(rows, block_n, splits, warps, stages)
            if tile.shared_memory(head_dim, element_bytes, limits) <= limits.shared_memory:
                return tile
    raise ValueError(
        f"attention with head_dim {head_dim} wants more than the {limits.shared_memory} bytes"
        " of shared memory that a block may have here"
    )

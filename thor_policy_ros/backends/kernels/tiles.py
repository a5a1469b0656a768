"""How much of a product or an attention one block computes, from sizes and the device's limits."""

from __future__ import annotations

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
    """Of a product with few rows. block_k: of each warp's slice of K, a step of the loop takes
    warps * block_k. splits: parts of the sum over K, added up in a fixed order.

    stages: depth of the software pipeline that streams the weights through shared memory.
    """

    block_m: int
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int

    def shared_memory(self, weight_bytes: int, activation_bytes: int, steps: int = 2) -> int:
        """Bytes of the buffers of a sum of so many steps, which the compiler's figure stays
        below: the first step's operands, or those in the pipeline."""
        rows = self.block_n * weight_bytes + self.block_m * activation_bytes
        depth = max(1, min(self.stages, steps - 1))
        sums = 4 * self.warps * self.block_m * self.block_n
        return max(depth * rows * self.block_k * self.warps, sums) + _RESERVE


@dataclass(frozen=True)
class AttentionTiles:
    """block_m: query rows (of all heads that share a kv head); block_n: keys at a time;
    value_parts: of the columns of V, between blocks."""

    block_m: int
    block_n: int
    value_parts: int
    warps: int
    stages: int

    def shared_memory(self, head_dim: int, element_bytes: int, limits: DeviceLimits) -> int:
        """Bytes of the pipeline's keys and values, and of the queries where they lie there too."""
        main, rest = head_blocks(head_dim)
        columns = self.stages * self.block_n * (main + rest + main // self.value_parts + rest)
        if limits.multiplies_from_shared_memory:
            columns += self.block_m * (main + rest)
        return columns * element_bytes + _RESERVE


@dataclass(frozen=True)
class SuffixTiles:
    """block_m: tokens of one head; block_n: keys at a time; splits: parts of the keys;
    value_parts: of the columns of V, between blocks."""

    block_m: int
    block_n: int
    splits: int
    value_parts: int
    warps: int
    stages: int


def gemm_tiles(
    rows: int, columns: int, k: int, weight_bytes: int, activation_bytes: int, limits: DeviceLimits
) -> GemmTiles:
    """Tiles of one step, so that all of a block's weights are asked for before it waits for the
    kernel in front; of less than half the shared memory, so that the next kernel's blocks find
    room while these run. Measured in whole steps on an H200 (benchmarks/tune_step.py): tiles of
    half the width, or of two steps in all of the shared memory, took 20 to 30 % longer.
    """
    block_m = min(64, max(LEAST_ROWS, power_of_2(rows)))
    warps, slice_k = 4, 256
    splits = max(1, min(8, k // (warps * slice_k)))
    block_n = min(32, 16 * weight_bytes)
    while block_n < 32 and ceil_div(columns, block_n) * splits > 2.2 * limits.multiprocessors:
        block_n *= 2
    of_warp = power_of_2(ceil_div(ceil_div(k, splits), warps))
    block_k = max(LEAST_ROWS, min(slice_k, of_warp))
    while True:
        steps = ceil_div(ceil_div(k, splits), warps * block_k)
        tile = GemmTiles(block_m, block_n, block_k, splits, warps, min(3, max(2, steps)))
        needed = tile.shared_memory(weight_bytes, activation_bytes, steps)
        if needed <= 0.45 * limits.shared_memory or block_k == LEAST_ROWS:
            return tile
        block_k //= 2


def suffix_tiles(
    tokens: int, heads: int, head_dim: int, keys: int, element_bytes: int, limits: DeviceLimits
) -> SuffixTiles:
    """Keys are split until every multiprocessor has a block; the buffer's rows count, since how
    many of them hold keys is not known here. Few large parts are joined sooner than many."""
    block_m = min(64, max(LEAST_ROWS, power_of_2(tokens)))
    value_parts = 2 if head_dim >= 128 else 1
    row_bytes = head_dim * element_bytes * (value_parts + 1) // value_parts
    block_n = next(
        (n for n in (128, 64, 32) if n * row_bytes + _RESERVE <= 0.5 * limits.shared_memory), 16
    )
    blocks = heads * ceil_div(tokens, block_m) * value_parts
    wanted = ceil_div(limits.multiprocessors, blocks)
    splits = max(1, min(16, wanted, ceil_div(keys, block_n)))
    return SuffixTiles(block_m, block_n, splits, value_parts, 8 if block_n == 128 else 4, 1)


def prefix_tiles(
    rows: int, groups: int, head_dim: int, element_bytes: int, limits: DeviceLimits
) -> AttentionTiles:
    """For many query rows: 128 at a time where that still gives each multiprocessor a tile and
    the sums need not share registers with the operands, else 64."""
    block_m = min(128, max(LEAST_ROWS, power_of_2(rows)))
    enough = groups * ceil_div(rows, 128) >= limits.multiprocessors
    if not (enough and limits.multiplies_from_shared_memory):
        block_m = min(64, block_m)
    for rows_each in (block_m, max(LEAST_ROWS, block_m // 2), LEAST_ROWS):
        # 4 warps hold the sums of 64 rows where the operands stay in shared memory; 8 do elsewhere.
        few = rows_each == 64 and limits.multiplies_from_shared_memory
        warps = 4 if rows_each < 64 or few else 8
        widest = ((64, 3), (64, 2)) if head_dim <= 128 else ()
        for block_n, stages in (*widest, (32, 3), (32, 2), (32, 1), (16, 1)):
            tile = AttentionTiles(rows_each, block_n, 1, warps, stages)
            if tile.shared_memory(head_dim, element_bytes, limits) <= limits.shared_memory:
                return tile
    raise ValueError(
        f"attention with head_dim {head_dim} wants more than the {limits.shared_memory} bytes"
        " of shared memory that a block may have here"
    )

"""Better tiles for the kernels of a denoise step, found in the step itself on a CUDA device.

    PYTHONPATH=. python3 benchmarks/tune_step.py --out tiles.json

A kernel's time alone says little where kernels overlap: what is timed is one Euler step of all 18
layers in a CUDA graph. Candidates are compiled by many processes at once, then tried one operation
at a time with the others at their best so far, twice over. Attention of the prefix and of images is
timed alone. Every winner is compared with the reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernel_cases import HEAD_DIM, HEADS, HORIZON, ROWS, Case, all_cases
from kernel_step import SHAPES, DenoiseStep
from kernel_tiled import tiled_call
from torch import Tensor

from thor_policy_ros.backends.kernels import create_ops, folded_gemm, small_gemm, suffix_attention
from thor_policy_ros.backends.kernels.capability import DeviceLimits
from thor_policy_ros.backends.kernels.tiles import (
    AttentionTiles,
    GemmTiles,
    SuffixTiles,
    ceil_div,
    gemm_tiles,
    suffix_tiles,
)
from thor_policy_ros.backends.kernels.triton_ops import TritonOps
from thor_policy_ros.evaluation.cuda_timing import TimedCalls

ROOT = Path(__file__).parents[1]
STEP_OPS = ("qkv", "o", "gate_up", "down", "attention")
ALONE = ("prefix_attention", "prefix_attention_fp8_out", "vision_attention")


class TiledOps(TritonOps):
    """Operations of a denoise step with tiles by name; `tiles` may be changed between steps."""

    def __init__(self, device: torch.device, overlap: bool) -> None:
        super().__init__(device, overlap=overlap)
        self.tiles: dict[str, Any] = {}

    def expert_qkv(self, *args: Any, **options: Any) -> Tensor:
        return folded_gemm.expert_qkv(self.target, *args, tiles=self.tiles.get("qkv"))

    def expert_geglu(self, *args: Any, **options: Any) -> Tensor:
        return folded_gemm.expert_geglu(self.target, *args, tiles=self.tiles.get("gate_up"))

    def gated_linear(self, x: Tensor, y: Tensor, *args: Any) -> Any:
        name = "o" if y.shape[1] == SHAPES["o"][1] else "down"
        return small_gemm.gated_linear(self.target, x, y, *args, tiles=self.tiles.get(name))

    def suffix_attention(self, *args: Any, **options: Any) -> Tensor:
        tiles = self.tiles.get("attention")
        return suffix_attention.suffix_attention(self.target, *args, tiles=tiles)


def candidates(name: str, fp8: bool, limits: DeviceLimits) -> list[Any]:
    """Tiles worth a try, those that follow from the sizes first."""
    if name == "attention":
        first: Any = suffix_tiles(HORIZON, HEADS, HEAD_DIM, ROWS, 2, limits)
        return [first, *(tile for tile in _suffix_candidates() if tile != first)]
    columns, k = SHAPES[name]
    size = 1 if fp8 else 2
    first = gemm_tiles(HORIZON, columns, k, size, 2, limits)
    tried = _product_candidates(columns, k, size, limits)
    return [first, *(tile for tile in tried if tile != first)]


def _suffix_candidates() -> Iterator[SuffixTiles]:
    for parts, warps in itertools.product((1, 2, 4), (4, 8)):
        yield SuffixTiles(16, 64, 16, parts, warps, 1)
        yield SuffixTiles(16, 32, 16, parts, warps, 1)
    for parts in (1, 2):
        yield SuffixTiles(16, 128, 8, parts, 8, 1)


def _product_candidates(
    columns: int, k: int, size: int, limits: DeviceLimits
) -> Iterator[GemmTiles]:
    for block_n, splits, warps in itertools.product((8, 16, 32, 64), (1, 2, 4), (4, 8)):
        blocks = ceil_div(columns, block_n) * splits
        if not 0.45 * limits.multiprocessors < blocks < 2.6 * limits.multiprocessors:
            continue
        for steps in (1, 2, 4):
            block_k = k // (splits * warps * steps)
            tile = GemmTiles(16, block_n, block_k, splits, warps, min(3, max(2, steps)))
            fits = tile.shared_memory(size, 2, steps) <= limits.shared_memory
            if 32 <= block_k <= 512 and fits and block_k * block_n <= 8192:
                yield tile


def alone_candidates(limits: DeviceLimits, name: str) -> list[AttentionTiles]:
    """Of the prefix's or an image's attention."""
    wide = [(64, 32, 1, 4, 3), (64, 32, 1, 4, 4), (64, 32, 2, 4, 4), (128, 64, 2, 8, 3)]
    wide += [(64, 16, 1, 4, 4), (128, 32, 2, 8, 4), (64, 64, 2, 8, 2)]
    small = [(64, 32, 1, 4, 3), (64, 32, 1, 4, 4), (64, 16, 1, 4, 4), (64, 64, 1, 4, 3)]
    small += [(64, 64, 1, 4, 2), (128, 32, 1, 8, 3), (128, 64, 1, 8, 2), (64, 128, 1, 4, 2)]
    sizes = wide if name.startswith("prefix") else small
    head_dim = HEAD_DIM if name.startswith("prefix") else 72
    tiles = [AttentionTiles(*size) for size in sizes]
    return [t for t in tiles if t.shared_memory(head_dim, 2, limits) <= limits.shared_memory]


# --- compiling


def jobs(limits: DeviceLimits, kinds: Sequence[bool]) -> list[tuple[str, bool, Any]]:
    """Everything to compile: (operation, fp8, tiles)."""
    step = [(n, f, t) for f in kinds for n in STEP_OPS for t in candidates(n, f, limits)]
    return [*step, *((n, False, t) for n in ALONE for t in alone_candidates(limits, n))]


def compile_share(index: int, count: int, kinds: Sequence[bool]) -> None:
    """Launch every count-th candidate once: Triton keeps what it compiled on disk."""
    device = torch.device("cuda")
    ops = TiledOps(device, overlap=True)
    steps = {fp8: DenoiseStep(device, fp8, layers=1) for fp8 in kinds}
    cases = {c.name: c for c in all_cases() if c.name in ALONE}
    made = {name: case.make(device) for name, case in cases.items()}
    for name, fp8, tiles in jobs(ops.target.limits, kinds)[index::count]:
        try:
            if name in ALONE:
                tiled_call(name.removesuffix("_fp8_out"), ops.target, tiles)(made[name])
            else:
                ops.tiles = {name: tiles}
                steps[fp8].run(ops)
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - a candidate that does not fit is left out later
            print(name, tiles, f"{type(error).__name__}: {str(error)[:120]}", flush=True)


def compile_all(processes: int, kinds: Sequence[bool]) -> float:
    """Seconds it took."""
    begun = time.monotonic()
    command = [sys.executable, __file__, "--kinds", *(str(int(k)) for k in kinds), "--compile"]
    running = [
        subprocess.Popen([*command, str(i), str(processes)], stdout=subprocess.DEVNULL)
        for i in range(processes)
    ]
    for process in running:
        process.wait()
    return time.monotonic() - begun


# --- timing


def step_ms(made: DenoiseStep, ops: TritonOps, repeats: int = 8) -> float:
    """Least time of a step in a graph of one."""
    made.run(ops)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.run(ops)
    taken = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return sorted(taken)[1]


def tune(made: DenoiseStep, ops: TiledOps, fp8: bool, until: float) -> dict[str, Any]:
    """The best tiles of each operation in the step, and all that was tried."""
    tried: list[dict[str, Any]] = []
    best = {name: candidates(name, fp8, ops.target.limits)[0] for name in STEP_OPS}
    ops.tiles = dict(best)
    best_ms = first_ms = step_ms(made, ops)
    for name in ("gate_up", "down", "o", "attention", "qkv", *STEP_OPS):
        for tile in candidates(name, fp8, ops.target.limits):
            if time.monotonic() > until or tile == best[name]:
                continue
            ops.tiles = {**best, name: tile}
            try:
                taken = step_ms(made, ops)
            except Exception as error:  # noqa: BLE001 - recorded: the candidate does not run
                tried.append({"op": name, "tiles": str(tile), "error": str(error)[:100]})
                continue
            tried.append({"op": name, "tiles": dataclasses.astuple(tile), "ms": taken})
            if taken < best_ms:
                best_ms, best = taken, {**best, name: tile}
    ops.tiles = dict(best)
    return {
        "first_ms": first_ms,
        "best_ms": step_ms(made, ops, 20),
        "best": {name: dataclasses.asdict(tile) for name, tile in best.items()},
        "suggested": {
            n: dataclasses.asdict(candidates(n, fp8, ops.target.limits)[0]) for n in best
        },
        "out_of_time": time.monotonic() > until,
        "tried": tried,
    }


def checked(made: DenoiseStep, ops: TritonOps) -> dict[str, Any]:
    """Against the reference, and twenty times the same to the bit."""
    got = made.rerun(ops)
    wanted = made.rerun(create_ops("reference", ops.target.device))
    change = (wanted - made.start).norm()
    equal = all(torch.equal(made.rerun(ops), got) for _ in range(20))
    return {"relative_difference": float((got - wanted).norm() / change), "repeats": equal}


def without_overlap(made: DenoiseStep, device: torch.device, tiles: dict[str, Any]) -> Any:
    """The same tiles, each kernel behind the one before."""
    ops = TiledOps(device, overlap=False)
    ops.tiles = tiles
    return {"ms": step_ms(made, ops, 20), **checked(made, ops)}


def alone(ops: TiledOps, case: Case, until: float) -> dict[str, Any]:
    """Times of one attention by tiles, and the best one's error."""
    sets = [case.make(ops.target.device) for _ in range(6)]
    found: list[dict[str, Any]] = []
    for tiles in alone_candidates(ops.target.limits, case.name):
        if time.monotonic() > until:
            break
        call = tiled_call(case.name.removesuffix("_fp8_out"), ops.target, tiles)
        row: dict[str, Any] = {"tiles": dataclasses.astuple(tiles)}
        try:
            timed = TimedCalls([partial(call, i) for i in sets])
            row["ms"] = min(timed.graph_ms() for _ in range(5))
        except Exception as error:  # noqa: BLE001 - recorded: the candidate does not run
            row["error"] = f"{type(error).__name__}: {str(error)[:80]}"
        found.append(row)
    return {"tried": sorted(found, key=lambda row: row.get("ms", 1e9))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="of trying, in all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", type=int, nargs="+", default=[0, 1], help="0: bf16, 1: FP8")
    parser.add_argument("--compile", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    kinds = [bool(kind) for kind in arguments.kinds]
    if arguments.compile:
        compile_share(*arguments.compile, kinds)
        return 0
    device = torch.device("cuda")
    results: dict[str, Any] = {"command": " ".join(sys.argv)}
    results["compile_s"] = compile_all(arguments.processes, kinds)
    print(f"compiled in {results['compile_s']:.0f} s", flush=True)
    ops, begun = TiledOps(device, overlap=True), time.monotonic()
    share = arguments.seconds / (len(kinds) + 0.5)
    for index, fp8 in enumerate(kinds):
        made = DenoiseStep(device, fp8, layers=18)
        found = tune(made, ops, fp8, begun + (index + 1) * share)
        found |= checked(made, ops)
        found["without_overlap"] = without_overlap(made, device, dict(ops.tiles))
        results["fp8" if fp8 else "bf16"] = found
        print(json.dumps({k: v for k, v in found.items() if k != "tried"}), flush=True)
        write(arguments.out, results)
    ops.tiles = {}
    for case in (c for c in all_cases() if c.name in ALONE):
        results[case.name] = alone(ops, case, begun + arguments.seconds)
        print(case.name, results[case.name]["tried"][:4], flush=True)
        write(arguments.out, results)
    return 0


def write(out: Path | None, results: dict[str, Any]) -> None:
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

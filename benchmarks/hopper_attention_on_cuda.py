#!/usr/bin/env python3
"""The prefix's attention on a Hopper GPU: the kernel made for it and Triton's, in turns.

    python3 benchmarks/hopper_attention_on_cuda.py --out FILE

Each is checked against float64 first. A time is of one launch in a graph of 20, the least of a few
rounds' medians; with overlap each launch begins while the one before it ends, as in a frame.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels import Ops, create_ops
from thor_policy_ros.backends.kernels.hopper_attention import HopperAttention, PrefixCode

LAUNCHES = 20
ROUNDS, REPLAYS = 3, 15
PREFIXES = ((288, 280), (544, 532), (544, 544), (800, 788), (968, 968))
"""Tokens, and how many of them are valid."""
CODES = (PrefixCode(64, 6), PrefixCode(96, 4), PrefixCode(80, 4))

Attend = Callable[[], Tensor]


def captured(attend: Attend) -> torch.cuda.CUDAGraph:
    for _ in range(2):
        attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            attend()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end)) / LAUNCHES


def times_us(variants: dict[str, Attend]) -> dict[str, float]:
    """Of one launch of each, in turns."""
    graphs = {name: captured(attend) for name, attend in variants.items()}
    medians: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            medians[name].append(statistics.median(replay_us(graph) for _ in range(REPLAYS)))
    return {name: round(min(found), 2) for name, found in medians.items()}


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def prefix_rows(ops: dict[bool, Ops], hopper: dict[bool, HopperAttention], fp8: bool) -> list[Any]:
    rows = []
    exact, device = create_ops("reference", "cpu"), torch.device("cuda")
    for tokens, valid in PREFIXES:
        q = torch.randn(tokens, 8, 256, device=device).bfloat16()
        keys, values = torch.randn(2, 1, 978, 256, device=device).bfloat16()
        length = torch.full((1,), valid, dtype=torch.int32, device=device)
        quantise = torch.tensor(2.0**-8, device=device) if fp8 else None
        out = torch.empty(tokens, 2048, device=device, dtype=E4M3 if fp8 else torch.bfloat16)
        variants: dict[str, Attend] = {}
        for overlap in (False, True):
            end = " overlap" if overlap else ""
            variants["triton" + end] = partial(
                ops[overlap].prefix_attention, q, keys, values, length, quantise=quantise, out=out
            )
            for code in CODES if not fp8 else CODES[:1]:
                variants[f"hopper {code.keys}x{code.slots}{end}"] = partial(
                    hopper[overlap].prefix, q, keys, values, length, quantise, out, code
                )
        wanted = exact.prefix_attention(q.double(), keys.double(), values.double(), length)
        scale = 1.0 if quantise is None else float(quantise)
        errors = {}
        for name, attend in variants.items():
            out.view(torch.uint8).fill_(0x7F)
            errors[name] = error(attend().double() * scale, wanted)
        row = {"tokens": tokens, "valid": valid, "fp8": fp8, "error": errors}
        rows.append({**row, "us": times_us(variants)})
        print(tokens, valid, "fp8" if fp8 else "bf16", rows[-1]["us"], flush=True)
        print("   errors", {k: round(v, 5) for k, v in errors.items()}, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(1)
    ops = {overlap: create_ops("triton", device, overlap) for overlap in (False, True)}
    hopper = {overlap: HopperAttention(device, overlap) for overlap in (False, True)}
    result = {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "prefix": prefix_rows(ops, hopper, False),
    }
    result["prefix_e4m3"] = prefix_rows(ops, hopper, True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    worst = max(x for row in result["prefix"] for x in row["error"].values())
    return 0 if worst < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())

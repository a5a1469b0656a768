"""The pieces of the prefix on this GPU: dense, fused and in FP8, each with its cosine.

Single GEMM, MLP, QKV and gate-up fusion, and the whole prefix, at one number of tokens.
`graph` is the time on the device alone (a CUDA graph over enough sets of weights that none is
found in the cache), `eager` includes the host's launches. Variants take turns; `times faster`
is the median over rounds against the first row of a table, by graph. Cosine is with float32.
Weights and inputs are random: trained weights have outliers that these do not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from thor_policy_ros.backends.fp8 import device_matmul
from thor_policy_ros.backends.fp8_mlp import missing
from thor_policy_ros.evaluation.bench_subject import positive
from thor_policy_ros.evaluation.cuda_timing import TimedCalls
from thor_policy_ros.evaluation.model_costs import prefill_parts
from thor_policy_ros.evaluation.module_variants import TABLES, Copy, Setting, joined
from thor_policy_ros.evaluation.result_files import (
    command_line,
    figure_table,
    machine_of,
    versions,
    write_json,
)
from thor_policy_ros.model.config import GemmaConfig
from thor_policy_ros.model.named_configs import NAMED
from thor_policy_ros.runtime.engine_difference import cosine
from thor_policy_ros.types import BackendUnavailableError

CACHE_BYTES = 256e6
"""More than the L2 cache of any GPU so far; the weights of a measured sequence exceed it."""
MOST_COPIES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy bench modules`."""
    parser.add_argument("--config", choices=sorted(NAMED), default="pi05_libero")
    parser.add_argument(
        "--tokens", type=positive, default=544,
        help="prefix tokens (default: 544, two cameras and a prompt, as a multiple of 16)",
    )  # fmt: skip
    parser.add_argument(
        "--table", choices=tuple(TABLES), action="append", help="one alone; may be repeated"
    )
    parser.add_argument("--frames", type=positive, default=30, help="rounds (default: 30)")
    parser.add_argument("--json", metavar="FILE", help="write the result; - for stdout alone")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    report = modules_report(arguments)
    if arguments.json != "-":
        print_report(report, Console())
    write_json(report, arguments.json)
    return 0


@torch.inference_mode()
def modules_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command, machine, settings and the tables, as plain JSON data."""
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"bench modules wants a CUDA GPU; torch {torch.__version__} sees none"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    config = NAMED[arguments.config].model.language
    lacking = missing()
    setting = Setting(config, arguments.tokens, device, None if lacking else device_matmul)
    chosen = arguments.table or list(TABLES)
    return {
        "kind": "modules",
        "command": command_line(),
        "machine": machine_of(device),
        "versions": versions(),
        "settings": {
            "config": arguments.config,
            "tokens": arguments.tokens,
            "rounds": arguments.frames,
            "weights": "random",
        },
        "fp8_left_out": list(lacking),
        "tables": {
            name: measured_table(name, setting, arguments.frames)
            for name in track(chosen, "tables", transient=True)
        },
    }


def measured_table(name: str, setting: Setting, rounds: int) -> list[dict[str, Any]]:
    """One row for each variant. Frees what it allocated."""
    torch.manual_seed(0)
    flops, weights = table_costs(name, setting.config, setting.tokens)
    copies = [TABLES[name](setting) for _ in range(copies_for(weights))]
    cosines = cosines_of(copies[0])
    timed = {v: TimedCalls([c.variants[v] for c in copies]) for v in copies[0].variants}
    samples = [
        {v: (calls.graph_ms(), calls.eager_ms()) for v, calls in timed.items()}
        for _ in range(rounds)
    ]
    del copies, timed
    torch.cuda.empty_cache()
    return [table_row(v, samples, flops, cosines[v]) for v in samples[0]]


def copies_for(weights: int) -> int:
    """Sets of weights, one byte each at the least, that no cache holds together."""
    return min(math.ceil(CACHE_BYTES / weights), MOST_COPIES)


def table_costs(name: str, config: GemmaConfig, tokens: int) -> tuple[int, int]:
    """FLOPs of one run and the number of weights it reads."""
    if name == "whole prefix":
        parts = prefill_parts(config, tokens, prompt_tokens=0)
        return sum(p.count * p.flops for p in parts), sum(p.count * p.weights for p in parts)
    kv = 2 * config.num_kv_heads * config.head_dim
    weights = (
        config.width
        * {
            "single GEMM": config.mlp_dim,
            "MLP": 3 * config.mlp_dim,
            "QKV fusion": config.num_heads * config.head_dim + kv,
            "gate-up fusion": 2 * config.mlp_dim,
        }[name]
    )
    return 2 * tokens * weights, weights


def cosines_of(copy: Copy) -> dict[str, float]:
    """Of each variant's output with the float32 one."""
    reference = copy.reference.float().cpu().numpy()
    return {
        name: cosine(joined(variant()).float().cpu().numpy(), reference)
        for name, variant in copy.variants.items()
    }


def table_row(
    name: str, samples: list[dict[str, tuple[float, float]]], flops: int, alike: float
) -> dict[str, Any]:
    """Quantiles of a variant, its rate, and its speed against the first one's."""
    first = next(iter(samples[0]))
    graph, eager = (np.array([s[name][i] for s in samples]) for i in (0, 1))
    ratios = np.array([s[first][0] for s in samples]) / graph
    return {
        "variant": name,
        "graph_ms": _quantiles(graph),
        "eager_ms": _quantiles(eager),
        "tflops": flops / float(np.median(graph)) / 1e9,
        "times_faster": float(np.median(ratios)),
        "cosine": alike,
    }


def _quantiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The tables of a `modules_report`."""
    settings = report["settings"]
    console.print(
        f"{settings['config']} on {report['machine']['device']}: {settings['tokens']} tokens,"
        " medians in ms"
    )
    for reason in report["fp8_left_out"]:
        console.print(f"FP8 left out; it wants {reason}")
    for name, rows in report["tables"].items():
        table = figure_table((name,), ("graph", "eager", "TFLOP/s", "times faster", "cosine"))
        for row in rows:
            table.add_row(
                row["variant"],
                f"{row['graph_ms']['p50']:.4f}",
                f"{row['eager_ms']['p50']:.4f}",
                f"{row['tflops']:.0f}",
                f"{row['times_faster']:.2f}",
                f"{row['cosine']:.6f}",
            )
        console.print(table)
        console.print()

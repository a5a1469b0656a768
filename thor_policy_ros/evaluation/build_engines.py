"""Build the engines of a checkpoint ahead of time, into the engine cache.

A policy node that finds them there starts in seconds. `--target current` builds for this
machine's GPU; naming another, as sm_120, works where the package allows it (backend tensorrt with
tensorrt_rtx, without any GPU; torch_trt never). Each engine is built by a process of its own, one
at a time: at pi0.5's size the prefix takes 12 GB of memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.pytorch import DTYPES
from thor_policy_ros.backends.trt_builder import OPTIMIZATION_LEVELS
from thor_policy_ros.backends.trt_engines import Obtained, cache_of
from thor_policy_ros.backends.trt_module import CURRENT
from thor_policy_ros.backends.trt_parts import PARTS
from thor_policy_ros.evaluation.engine_plans import PLANS, Job
from thor_policy_ros.evaluation.result_files import (
    command_line,
    figure_table,
    machine_of,
    versions,
    write_json,
)
from thor_policy_ros.types import EngineOptions

DEFAULTS = EngineOptions()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy build`."""
    parser.add_argument(
        "--backend", choices=sorted(PLANS), default="tensorrt", help="default: %(default)s"
    )
    parser.add_argument(
        "--target", default=CURRENT, metavar="GPU",
        help="current, or a compute capability as sm_110, sm_120 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a folder with weights")
    parser.add_argument("--config", help="named policy, where the folder does not say")
    parser.add_argument(
        "--random-weights", action="store_true",
        help="instead of --checkpoint: random weights of --config's sizes, for figures alone",
    )  # fmt: skip
    parser.add_argument(
        "--parts", default="", metavar="PART[,...]", help=f"default: all of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--precision", choices=sorted(DTYPES), default="bfloat16", help="default: %(default)s"
    )
    parser.add_argument(
        "--level", type=int, choices=OPTIMIZATION_LEVELS, default=DEFAULTS.tensorrt_level,
        help="optimization level of the builder; above 2 it is said to crash on Jetson Thor"
        " (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--cache", default="", metavar="DIR", help="default: the user's cache")
    parser.add_argument(
        "--cache-limit", type=float, default=DEFAULTS.cache_limit_gib, metavar="GIB",
        help="the least recently used engines leave above it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rebuild", action="store_true", help="also what the cache holds already")
    parser.add_argument("--json", metavar="FILE", help="write the figures; - for stdout alone")


def run(arguments: argparse.Namespace) -> int:
    """Build, print, write."""
    report = build_report(arguments)
    if arguments.json != "-":
        Console().print(report_table(report))
        print(f"engines in {report['settings']['cache']}")
    write_json(report, arguments.json)
    return 0


def build_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command, machine, versions, settings, and each part's figures, as plain JSON data.

    Raises BackendUnavailableError naming what is missing to build for the target, before any
    weight is read, or what the builder said.
    """
    wanted = part_names(arguments.parts)
    options = EngineOptions(arguments.level, arguments.cache, arguments.cache_limit)
    cache = cache_of(options)
    plan = PLANS[arguments.backend](arguments, options)
    parts = wanted or list(plan.jobs)
    left_out = [name for name in parts if name not in plan.jobs]
    if left_out:
        raise ValueError(f"torch_trt.json leaves {', '.join(left_out)} in PyTorch: no engine of it")
    if arguments.rebuild:
        for name in parts:
            cache.discard(plan.jobs[name].key)
    begun_s = time.perf_counter()
    figures = {}
    with _progress(arguments.json == "-") as progress:
        for name in parts:
            row = progress.add_task(name, total=1.0, doing="")
            figures[name] = _build(plan.jobs[name], cache, progress, row)
    on_gpu = torch.cuda.is_available()
    return {
        "kind": f"{arguments.backend} engines",
        "command": command_line(),
        "machine": machine_of(torch.device("cuda" if on_gpu else "cpu")),
        "versions": versions(),
        "settings": {
            "config": arguments.config or str(arguments.checkpoint),
            "weights": "random" if arguments.random_weights else plan.weights.identity,
            "tensorrt": plan.made_by,
            "target": plan.capability,
            "gpu": plan.gpu,
            "precision": arguments.precision,
            "optimization_level": arguments.level,
            "cache": str(cache.folder),
        },
        "seconds": round(time.perf_counter() - begun_s, 2),
        "parts": figures,
    }


def part_names(text: str) -> list[str]:
    """Names between commas, each once, none for no text; ValueError for an unknown one."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"--parts wants one or more of: {', '.join(PARTS)}; got {text!r}")
    return names


def report_table(report: Mapping[str, Any]) -> Table:
    """Parts as rows."""
    settings = report["settings"]
    table = figure_table(
        ("part", "engine"),
        ("build s", "MB", "peak MB", "layers or operations", "buckets"),
        f"{settings['tensorrt']} for {settings['target']}, {settings['precision']},"
        f" level {settings['optimization_level']}",
    )
    for name, row in report["parts"].items():
        table.add_row(
            name,
            "built" if row["built"] else "found",
            _shown(row.get("build_seconds", row.get("convert_seconds"))),
            f"{row['bytes'] / 1e6:.1f}",
            _shown(row["peak_rss_bytes"] / 1e6 if "peak_rss_bytes" in row else None),
            str(row.get("layers", sum(row.get("operations", {}).values()) or "")),
            str(len(row["buckets"])) if "buckets" in row else "",
        )
    return table


def _build(job: Job, cache: EngineCache, progress: Progress, row: TaskID) -> dict[str, Any]:
    def say(doing: str, done: float) -> None:
        progress.update(row, doing=doing, completed=done)

    obtained = job.obtain(cache, say)
    progress.update(row, doing="built" if obtained.built else "found", completed=1.0)
    if obtained.replaced:
        progress.console.print(f"replaced an engine file: {obtained.replaced}")
    return _figures(obtained)


def _figures(obtained: Obtained) -> dict[str, Any]:
    return {
        "built": obtained.built,
        "file": obtained.path.name,
        "bytes": len(obtained.engine),
        "replaced": obtained.replaced,
        **obtained.report,
    }


def _progress(quiet: bool) -> Progress:
    """On stderr, so that --json - leaves stdout to the figures."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
        console=Console(stderr=True),
        disable=quiet,
    )


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.1f}"

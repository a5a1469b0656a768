"""`thor-policy train-demo`: expert data, training, checkpoint, then closed-loop evaluation.

Writes into --out: the checkpoint (at every report also under partial/), training.json with
recipe and curve, and evaluation.json with the success under each condition.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thor_policy_ros.evaluation.closed_loop import Conditions
from thor_policy_ros.evaluation.rollouts import (
    PolicyChoice,
    report_table,
    rollouts_report,
    run_rollouts,
)
from thor_policy_ros.model.named_configs import DEMO
from thor_policy_ros.training.demo_training import EPISODES, expert_data, train_demo
from thor_policy_ros.training.expert_data import ExpertData
from thor_policy_ros.training.flow_trainer import Recipe, Report

DEFAULTS = Recipe()
LATENCY_MS = 40.0
"""Of the evaluation: what the policy takes through ROS on two cores, and some."""
EVALUATED = {
    "right": Conditions(latency_ms=LATENCY_MS),
    "blank": Conditions(latency_ms=LATENCY_MS, instruction="blank"),
    "wrong": Conditions(latency_ms=LATENCY_MS, instruction="wrong"),
    "black": Conditions(latency_ms=LATENCY_MS, images="black"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=DEFAULTS.steps)
    parser.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size)
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of the expert")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of the expert's frames, recorded if absent (default: OUT/expert_data)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--prefix-rows",
        type=int,
        default=DEFAULTS.max_prefix_rows,
        help="train to continue up to so many given rows of a chunk: what rtc_mode trained wants",
    )
    parser.add_argument("--report-every", type=int, default=DEFAULTS.report_every, help="steps")
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="replay recorded kernels: a quarter less time on a GPU",
    )
    parser.add_argument(
        "--evaluate", type=int, default=200, help="episodes under each condition; 0 for none"
    )


def run(arguments: argparse.Namespace) -> int:
    """Make data, train, write the checkpoint, evaluate it."""
    console = Console()
    started = time.perf_counter()
    data = _recorded(arguments, console)
    seconds = time.perf_counter() - started
    console.print(f"{len(data)} frames of the expert in {seconds:.0f} s")
    training = _trained(arguments, data, console)
    training["data"] = {
        "episodes": arguments.episodes,
        "frames": len(data),
        "seed": arguments.seed,
        "seconds": round(seconds, 1),
    }
    _write(arguments.out / "training.json", training)
    if arguments.evaluate:
        _write(arguments.out / "evaluation.json", _evaluated(arguments, console))
    console.print(f"checkpoint in {arguments.out}")
    return 0


def _recorded(arguments: argparse.Namespace, console: Console) -> ExpertData:
    with _progress(console) as progress:
        task = progress.add_task("expert's episodes", total=arguments.episodes)
        return expert_data(
            arguments.data or arguments.out / "expert_data",
            arguments.episodes,
            arguments.seed,
            arguments.workers,
            DEMO.model.vision.image_size,
            lambda done, _: progress.update(task, completed=done),
        )


def _trained(arguments: argparse.Namespace, data: ExpertData, console: Console) -> dict[str, Any]:
    recipe = replace(
        DEFAULTS,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        max_prefix_rows=arguments.prefix_rows,
        report_every=arguments.report_every,
        cuda_graphs=arguments.cuda_graphs,
    )
    with _progress(console) as progress:
        task = progress.add_task("training", total=recipe.steps)

        def on_report(report: Report) -> None:
            progress.update(task, completed=report.step)
            console.print(_line(report))

        return train_demo(DEMO, recipe, data, arguments.device, arguments.out, on_report)


def _evaluated(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    policy = PolicyChoice(str(arguments.out))
    results = {}
    for name, conditions in EVALUATED.items():
        started = time.perf_counter()
        records = list(run_rollouts(policy, conditions, arguments.evaluate, arguments.workers))
        results[name] = rollouts_report(policy, conditions, records, time.perf_counter() - started)
        console.print(report_table(results[name]))
    return results


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _line(report: Report) -> str:
    return (
        f"step {report.step}: {report.seconds:.0f} s, flow {report.flow_loss:.4f}, pointing"
        f" {report.pointing_loss:.3f}, error near {report.near_error:.4f} far"
        f" {report.far_error:.4f}, suction wrong {report.suction_error:.2%}"
    )

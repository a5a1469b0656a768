"""Backends beside other projects' pi0.5: the same weights, inputs, noise and run; ratios printed.

A peer is installed in an environment of its own and named by that environment's Python; it runs
in a process of its own and takes turns with our backends, frame by frame. Append a mode of
torch.compile to run it compiled, such as lerobot:reduce-overhead. Every frame goes from
preprocessed arrays in host memory to actions there, timed by who computes it. Everyone's actions
are compared with those of float32 PyTorch and of the first backend.

    thor-policy bench compare --against lerobot,lerobot:reduce-overhead --backend fused_freq1 \\
        --peer-python lerobot=/opt/lerobot/bin/python --config pi05_libero --random-weights
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from thor_policy_ros.evaluation.bench_latency import speedup, stage_quantiles
from thor_policy_ros.evaluation.bench_subject import (
    add_subject_arguments,
    backend_names,
    device_and_dtype,
    opened_subject,
    positive,
)
from thor_policy_ros.evaluation.compare_entrants import (
    Entrant,
    float32_actions,
    opened_entrants,
    peer_choices,
)
from thor_policy_ros.evaluation.peer_client import peer_names
from thor_policy_ros.evaluation.result_files import (
    command_line,
    figure_table,
    machine_of,
    versions,
    write_json,
)
from thor_policy_ros.runtime.engine_difference import cosine
from thor_policy_ros.types import F32

WARM_UP_ROUNDS = 3
LOOK_EVERY_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy bench compare`."""
    add_subject_arguments(parser)
    parser.add_argument(
        "--against", required=True, metavar="PEER[:MODE][,...]",
        help=f"one or more of: {', '.join(peer_names())}; MODE: of torch.compile",
    )  # fmt: skip
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="PEER=PYTHON",
        help="the Python of the environment in which a peer is installed; once for each peer",
    )  # fmt: skip
    parser.add_argument("--frames", type=positive, default=30, help="of each (default: 30)")
    parser.add_argument(
        "--begin-when", type=Path, metavar="FILE",
        help="once everyone is ready, write FILE.ready and take no turn until FILE is there: lets"
        " other work go on while peers compile",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write."""
    report = compare_report(arguments)
    if arguments.json != "-":
        Console().print(report_table(report))
        print("\n".join(ratio_lines(report)))
    write_json(report, arguments.json)
    return 0


def compare_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everyone's quantiles, ratios and agreement, as plain JSON data."""
    choices = peer_choices(arguments.against, arguments.peer_python)
    device, dtype = device_and_dtype(arguments)
    ours, begin_when = backend_names(arguments), arguments.begin_when
    if begin_when is not None:
        ready_file(begin_when).unlink(missing_ok=True)
    with opened_subject(arguments) as subject:
        noise, exact = subject.noise(0), float32_actions(subject, arguments)
        with opened_entrants(choices, subject, arguments) as entrants:
            if begin_when is not None:
                wait_for(begin_when)
            take_turns(entrants, WARM_UP_ROUNDS)
            frames, actions = take_turns(entrants, arguments.frames)
    return {
        "kind": "compare",
        "command": command_line(),
        "machine": machine_of(device),
        "versions": versions(),
        "settings": {
            "config": subject.config_name,
            "weights": subject.weights,
            "cameras": subject.cameras,
            "prompt_tokens": subject.prompt_tokens,
            "num_steps": arguments.num_steps,
            "frames": arguments.frames,
            "dtype": str(dtype).removeprefix("torch."),
        },
        "entrants": [
            {
                "name": entrant.name,
                **entrant.facts,
                "frame_ms": stage_quantiles(rows)["frame"],
                "actions_cosine": cosine(made, actions[0]),
                "actions_max_abs_error": float(np.abs(made - actions[0]).max()),
                "float32": agreement(made, exact, noise),
            }
            for entrant, rows, made in zip(entrants, frames, actions, strict=True)
        ],
        "times_faster": times_faster(entrants, frames, ours),
    }


def take_turns(
    entrants: Sequence[Entrant], rounds: int
) -> tuple[list[list[dict[str, float]]], list[F32]]:
    """Each one's frames in ms, as rows of `frame`, and its last actions.

    A turn is two frames, of which the second counts: the first pays for whoever had the processor
    and its caches before. Every other round goes backwards, so that nobody always follows the
    same one.
    """
    frames: list[list[dict[str, float]]] = [[] for _ in entrants]
    actions: dict[int, F32] = {}
    for number in track(range(rounds), "rounds", transient=True):
        order = range(len(entrants))
        for i in order if number % 2 == 0 else reversed(order):
            entrants[i].frame()
            frame_ms, actions[i] = entrants[i].frame()
            frames[i].append({"frame": frame_ms})
    return frames, [actions[i] for i in range(len(entrants))]


def agreement(actions: F32, exact: F32, noise: F32) -> dict[str, float]:
    """With float32 PyTorch. flow: actions less noise, what the network itself contributed."""
    return {
        "actions_cosine": cosine(actions, exact),
        "flow_cosine": cosine(actions - noise, exact - noise),
        "max_abs_error": float(np.abs(actions - exact).max()),
    }


def ready_file(file: Path) -> Path:
    """What is written beside `file` when everyone is ready."""
    return file.with_name(f"{file.name}.ready")


def wait_for(file: Path) -> None:
    """Say that everyone is ready, and wait."""
    ready_file(file).touch()
    print(f"everyone is ready; waiting for {file}", file=sys.stderr, flush=True)
    while not file.exists():
        time.sleep(LOOK_EVERY_S)


def times_faster(
    entrants: Sequence[Entrant], frames: list[list[dict[str, float]]], ours: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """For each backend, for each other entrant: its time over the backend's, round by round."""
    rows = {entrant.name: row for entrant, row in zip(entrants, frames, strict=True)}
    return {
        name: {other: speedup(rows[other], rows[name], 1) for other in rows if other != name}
        for name in ours
    }


def report_table(report: Mapping[str, Any]) -> Table:
    """Entrants as rows, held against float32 PyTorch."""
    settings = report["settings"]
    table = figure_table(
        ("entrant",),
        ("p50 ms", "p99 ms", "ready s", "cosine", "flow cosine", "largest error"),
        f"{settings['config']} on {report['machine']['device']}, {settings['dtype']}:"
        f" {settings['cameras']} cameras, {settings['prompt_tokens']} tokens,"
        f" {settings['num_steps']} steps, {settings['frames']} frames",
    )
    for entry in report["entrants"]:
        table.add_row(
            entry["name"],
            f"{entry['frame_ms']['p50']:.2f}",
            f"{entry['frame_ms']['p99']:.2f}",
            f"{entry['ready_s']:.1f}",
            *(f"{entry['float32'][name]:.7f}" for name in ("actions_cosine", "flow_cosine")),
            f"{entry['float32']['max_abs_error']:.2g}",
        )
    return table


def ratio_lines(report: Mapping[str, Any]) -> list[str]:
    """How many times faster each backend is than everyone else, in words."""
    return [
        f"{ours} is {ratio['median']:.2f} times as fast as {other}"
        f" ({ratio['p05']:.2f} to {ratio['p95']:.2f} in the middle 90 % of rounds)"
        for ours, others in report["times_faster"].items()
        for other, ratio in others.items()
    ]

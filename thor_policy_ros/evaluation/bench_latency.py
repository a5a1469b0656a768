"""Latency of backends by stage, beside eager PyTorch in the same run.

Backends take turns frame by frame, so that whatever slows the machine down slows all of them,
and a speedup compares frames that ran next to each other. Stages are timed by CUDA events on
a GPU, the frame by the wall clock from the inputs in host memory to the actions there.
A backend that reuses its prefix does so here. For a pipelined one, `frame` is the time from
one chunk to the next. `floor` is how many rooflines a frame takes, where the device's peaks are
known. --sweep varies one dimension at a time instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.evaluation.bench_plot import plot_latency
from thor_policy_ros.evaluation.bench_subject import (
    REFERENCE,
    Subject,
    add_subject_arguments,
    backend_names,
    device_and_dtype,
    opened_subject,
    positive,
)
from thor_policy_ros.evaluation.floors import floors_ms, over_floor, peaks_of
from thor_policy_ros.evaluation.result_files import (
    command_line,
    figure_table,
    machine_of,
    versions,
    write_json,
)
from thor_policy_ros.runtime.latency import LatencyWindow
from thor_policy_ros.types import F32, Backend, ModelInputs, PrefixKV

WARM_UP_ROUNDS = 5
PREFIX_STAGES = ("vision", "prefill")


@dataclass
class Contender:
    """A backend that takes its turn on one frame, with the prefix of the turn before."""

    backend: Backend
    inputs: ModelInputs
    noise: F32
    num_steps: int
    turns: int = 0
    prefix: PrefixKV | None = None

    def frame(self) -> bool:
        """One frame as the policy runner would drive it; whether a prefix was made in it."""
        refill = self.turns % self.backend.spec.reuse_every == 0
        self.turns += 1
        current = self.prefix
        if refill:
            self.prefix = self.backend.prefill(self.inputs, 0.0)
        if current is None or not self.backend.spec.pipelined:
            current = self.prefix
        assert current is not None
        self.backend.denoise(current, self.noise, self.num_steps)
        return refill


def measure(
    contenders: list[Contender], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[dict[str, float]]]:
    """For each contender its frames' stage times and `frame`, in ms; a reused prefix has none.

    Every other round runs in reverse order, so that nobody always follows the same one.
    clock: seconds.
    """
    frames: list[list[dict[str, float]]] = [[] for _ in contenders]
    for number in track(range(rounds), "rounds", transient=True):
        order = range(len(contenders))
        for i in order if number % 2 == 0 else reversed(order):
            frames[i].append(_timed_frame(contenders[i], clock))
    return frames


def _timed_frame(contender: Contender, clock: Callable[[], float]) -> dict[str, float]:
    begun = clock()
    refilled = contender.frame()
    frame_ms = (clock() - begun) * 1e3
    stages = contender.backend.stage_times_ms()
    kept = {k: v for k, v in stages.items() if refilled or k not in PREFIX_STAGES}
    return {**kept, "frame": frame_ms}


def speedup(
    reference: list[dict[str, float]], frames: list[dict[str, float]], group: int
) -> dict[str, float]:
    """How many times faster than the reference: over groups of neighbouring frames, the
    median ratio and the range of its middle 90 %. group: the period of prefix reuse."""

    def sums(rows: list[dict[str, float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        whole = len(rows) // group * group
        return np.array([r["frame"] for r in rows[:whole]]).reshape(-1, group).sum(1)

    low, median, high = np.quantile(sums(reference) / sums(frames), [0.05, 0.5, 0.95])
    return {"median": float(median), "p05": float(low), "p95": float(high)}


def stage_quantiles(frames: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Stage -> p50, p95, p99 in ms and the number of frames that had it."""
    window = LatencyWindow(len(frames))
    for frame in frames:
        window.add(frame)
    return {name: asdict(quantiles) for name, quantiles in window.quantiles().items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy bench latency`."""
    add_subject_arguments(parser)
    parser.add_argument("--frames", type=positive, default=50, help="of each (default: 50)")
    parser.add_argument(
        "--sweep", type=_dimensions, metavar="X[,Y]",
        help="how frames grow with: cameras, steps, horizon, prompt_len",
    )  # fmt: skip
    parser.add_argument("--peaks", metavar="DEVICE", help="of `thor-policy roofline`, for floors")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the stages (PNG, SVG)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write, draw."""
    if arguments.sweep:
        return _run_sweep(arguments)
    report = latency_report(arguments)
    if arguments.json != "-":
        Console().print(report_table(report))
    write_json(report, arguments.json)
    if arguments.plot:
        plot_latency(report, arguments.plot)
    return 0


def _dimensions(text: str) -> list[str]:
    from thor_policy_ros.evaluation.bench_sweep import dimensions

    return dimensions(text)


def _run_sweep(arguments: argparse.Namespace) -> int:
    from thor_policy_ros.evaluation.bench_sweep import sweep, sweep_table

    names = list(dict.fromkeys([REFERENCE, *backend_names(arguments)]))
    device, dtype = device_and_dtype(arguments)
    machine = machine_of(device)
    with opened_subject(arguments) as subject:
        rows = sweep(arguments, subject, names, device, dtype, machine["device"])
        report = {
            "kind": "sweep",
            "command": command_line(),
            "machine": machine,
            "versions": versions(),
            "settings": _settings(arguments, subject),
            "reference": REFERENCE,
            "points": rows,
        }
    if arguments.json != "-":
        Console().print(sweep_table(report))
    write_json(report, arguments.json)
    return 0


def latency_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command, machine, versions, settings and each backend's quantiles, as plain JSON data."""
    names = list(dict.fromkeys([REFERENCE, *backend_names(arguments)]))
    device, dtype = device_and_dtype(arguments)
    with opened_subject(arguments) as subject, ExitStack() as opened:
        contenders: list[Contender] = []
        frame = (subject.inputs(0), subject.noise(0), arguments.num_steps)
        for name in names:
            backend = create_backend(name, subject.folder, subject.config, device, dtype)
            opened.callback(backend.close)
            backend.warmup()
            contenders.append(Contender(backend, *frame))
        measure(contenders, WARM_UP_ROUNDS)
        frames = measure(contenders, arguments.frames)
    machine = machine_of(device)
    return {
        "kind": "latency",
        "command": command_line(),
        "machine": machine,
        "versions": versions(),
        "settings": _settings(arguments, subject),
        "sizes": asdict(subject.config),
        "reference": REFERENCE,
        "backends": [
            {
                **_entry(contender, str(dtype), rows, frames[0]),
                "floor_ms": _floors(arguments, subject, contender, machine, str(dtype)),
            }
            for contender, rows in zip(contenders, frames, strict=True)
        ],
    }


def _settings(arguments: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    return {
        "config": subject.config_name,
        "weights": subject.weights,
        "cameras": subject.cameras,
        "prompt_tokens": subject.prompt_tokens,
        "prefix_tokens": subject.cameras * subject.config.vision.num_tokens + subject.prompt_tokens,
        "num_steps": arguments.num_steps,
        "frames": arguments.frames,
        "warm_up_frames": WARM_UP_ROUNDS,
    }


def _floors(
    arguments: argparse.Namespace,
    subject: Subject,
    contender: Contender,
    machine: Mapping[str, Any],
    dtype: str,
) -> dict[str, float]:
    """By stage; {} where the device's peaks are not known."""
    counts = {
        "cameras": subject.cameras,
        "prompt_tokens": subject.prompt_tokens,
        "num_steps": arguments.num_steps,
    }
    peaks, mlp = peaks_of(machine["device"], arguments.peaks), contender.backend.spec.mlp
    return floors_ms(subject.config, counts, peaks, dtype.removeprefix("torch."), mlp)


def _entry(
    contender: Contender,
    dtype: str,
    rows: list[dict[str, float]],
    reference: list[dict[str, float]],
) -> dict[str, Any]:
    spec = contender.backend.spec
    return {
        "backend": asdict(spec),
        "dtype": dtype.removeprefix("torch."),
        "notes": list(getattr(contender.backend, "notes", ())),
        "warnings": list(getattr(contender.backend, "warnings", ())),
        "stages_ms": stage_quantiles(rows),
        "speedup": speedup(reference, rows, min(spec.reuse_every, len(rows))),
    }


def report_table(report: Mapping[str, Any]) -> Table:
    """Backends as rows, stages as columns."""
    settings = report["settings"]
    stages = ("vision", "prefill", "denoise")
    with_floor = any(entry.get("floor_ms") for entry in report["backends"])
    table = figure_table(
        ("backend",),
        (*stages, "frame", "p95", "p99", "times faster", *(["floors"] if with_floor else [])),
        f"{settings['config']} on {report['machine']['device']}, "
        f"{report['backends'][0]['dtype']}, medians in ms: "
        f"{settings['cameras']} cameras, {settings['prefix_tokens']} prefix tokens, "
        f"{settings['num_steps']} steps, {settings['frames']} frames",
    )
    for entry in report["backends"]:
        ms = entry["stages_ms"]
        floors = over_floor(ms["frame"]["p50"], entry.get("floor_ms", {}))
        table.add_row(
            entry["backend"]["name"],
            *(f"{ms[stage]['p50']:.2f}" for stage in stages),
            *(f"{ms['frame'][q]:.2f}" for q in ("p50", "p95", "p99")),
            f"{entry['speedup']['median']:.2f}",
            *([floors] if with_floor else []),
        )
    return table

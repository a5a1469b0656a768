"""How the cost of a frame grows, one dimension at a time: `bench latency --sweep cameras,...`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from rich.table import Table

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.evaluation.bench_latency import (
    WARM_UP_ROUNDS,
    Contender,
    measure,
    speedup,
    stage_quantiles,
)
from thor_policy_ros.evaluation.bench_subject import Subject
from thor_policy_ros.evaluation.floors import floors_ms, over_floor, peaks_of
from thor_policy_ros.evaluation.result_files import figure_table
from thor_policy_ros.types import Backend

DIMENSIONS = ("cameras", "steps", "horizon", "prompt_len")
STEPS, HORIZONS = (1, 2, 3, 5, 10), (5, 10, 25, 50)


class Point(NamedTuple):
    """What one cell was measured with; `varied` is the dimension of its row."""

    varied: str
    cameras: int
    steps: int
    horizon: int
    prompt_len: int

    @property
    def value(self) -> int:
        return int(getattr(self, self.varied))


def dimensions(text: str) -> list[str]:
    """Of --sweep; ArgumentTypeError lists the choices for any other."""
    asked = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [name for name in asked if name not in DIMENSIONS]
    if wrong or not asked:
        raise argparse.ArgumentTypeError(f"wanted some of {', '.join(DIMENSIONS)}, got {text!r}")
    return list(dict.fromkeys(asked))


def points(asked: list[str], subject: Subject, num_steps: int) -> Iterator[Point]:
    """Every value of each dimension in turn, the others as the options say."""
    config = subject.config
    usual = Point("", subject.cameras, num_steps, config.action_horizon, subject.prompt_tokens)
    most = config.max_token_len
    values = {
        "cameras": range(1, config.num_cameras + 1),
        "steps": STEPS,
        "horizon": HORIZONS,
        "prompt_len": sorted({max(most // 8, 1), max(most // 4, 1), max(most // 2, 1), most}),
    }
    for name in asked:
        for value in values[name]:
            yield usual._replace(varied=name, **{name: value})


def sweep(
    arguments: argparse.Namespace,
    subject: Subject,
    names: list[str],
    device: torch.device,
    dtype: torch.dtype,
    device_name: str,
) -> list[dict[str, Any]]:
    """One row for each point: frames of each backend, and its floor. Backends are loaded once
    for each horizon: only that changes their buffers."""
    rows, peaks = [], peaks_of(device_name, arguments.peaks)
    by_horizon: dict[int, list[Point]] = {}
    for point in points(arguments.sweep, subject, arguments.num_steps):
        by_horizon.setdefault(point.horizon, []).append(point)
    for horizon, same in by_horizon.items():
        config = dataclasses.replace(subject.config, action_horizon=horizon)
        sized = dataclasses.replace(subject, config=config)
        with ExitStack() as opened:
            backends = []
            for name in names:
                backend = create_backend(name, subject.folder, config, device, dtype)
                opened.callback(backend.close)
                backend.warmup()
                backends.append(backend)
            for point in same:
                row = _measured(point, backends, sized, arguments.frames)
                for entry in row["backends"].values():
                    counts = {
                        "cameras": point.cameras,
                        "prompt_tokens": point.prompt_len,
                        "num_steps": point.steps,
                    }
                    kind = str(dtype).removeprefix("torch.")
                    floors = floors_ms(config, counts, peaks, kind, entry.pop("mlp"))
                    entry["floor_ms"] = floors.get("frame")
                rows.append(row)
    return rows


def _measured(
    point: Point, backends: list[Backend], subject: Subject, frames: int
) -> dict[str, Any]:
    varied = dataclasses.replace(subject, cameras=point.cameras, prompt_tokens=point.prompt_len)
    frame = varied.inputs(0), varied.noise(0), point.steps
    contenders = [Contender(backend, *frame) for backend in backends]
    measure(contenders, WARM_UP_ROUNDS)
    rows = measure(contenders, frames)
    return {
        **point._asdict(),
        "value": point.value,
        "backends": {
            c.backend.spec.name: {
                "frame_ms": stage_quantiles(found)["frame"],
                "speedup": speedup(rows[0], found, min(c.backend.spec.reuse_every, len(found))),
                "mlp": c.backend.spec.mlp,
            }
            for c, found in zip(contenders, rows, strict=True)
        },
    }


def sweep_table(report: Mapping[str, Any]) -> Table:
    """Points as rows; each backend's median and how many floors it is."""
    names = list(report["points"][0]["backends"])
    table = figure_table(("varied",), ("value", *names), "frame p50 in ms, and over the floor")
    for row in report["points"]:
        cells = []
        for name in names:
            entry = row["backends"][name]
            ms = entry["frame_ms"]["p50"]
            cells.append(f"{ms:.2f} {over_floor(ms, {'frame': entry['floor_ms']})}".strip())
        table.add_row(row["varied"], str(row["value"]), *cells)
    return table

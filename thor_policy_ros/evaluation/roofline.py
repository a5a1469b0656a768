"""The least time that a device needs for one frame of pi0.5, and what bounds it.

Each part of the network takes at least the longer of FLOPs / rate and bytes / bandwidth; a
stage takes at least the sum of its parts. No engine reaches the floor (kernels do not fill
the device, launches take time), and only what a cache keeps between two parts can pass it.
GFLOP, MB and FLOP/B are of one run of a part, ms of all its runs.
With --dtype fp8 or nvfp4 the linear layers are quantised; attention stays bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thor_policy_ros.evaluation.device_peaks import (
    DEVICES,
    WEIGHT_BYTES,
    DevicePeaks,
    find_device,
)
from thor_policy_ros.evaluation.model_costs import FrameCosts, Part, frame_costs
from thor_policy_ros.evaluation.result_files import figure_table, write_json
from thor_policy_ros.model.config import Pi05Config, model_config_from_json
from thor_policy_ros.model.named_configs import NAMED

DEFAULTS = {"config": "pi05_libero", "cameras": 2, "prompt_tokens": 20, "num_steps": 10}


@dataclass(frozen=True)
class Floor:
    """The least time of one part: `compute_ms` and `memory_ms` of one run; all runs take
    `count` times the longer of the two."""

    stage: str
    name: str
    count: int
    gflops: float
    mbytes: float
    compute_ms: float
    memory_ms: float

    @property
    def limit(self) -> str:
        return "compute" if self.compute_ms > self.memory_ms else "memory"

    @property
    def floor_ms(self) -> float:
        return self.count * max(self.compute_ms, self.memory_ms)

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.gflops * 1e3 / self.mbytes


def part_floors(costs: FrameCosts, device: DevicePeaks, dtype: str) -> list[Floor]:
    """One row for each part of each stage, in the order of a frame."""
    stages = (
        ("vision", costs.vision),
        ("prefill", costs.prefill),
        ("denoise step", costs.denoise_step),
    )
    return [_floor(stage, part, device, dtype) for stage, parts in stages for part in parts]


def stage_floors_ms(floors: list[Floor], num_steps: int) -> dict[str, float]:
    """vision, prefill, denoise step, denoise (all steps) and total."""
    stages = ("vision", "prefill", "denoise step")
    ms = {stage: sum(f.floor_ms for f in floors if f.stage == stage) for stage in stages}
    ms["denoise"] = num_steps * ms["denoise step"]
    ms["total"] = ms["vision"] + ms["prefill"] + ms["denoise"]
    return ms


def _floor(stage: str, part: Part, device: DevicePeaks, dtype: str) -> Floor:
    moved = part.weights * WEIGHT_BYTES[dtype] + part.other_bytes
    seconds = part.linear_flops / device.rate(dtype) + part.other_flops / device.rate("bf16")
    return Floor(
        stage=stage,
        name=part.name,
        count=part.count,
        gflops=part.flops / 1e9,
        mbytes=moved / 1e6,
        compute_ms=seconds * 1e3,
        memory_ms=moved / device.bandwidth_gb_s / 1e6,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy roofline`."""
    parser.add_argument(
        "--device", required=True, help=f"{', '.join(DEVICES)}, or a YAML file of peaks"
    )
    parser.add_argument("--config", help="named policy (default: pi05_libero)")
    parser.add_argument("--cameras", type=int, help="present cameras (default: 2)")
    parser.add_argument("--prompt-tokens", type=int, help="without padding (default: 20)")
    parser.add_argument("--num-steps", type=int, help="denoise steps (default: 10)")
    parser.add_argument("--dtype", choices=tuple(WEIGHT_BYTES), default="bf16")
    parser.add_argument(
        "--bench", type=Path, metavar="FILE",
        help="result of `bench latency` to hold against the floor; brings its own settings",
    )  # fmt: skip
    parser.add_argument(
        "--project", type=Path, metavar="FILE",
        help="result of `bench latency` on another device, to be projected to this one",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the result; - for stdout alone")


def run(arguments: argparse.Namespace) -> int:
    """Print parts, stages and, with a bench file, measured over floor."""
    report = roofline_report(arguments)
    if arguments.json != "-":
        print_report(report, Console())
    write_json(report, arguments.json)
    return 0


def roofline_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Device, settings, parts, stage floors and measured ratios, as plain JSON data."""
    device = find_device(arguments.device)
    bench = _read_bench(arguments.bench)
    settings = _settings(arguments, bench)
    config = _sizes(settings["config"], bench)
    counts = (settings["cameras"], settings["prompt_tokens"], settings["num_steps"])
    costs = frame_costs(config, *counts)
    floors = part_floors(costs, device, arguments.dtype)
    stages = stage_floors_ms(floors, costs.num_steps)
    return {
        **_projection(arguments, device, costs),
        "kind": "roofline",
        "device": asdict(device),
        "dtype": arguments.dtype,
        "settings": {**settings, "prefix_tokens": costs.prefix_tokens},
        "parts": [
            {**asdict(f), "intensity": f.intensity, "limit": f.limit, "floor_ms": f.floor_ms}
            for f in floors
        ],
        "floor_ms": stages,
        "measured": [] if bench is None else measured_over_floor(bench, stages),
    }


def _projection(
    arguments: argparse.Namespace, device: DevicePeaks, costs: FrameCosts
) -> dict[str, Any]:
    """For a device with published figures, or where kernels measured elsewhere are given."""
    from thor_policy_ros.evaluation.projection import PUBLISHED, projection

    elsewhere = _read_bench(arguments.project)
    if elsewhere is None and arguments.device not in PUBLISHED:
        return {}
    return {"projection": projection(arguments.device, device, costs, elsewhere)}


def measured_over_floor(
    bench: Mapping[str, Any], floor_ms: Mapping[str, float]
) -> list[dict[str, Any]]:
    """For each backend of a `bench latency` result: p50 of each stage, and how many floors."""
    rows = []
    for entry in bench["backends"]:
        measured = {
            ("total" if stage == "frame" else stage): quantiles["p50"]
            for stage, quantiles in entry["stages_ms"].items()
        }
        rows.append(
            {
                "backend": entry["backend"]["name"],
                "dtype": entry["dtype"],
                "device": bench["machine"]["device"],
                "p50_ms": measured,
                "over_floor": {stage: ms / floor_ms[stage] for stage, ms in measured.items()},
            }
        )
    return rows


def _read_bench(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or data.get("kind") != "latency":
        raise ValueError(f"{path} is not a result of `thor-policy bench latency --json FILE`")
    return data


def _settings(arguments: argparse.Namespace, bench: Mapping[str, Any] | None) -> dict[str, Any]:
    """The asked-for settings; those of the bench file where there is one."""
    asked = {name: getattr(arguments, name) for name in DEFAULTS}
    if bench is None:
        return {name: DEFAULTS[name] if x is None else x for name, x in asked.items()}
    measured = {name: bench["settings"][name] for name in DEFAULTS}
    different = [n for n, x in asked.items() if x is not None and x != measured[n]]
    if different:
        raise ValueError(
            f"the bench file was measured with {measured}, which differs in {different} from"
            " what was asked for; leave these options out, or measure with them"
        )
    return measured


def _sizes(named: str, bench: Mapping[str, Any] | None) -> Pi05Config:
    if bench is not None:
        return model_config_from_json(bench["sizes"], "sizes of the bench file")
    if named not in NAMED:
        raise ValueError(f"unknown config {named!r}; choose one of: {', '.join(sorted(NAMED))}")
    return NAMED[named].model


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The tables of a `roofline_report`."""
    settings, device = report["settings"], report["device"]
    console.print(
        f"{device['name']}: {device['tflops'][report['dtype']]:g} TFLOP/s in {report['dtype']},"
        f" {device['bandwidth_gb_s']:g} GB/s ({device['source']})"
    )
    console.print(
        f"{settings['config']}: {settings['cameras']} cameras and {settings['prompt_tokens']}"
        f" prompt tokens make {settings['prefix_tokens']} prefix tokens;"
        f" {settings['num_steps']} steps"
    )
    console.print(_parts_table(report["parts"]))
    console.print(_stages_table(report))
    if "projection" in report:
        _print_projection(report["projection"], console)


def _print_projection(result: Mapping[str, Any], console: Console) -> None:
    from thor_policy_ros.evaluation.projection import projection_table

    console.print(projection_table(result))
    console.print("A projection, not a measurement. It assumes that:")
    for number, text in enumerate(result["assumptions"], 1):
        console.print(f"  {number}. {text}")


def _parts_table(parts: list[dict[str, Any]]) -> Table:
    figures = ("runs", "GFLOP", "MB", "FLOP/B", "limit", "ms")
    table = figure_table(("stage", "part"), figures)
    for p in parts:
        each = (f"{p['gflops']:.2f}", f"{p['mbytes']:.1f}", f"{p['intensity']:.0f}")
        ms = f"{p['floor_ms']:.3f}"
        table.add_row(p["stage"], p["name"], str(p["count"]), *each, p["limit"], ms)
    return table


def _stages_table(report: Mapping[str, Any]) -> Table:
    """The floor of each stage; beside a bench file a line for each backend that it measured."""
    measured, floors = report["measured"], report["floor_ms"]
    if not measured:
        table = figure_table(("stage",), ("floor ms",))
        for stage, floor in floors.items():
            table.add_row(stage, f"{floor:.3f}")
        return table
    stages = [name for name in floors if any(name in row["p50_ms"] for row in measured)]
    table = figure_table(("",), stages, "p50 in ms, and how many floors it is")
    table.add_row("floor", *(f"{floors[stage]:.3f}" for stage in stages))
    for row in measured:
        cells = [
            f"{row['p50_ms'][stage]:.2f} ({row['over_floor'][stage]:.1f}x)"
            if stage in row["p50_ms"]
            else ""
            for stage in stages
        ]
        table.add_row(f"{row['backend']}\n{row['dtype']}", *cells)
    return table

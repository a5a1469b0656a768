"""Compare a checkpoint with outputs recorded from the original code.

DIR holds model.safetensors (openpi's or LeRobot's key layout), config.json with the sizes,
and what was recorded: inputs.safetensors and outputs.safetensors. Every recorded array is
computed by the full path of the model (padding and masked cameras included); actions and
the prefix's keys and values also by the pytorch backend, which drops both. Rows of padding
and masked cameras carry no meaning and are not compared. Exit status 0 only if every array
is within the tolerance.

The sizes are those of --config, else of config.json in DIR, else of config.json in the
--recorded folder, else they are told from the shapes of the weights (possible for the
published vision tower).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from thor_policy_ros.backends.pytorch import DTYPES, checked_device
from thor_policy_ros.evaluation.comparison import Row, compare
from thor_policy_ros.evaluation.recording import load_recording
from thor_policy_ros.evaluation.sizes import find_sizes
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.weight_files import read_contents

TOLERANCE = 2e-4


@dataclass(frozen=True)
class Report:
    """One run of the comparison."""

    folder: str
    recorded: str
    layout: str
    sizes_from: str
    device: str
    dtype: str
    tolerance: float
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.within for row in self.rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy parity`."""
    parser.add_argument("dir", type=Path, metavar="DIR", help="checkpoint folder")
    parser.add_argument(
        "--recorded", type=Path, metavar="DIR", help="folder of the recorded files (default: DIR)"
    )
    parser.add_argument(
        "--config", help="sizes: a JSON file, or a named policy such as pi05_libero"
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="largest error (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; 0 if every array is within the tolerance, else 1."""
    report = make_report(arguments)
    if arguments.json:
        print(json.dumps({**asdict(report), "passed": report.passed}, indent=2))
    else:
        _print_table(report)
    return 0 if report.passed else 1


def make_report(arguments: argparse.Namespace) -> Report:
    """Load what the arguments name and compare."""
    device = checked_device(arguments.device)
    recording = load_recording(arguments.recorded or arguments.dir)
    sizes = find_sizes(arguments.dir, recording, arguments.config)
    model = load_pi05(arguments.dir, sizes.config, device, DTYPES[arguments.dtype])
    return Report(
        folder=str(arguments.dir),
        recorded=str(recording.folder),
        layout=read_contents(arguments.dir).layout,
        sizes_from=sizes.source,
        device=str(device),
        dtype=arguments.dtype,
        tolerance=arguments.tolerance,
        rows=tuple(compare(model, recording, arguments.tolerance)),
    )


def _print_table(report: Report) -> None:
    console = Console()
    console.print(f"{report.folder} ({report.layout} keys) against {report.recorded}")
    console.print(f"{report.device}, {report.dtype}; sizes from {report.sizes_from}")
    table = Table(Column("array", no_wrap=True), "shape", "max abs error", "cosine", "")
    for row in report.rows:
        shape = "x".join(str(n) for n in row.shape)
        verdict = "[green]ok[/]" if row.within else "[red bold]FAR[/]"
        error, cosine = f"{row.max_abs_error:.2e}", f"{row.cosine:.9f}"
        table.add_row(row.name, shape, error, cosine, verdict)
    console.print(table)
    within = sum(row.within for row in report.rows)
    colour = "green" if report.passed else "red"
    console.print(
        f"[{colour}]parity: {within} of {len(report.rows)} arrays within {report.tolerance:g}[/]"
    )

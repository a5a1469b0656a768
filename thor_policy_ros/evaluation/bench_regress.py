"""Fail where a backend has become slower, against a stored result of `bench latency`.

Ratios are compared, how many times faster than eager PyTorch in the same run, for milliseconds
change with the machine's load and clocks. The stored run's settings are measured again, or --now
names a run that was stored already. A ratio below the stored one by more than the noise band
fails; the band is 15 % unless --noise says otherwise. Exit status 1 for a regression.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thor_policy_ros.evaluation import bench_latency
from thor_policy_ros.evaluation.result_files import figure_table, write_json

NOISE = 0.15
"""Two runs of the same code on a busy machine of two cores differed by up to 12 %."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy bench regress`."""
    parser.add_argument("base", type=Path, metavar="BASE.json")
    parser.add_argument("--now", type=Path, metavar="FILE", help="a stored run, not a new one")
    parser.add_argument("--noise", type=float, default=NOISE, help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--frames", type=int, help="default: as many as the stored run")
    parser.add_argument(
        "--other-machine", action="store_true", help="compare although the device is another"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result; - for stdout alone")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; 1 if anything is slower than the band allows."""
    if not 0 <= arguments.noise < 1:
        raise ValueError(f"--noise wants 0 to below 1, got {arguments.noise}")
    base = read_latency(arguments.base)
    now = read_latency(arguments.now) if arguments.now else measured_again(base, arguments)
    check_comparable(base, now, arguments.other_machine)
    rows = compared(base, now, arguments.noise)
    slower = [row["backend"] for row in rows if row["regressed"]]
    result = {"kind": "regress", "noise": arguments.noise, "rows": rows, "now": now}
    if arguments.json != "-":
        Console().print(table_of(rows))
        print(f"slower than the band of {arguments.noise:.0%}: {', '.join(slower) or 'none'}")
    write_json(result, arguments.json)
    return int(bool(slower))


def read_latency(path: Path) -> dict[str, Any]:
    """A result of `bench latency`; ValueError for anything else."""
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or data.get("kind") != "latency":
        raise ValueError(f"{path} is not a result of `thor-policy bench latency --json FILE`")
    return data


def measured_again(base: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """A new run with the settings of the stored one."""
    parser = argparse.ArgumentParser()
    bench_latency.add_arguments(parser)
    return bench_latency.latency_report(parser.parse_args(options_of(base, arguments)))


def options_of(base: Mapping[str, Any], arguments: argparse.Namespace) -> list[str]:
    """What was asked of the stored run, as options of `bench latency`."""
    settings, names = base["settings"], [e["backend"]["name"] for e in base["backends"]]
    if settings["weights"] == "random":
        options = ["--random-weights", "--config", settings["config"]]
    else:
        options = ["--checkpoint", settings["weights"]]
    for name in ("cameras", "prompt_tokens", "num_steps"):
        options += [f"--{name.replace('_', '-')}", str(settings[name])]
    options += ["--backend", ",".join(names), "--dtype", base["backends"][0]["dtype"]]
    options += ["--frames", str(arguments.frames or settings["frames"])]
    return options + (["--device", arguments.device] if arguments.device else [])


def check_comparable(base: Mapping[str, Any], now: Mapping[str, Any], other_machine: bool) -> None:
    """ValueError for runs of other settings, or of another device unless that is wanted."""
    ignored = {"frames", "warm_up_frames"}
    different = [
        name
        for name, value in base["settings"].items()
        if name not in ignored and now["settings"].get(name) != value
    ]
    if different:
        raise ValueError(f"the two runs differ in {', '.join(different)}: nothing to compare")
    devices = base["machine"]["device"], now["machine"]["device"]
    if devices[0] != devices[1] and not other_machine:
        raise ValueError(
            f"the stored run is of {devices[0]}, this one of {devices[1]}; ratios differ between"
            " devices: store a run of this one, or give --other-machine"
        )


def compared(base: Mapping[str, Any], now: Mapping[str, Any], noise: float) -> list[dict[str, Any]]:
    """One row for each backend of the stored run but the reference; a backend that is gone is a
    regression."""
    ratios = {e["backend"]["name"]: e["speedup"]["median"] for e in now["backends"]}
    rows = []
    for entry in base["backends"]:
        name, was = entry["backend"]["name"], entry["speedup"]["median"]
        if name == base["reference"]:
            continue
        ratio = ratios.get(name)
        rows.append(
            {
                "backend": name,
                "base": was,
                "now": ratio,
                "change": None if ratio is None else ratio / was - 1,
                "regressed": ratio is None or ratio < was * (1 - noise),
            }
        )
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    """How many times faster than eager PyTorch, then and now."""
    table = figure_table(("backend",), ("stored", "now", "change", ""))
    for row in rows:
        now = "absent" if row["now"] is None else f"{row['now']:.2f}x"
        change = "" if row["change"] is None else f"{row['change']:+.1%}"
        verdict = "slower" if row["regressed"] else ""
        table.add_row(row["backend"], f"{row['base']:.2f}x", now, change, verdict)
    return table

"""Results as JSON and tables, and what every result says of itself: command, machine, versions."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rich.table import Table

from thor_policy_ros.model.whole_file import write_whole

PACKAGES = ("torch", "numpy", "tensorrt", "torch_tensorrt", "tensorrt_rtx")


def write_json(result: Mapping[str, Any], destination: str | None) -> None:
    """To a file (its folder is made), to stdout for '-', nowhere for None."""
    text = json.dumps(result, indent=2)
    if destination == "-":
        print(text)
    elif destination:
        path = Path(destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text + "\n")


def command_line() -> str:
    """What was typed, with the name of the program for its path."""
    return shlex.join(["thor-policy", *sys.argv[1:]])


def machine_of(device: torch.device) -> dict[str, Any]:
    """Name and capability of a GPU, or architecture and thread count of a CPU."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return {"device": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}"}
    return {"device": f"cpu ({platform.machine()})", "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Python, CUDA, and those of PACKAGES that are installed."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def figure_table(text: Sequence[str], figures: Sequence[str], title: str = "") -> Table:
    """Columns of text, then columns of right-aligned figures; none is cut short, without rules
    so that 80 columns hold it."""
    from rich.table import Column, Table  # here: benchmarks/ write results without it

    left = [Column(name, no_wrap=True) for name in text]
    right = [Column(name, justify="right", no_wrap=True) for name in figures]
    return Table(
        *left, *right, title=title or None, title_justify="left", box=None, padding=(0, 2, 0, 0)
    )

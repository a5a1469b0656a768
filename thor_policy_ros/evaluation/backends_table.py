"""List the backends: what each one is, and whether it can run here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from thor_policy_ros.backends.registry import BACKENDS, ENGINES, availability
from thor_policy_ros.backends.trt_engines import default_cache_folder
from thor_policy_ros.evaluation.backend_files import CheckpointFiles, read_files
from thor_policy_ros.types import BackendSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy backends`."""
    parser.add_argument(
        "--checkpoint", type=Path, help="folder; also say which files it lacks: scales, engines"
    )
    parser.add_argument("--policy-config", help="named policy, where the checkpoint does not say")
    parser.add_argument("--engine-cache", type=Path, help="folder of built engines")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the registry, with what each backend lacks on this machine."""
    files = None
    if arguments.checkpoint is not None:
        cache = arguments.engine_cache or default_cache_folder()
        files = read_files(arguments.checkpoint, arguments.policy_config, cache.expanduser())
    rows = [row_of(spec, files) for spec in BACKENDS.values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows, Console())
    return 0


def row_of(spec: BackendSpec, files: CheckpointFiles | None = None) -> dict[str, Any]:
    """The fields of the spec, its engine's summary, `available`, `missing` and `notes`."""
    missing = list(availability(spec.name))
    if files is not None:
        missing += files.missing(spec)
    return {
        **asdict(spec),
        "summary": ENGINES[spec.engine].summary,
        "available": not missing,
        "missing": missing,
        "notes": [] if files is None else list(files.notes(spec)),
    }


def print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """A line for each backend, then what the engines are and what is missing here; names and
    reasons are never cut, and 80 columns hold the lines.
    """
    console.print(table_of(rows))
    for engine in dict.fromkeys(row["engine"] for row in rows):
        console.print()
        _print_indented(console, 0, f"{engine}: {ENGINES[engine].summary}")
        for missing, names in _names_by(rows, engine, "missing").items():
            _print_indented(console, 2, f"{', '.join(names)} cannot run here; missing:")
            for thing in missing:
                _print_indented(console, 4, thing)
        for notes, names in _names_by(rows, engine, "notes").items():
            _print_indented(console, 2, f"{', '.join(names)}:")
            for note in notes:
                _print_indented(console, 4, note)


def _print_indented(console: Console, spaces: int, text: str) -> None:
    """Its later lines stand under its first."""
    console.print(Padding(Text(text), (0, 0, 0, spaces), expand=False))


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a backend."""
    names = ("backend", "here", "engine", "MLP", "prefix")
    columns = [Column(name, no_wrap=True) for name in names]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        here = "yes" if row["available"] else "no"
        table.add_row(row["name"], here, row["engine"], _mlp(row), _prefix(row))
    return table


def _names_by(
    rows: Sequence[dict[str, Any]], engine: str, field: str
) -> dict[tuple[str, ...], list[str]]:
    """What is missing or noted -> the engine's backends that it is said of."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row["engine"] == engine and row[field]:
            found.setdefault(tuple(row[field]), []).append(row["name"])
    return found


def _mlp(row: dict[str, Any]) -> str:
    return f"{row['mlp']}, {row['fp8_scale']}" if row["fp8_scale"] else str(row["mlp"])


def _prefix(row: dict[str, Any]) -> str:
    if row["pipelined"]:
        return "a frame ahead"
    return "every tick" if row["reuse_every"] == 1 else f"every {row['reuse_every']} ticks"

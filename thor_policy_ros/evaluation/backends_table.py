"""List the backends: what each one is, and whether it can run here."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from thor_policy_ros.backends.registry import BACKENDS, ENGINES, availability
from thor_policy_ros.types import BackendSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy backends`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the registry, with what each backend lacks on this machine."""
    rows = [row_of(spec) for spec in BACKENDS.values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        Console().print(table_of(rows))
    return 0


def row_of(spec: BackendSpec) -> dict[str, Any]:
    """The fields of the spec, its engine's summary, `available` and `missing`."""
    missing = availability(spec.name)
    return {
        **asdict(spec),
        "summary": ENGINES[spec.engine].summary,
        "available": not missing,
        "missing": list(missing),
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """One line per backend, for people; names and reasons are never cut."""
    table = Table("backend", "engine", "MLP", "prefix", "here", "what it is", show_lines=True)
    table.columns[0].no_wrap = True
    for row in rows:
        here = "yes" if row["available"] else "no, missing: " + "; ".join(row["missing"])
        table.add_row(row["name"], row["engine"], _mlp(row), _prefix(row), here, row["summary"])
    return table


def _mlp(row: dict[str, Any]) -> str:
    return f"{row['mlp']}, {row['fp8_scale']} scales" if row["fp8_scale"] else str(row["mlp"])


def _prefix(row: dict[str, Any]) -> str:
    if row["pipelined"]:
        return "one frame ahead"
    return "every tick" if row["reuse_every"] == 1 else f"every {row['reuse_every']} ticks"

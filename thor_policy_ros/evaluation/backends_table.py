"""List the backends that this version has."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from thor_policy_ros.backends.registry import BACKENDS, ENGINES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy backends`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print the registry."""
    if arguments.json:
        print(json.dumps([asdict(spec) for spec in BACKENDS.values()], indent=2))
        return 0
    table = Table("backend", "engine", "MLP", "prefix refilled", "what it is")
    for spec in BACKENDS.values():
        every = "every tick" if spec.reuse_every == 1 else f"every {spec.reuse_every} ticks"
        table.add_row(spec.name, spec.engine, spec.mlp, every, ENGINES[spec.engine].summary)
    Console().print(table)
    return 0

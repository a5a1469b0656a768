"""Check this machine: ROS, GPU, memory, clocks, inputs, checkpoint, tokenizer, engines.

Each line is fine, a note, or wrong with what to type. The exit status is 1 if something that is
needed is wrong. The running policy node says which inputs and checkpoint are meant; without one,
--config and --checkpoint do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import thor_policy_ros
from thor_policy_ros.backends.registry import BACKENDS, availability, spec_of
from thor_policy_ros.backends.trt_engines import default_cache_folder
from thor_policy_ros.evaluation.checks import FINE, NOTE, WRONG, Check, exit_status
from thor_policy_ros.evaluation.file_checks import check_engines, check_files, read_cache
from thor_policy_ros.evaluation.graph_checks import check_graph, no_graph
from thor_policy_ros.evaluation.machine_checks import check_backend, check_machine
from thor_policy_ros.evaluation.machine_facts import MachineFacts, read_machine

MARKS = {FINE: ("fine", "green"), NOTE: ("note", "yellow"), WRONG: ("WRONG", "bold red")}
STARTUP_S = 30.0
ON_A_CPU = ("pytorch", "fused", "openpi_remote")
PACKAGE = Path(thor_policy_ros.__file__).resolve().parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy doctor`."""
    parser.add_argument("--checkpoint", type=Path, help="folder; default: the policy node's")
    parser.add_argument("--policy-config", default="", help="named policy or JSON file")
    parser.add_argument("--tokenizer", type=Path, help="default: the checkpoint's own")
    parser.add_argument("--backend", help="that is wanted; default: the policy node's, or pytorch")
    parser.add_argument("--engine-cache", type=Path, help="folder of built engines")
    parser.add_argument("--config", type=Path, help="parameter file of the policy node")
    parser.add_argument("--node", default="/policy_node", help="full name of the policy node")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to hear the inputs")
    parser.add_argument("--no-ros", action="store_true", help="leave the ROS graph out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Checks, prints, and returns 1 if something needed is wrong."""
    checks = gather(arguments)
    if arguments.json:
        print(json.dumps({"checks": [asdict(one) for one in checks]}, indent=2))
    else:
        print_checks(checks, Console())
    return exit_status(checks)


def gather(arguments: argparse.Namespace) -> list[Check]:
    """Every line, in the order shown."""
    facts, failure = (None, "") if arguments.no_ros else graph_facts(arguments)
    checks = check_graph(facts) if facts is not None else []
    if failure:
        checks.append(no_graph(failure))
    parameters = facts["parameters"] if facts is not None else {}
    backend = arguments.backend or parameters.get("backend") or "pytorch"
    engine = spec_of(backend).engine
    machine = read_machine()
    checks += check_machine(machine, engine not in ON_A_CPU)
    able = [name for name in BACKENDS if not availability(name)]
    checks.append(check_backend(backend, availability(backend), able))
    checkpoint = arguments.checkpoint or _path(parameters.get("checkpoint"))
    tokenizer = arguments.tokenizer or _path(parameters.get("tokenizer"))
    config = arguments.policy_config or parameters.get("policy_config") or ""
    checks += check_files(checkpoint, config, tokenizer)
    cache = arguments.engine_cache or _path(parameters.get("engine_cache_dir"))
    checks.append(_engines(cache or default_cache_folder(), engine, machine))
    return checks


def _engines(folder: Path, engine: str, machine: MachineFacts) -> Check:
    folder = folder.expanduser()
    keys, faults = read_cache(folder)
    major, minor = machine.gpus[0].capability if machine.gpus else (0, 0)
    return check_engines(folder, keys, faults, engine, f"sm_{major}{minor}" if major else None)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def graph_facts(arguments: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """What the graph shows, from a process of its own, or why it could not be seen."""
    if find_spec("rclpy") is None:
        return None, "rclpy cannot be imported: ROS 2 is not installed, or not sourced"
    command = [sys.executable, "-m", "thor_policy_ros.ros.graph_facts"]
    command += ["--node", arguments.node, "--seconds", str(arguments.seconds)]
    config = arguments.config or _default_config()
    if config is not None:
        command += ["--config", str(config)]
    limit_s = arguments.seconds + STARTUP_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None, f"the ROS graph gave no answer within {limit_s:g} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return None, f"the ROS graph could not be read: {lines[-1]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, ""


def _default_config() -> Path | None:
    """policy.yaml of the source tree, or of the installed package."""
    places = [PACKAGE.parent, *(parent / "share" / PACKAGE.name for parent in PACKAGE.parents)]
    found = (place / "config" / "policy.yaml" for place in places)
    return next((path for path in found if path.is_file()), None)


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """A line each; what is to be done stands under what is wrong. Nothing is cut."""
    table = Table(Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"), box=None,
                  show_header=False, padding=(0, 1, 0, 0))  # fmt: skip
    for check in checks:
        word, style = MARKS[check.level]
        text = Text(check.says)
        if check.do:
            text.append(f"\n-> {check.do}", style="bold")
        table.add_row(Text(word, style=style), check.subject, text)
    console.print(table)
    count = {level: sum(check.level == level for check in checks) for level in MARKS}
    console.print(f"{count[FINE]} fine, {count[NOTE]} to look at, {count[WRONG]} wrong")

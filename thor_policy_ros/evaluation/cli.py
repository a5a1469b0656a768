"""`thor-policy COMMAND ...`: one row per command; only the chosen one is imported.

A command's module defines `add_arguments(parser)` and `run(arguments) -> exit status`. What a
user got wrong is raised as ValueError, OSError or BackendUnavailableError and printed as one
message; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import thor_policy_ros
from thor_policy_ros.types import BackendUnavailableError

PROGRAM = "thor-policy"
USER_ERRORS = (ValueError, OSError, BackendUnavailableError)


class Command(NamedTuple):
    """One row: what is typed, the module that does it, and one line of help."""

    name: str
    module: str
    help: str


COMMANDS = (
    Command(
        "doctor",
        "thor_policy_ros.evaluation.doctor",
        "check this machine: ROS, GPU, inputs, checkpoint, clocks; say what to type",
    ),
    Command(
        "monitor",
        "thor_policy_ros.evaluation.monitor",
        "watch a running policy node in the terminal: stages, rates, decisions, faults",
    ),
    Command(
        "parity",
        "thor_policy_ros.evaluation.parity",
        "compare a checkpoint with outputs recorded from the original code",
    ),
    Command(
        "backends",
        "thor_policy_ros.evaluation.backends_table",
        "list the backends, what each one is, and whether it runs here",
    ),
    Command(
        "verify",
        "thor_policy_ros.evaluation.verify",
        "check that a backend is the policy, against the float32 reference",
    ),
    Command(
        "build",
        "thor_policy_ros.evaluation.build_engines",
        "build a checkpoint's TensorRT engines ahead of time",
    ),
    Command(
        "calibrate",
        "thor_policy_ros.evaluation.calibrate",
        "measure activations for the FP8 scales of a checkpoint",
    ),
    Command(
        "rollouts",
        "thor_policy_ros.evaluation.rollouts",
        "closed-loop success of a checkpoint on the simulated arm",
    ),
    Command(
        "libero",
        "thor_policy_ros.evaluation.libero.command",
        "success on LIBERO's tasks, backends in pairs, on one machine or many",
    ),
    Command(
        "latency-study",
        "thor_policy_ros.evaluation.latency_study",
        "success and smoothness against added latency, for each way of blending chunks",
    ),
    Command(
        "reuse-study",
        "thor_policy_ros.evaluation.reuse_study",
        "what reusing the prefix costs and saves on the simulated arm",
    ),
    Command(
        "train-demo",
        "thor_policy_ros.evaluation.train_demo",
        "train the demo's policy from nothing: expert data, training, checkpoint",
    ),
    Command(
        "bench",
        "thor_policy_ros.evaluation.bench",
        "measure backends: latency by stage, precision, modules",
    ),
    Command(
        "roofline",
        "thor_policy_ros.evaluation.roofline",
        "the least time a device needs for a frame, and what bounds it",
    ),
    Command(
        "inspect",
        "thor_policy_ros.evaluation.inspect_checkpoint",
        "say what a checkpoint holds, which config fits, and what is missing",
    ),
    Command(
        "convert",
        "thor_policy_ros.evaluation.convert",
        "write a checkpoint in openpi's, LeRobot's or the fastest layout",
    ),
    Command(
        "record",
        "thor_policy_ros.evaluation.record",
        "record a running policy node's inputs and outputs as an MCAP bag",
    ),
    Command(
        "replay",
        "thor_policy_ros.evaluation.replay",
        "run a recording through a backend; compare actions and latency with it",
    ),
    Command(
        "report",
        "thor_policy_ros.evaluation.report",
        "make an HTML page of a recording: latencies, deadlines, reuse, faults, worst moments",
    ),
    Command(
        "faults",
        "thor_policy_ros.evaluation.faults",
        "inject faults into the running nodes: is the robot safe, who is told, does it go on",
    ),
    Command(
        "soak",
        "thor_policy_ros.evaluation.soak",
        "run the demo for an hour while backend and parameters change at random",
    ),
    Command(
        "security",
        "thor_policy_ros.evaluation.security",
        "write keys and permissions of the nodes for ROS 2 security: only the listed topics",
    ),
    Command(
        "serve",
        "thor_policy_ros.evaluation.serve",
        "serve a policy to openpi's clients over websockets",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for a wrong command line or input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((c for c in COMMANDS if arguments and c.name == arguments[0]), None)
    if chosen is None:
        return _top_level(arguments)
    run = import_module(chosen.module).run
    return _run(chosen, run, command_parser(chosen).parse_args(arguments[1:]))


def command_parser(command: Command) -> argparse.ArgumentParser:
    """The parser of one command; imports its module."""
    module = import_module(command.module)
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {command.name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def _run(command: Command, run: object, arguments: argparse.Namespace) -> int:
    assert callable(run)
    try:
        return int(run(arguments))
    except USER_ERRORS as error:
        print(f"{PROGRAM} {command.name}: error: {error}", file=sys.stderr)
        return 2


def _top_level(arguments: list[str]) -> int:
    """Help and version, or the error for an unknown command: never returns normally."""
    rows = "\n".join(f"  {c.name:<14} {c.help}" for c in COMMANDS)
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="pi0.5 on the robot: checks and measurements by hand.",
        epilog=f"commands:\n{rows}\n\n`{PROGRAM} COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"{PROGRAM} {thor_policy_ros.__version__}"
    parser.add_argument("--version", action="version", version=version)
    names = [c.name for c in COMMANDS]
    parser.add_argument("command", choices=names, metavar="COMMAND", help=", ".join(names))
    parser.parse_args(arguments or ["--help"])
    return 2

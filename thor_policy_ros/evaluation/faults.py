"""Injects faults into the running nodes and says what the robot did and what one saw of it.

The arguments are those of `python -m thor_policy_ros.ros.faults`, which this starts: --only NAME,
--short, --list, --json FILE, --table FILE.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec

MODULE = "thor_policy_ros.ros.faults"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults")
    parser.add_argument("--short", action="store_true", help="a few of the fastest")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    parser.add_argument("--json", metavar="FILE", help="write the run to this file")
    parser.add_argument("--table", metavar="FILE", help="print the table of a run's JSON and end")


def run(arguments: argparse.Namespace) -> int:
    """The exit status of the run; 1 when a fault was not survived."""
    if find_spec("rclpy") is None:
        raise ValueError("faults want ROS 2: source its setup file, or run `make setup`")
    argv = [sys.executable, "-m", MODULE]
    for name in ("short", "list"):
        argv += [f"--{name}"] if getattr(arguments, name) else []
    for name in ("json", "table"):
        value = getattr(arguments, name)
        argv += [f"--{name}", value] if value else []
    if arguments.only:
        argv += ["--only", *arguments.only]
    return subprocess.run(argv, check=False).returncode

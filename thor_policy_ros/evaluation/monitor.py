"""Watch a running policy node in the terminal, on this host or another one of the domain.

Every option goes to the dashboard itself; `thor-policy monitor --once` prints one snapshot.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec

MODULE = "thor_policy_ros.ros.monitor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy monitor`."""
    parser.add_argument("--node", default="/policy_node", help="full name of the policy node")
    parser.add_argument("--executor", help="full name; default: chunk_executor_node beside it")
    parser.add_argument("--once", action="store_true", help="print one snapshot and leave")
    parser.add_argument("--seconds", default="3", help="to listen before --once prints")
    parser.add_argument("--save", help="with --once: also to this .svg or .txt file")
    parser.add_argument("--width", help="columns; default: the terminal's")
    parser.add_argument("--no-colour", action="store_true", help="plain text")


def run(arguments: argparse.Namespace) -> int:
    """The dashboard's exit status: 1 where --once heard nothing."""
    if find_spec("rclpy") is None:
        raise ValueError("rclpy cannot be imported; source ROS 2, or .venv/setup.bash, first")
    process = subprocess.Popen([sys.executable, "-m", MODULE, *options_of(arguments)])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the dashboard has it too, and ends


def options_of(arguments: argparse.Namespace) -> list[str]:
    """The same options, for the dashboard's own command line."""
    options = ["--node", arguments.node, "--seconds", str(arguments.seconds)]
    for name in ("executor", "save", "width"):
        value = getattr(arguments, name)
        options += [f"--{name}", str(value)] if value is not None else []
    flags = {"--once": arguments.once, "--no-colour": arguments.no_colour}
    return [*options, *(flag for flag, given in flags.items() if given)]

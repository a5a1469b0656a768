"""Record a running policy node's inputs and outputs as an MCAP bag, until Ctrl-C or --seconds.

`ros2 bag info` and viewers read the bag; `thor-policy replay` runs it through any backend, and
`thor-policy report` makes a page of it.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FrameType


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy record`."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the new bag")
    parser.add_argument("--node", default="/policy_node", help="full name of the policy node")
    parser.add_argument("--seconds", type=float, default=math.inf, help="default: until Ctrl-C")
    parser.add_argument("--wait", type=float, default=5.0, help="seconds for topics to appear")
    parser.add_argument("--queue-mb", type=int, default=256, help="messages that may wait")
    parser.add_argument("--keep-free-mb", type=int, default=500, help="left on the disk")


def run(arguments: argparse.Namespace) -> int:
    """The exit status of the recorder, which has ROS and is a process of its own."""
    if find_spec("rclpy") is None:
        raise ValueError("rclpy cannot be imported: ROS 2 is not installed, or not sourced")
    if not os.environ.get("AMENT_PREFIX_PATH"):  # where messages say what they are made of
        raise ValueError(
            "ROS 2 is not sourced: `source install/setup.bash` of the workspace first, in a"
            " checkout `source .venv/setup.bash`"
        )
    command = [sys.executable, "-m", "thor_policy_ros.ros.record"]
    command += ["--output", str(arguments.output), "--node", arguments.node]
    for name in ("seconds", "wait", "queue_mb", "keep_free_mb"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    with subprocess.Popen(command) as recorder:
        # The terminal's Ctrl-C reaches the recorder by itself, which then ends its bag.
        def pass_on(number: int, _: FrameType | None) -> None:
            if number == signal.SIGTERM:
                recorder.send_signal(signal.SIGINT)

        before = [signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            return recorder.wait()
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)

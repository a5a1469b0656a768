"""Run a command in the environment of `.venv` and ROS 2: python3 -m tools.in_env COMMAND..."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tools.ros_prefixes import environment, sourced_ros

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"


def main() -> None:
    """Become the command: it takes our process, so signals and the exit status are its own."""
    command = sys.argv[1:]
    if not command:
        sys.exit(__doc__)
    env = environment(os.environ, VENV, sourced_ros(os.environ, VENV))
    if "ROS_LOG_DIR" not in env and "ROS_HOME" not in env:
        env["ROS_LOG_DIR"] = str(ROOT / "log")  # rclpy does not start where HOME is not writable
    try:
        os.execvpe(command[0], command, env)
    except FileNotFoundError:
        sys.exit(f"{command[0]}: neither in .venv/bin nor on the PATH; run `make setup` first")


if __name__ == "__main__":
    main()

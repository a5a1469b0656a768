"""One run of setup and the steps it takes: each a command whose output goes to a log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.machine import SetupError
from tools.ros_prefixes import environment

LOG_TAIL = 40  # lines of a failed command that are shown


@dataclass(frozen=True)
class Plan:
    """Where to set up, with which Python and ROS, and how much of it.

    root: the checkout. python: the command that was asked for; '' leaves the choice to setup.
    ros: prefixes of the sourced ROS; empty where its wheels are installed.
    """

    root: Path
    venv: Path
    python: str = ""
    ros: tuple[Path, ...] = ()
    messages_only: bool = False

    @property
    def venv_python(self) -> str:
        return str(self.venv / "bin" / "python")

    @property
    def environ(self) -> dict[str, str]:
        return environment(os.environ, self.venv, self.ros)


def step(
    plan: Plan, title: str, command: Sequence[object], settings: Mapping[str, str] | None = None
) -> None:
    """Run a command with `settings` added to the environment, and say how long it took.

    SetupError with the end of its output when it fails.
    """
    words = [str(word) for word in command]
    log = plan.venv / "setup.log"
    print(f"setup: {title} ...", end="", flush=True)
    with log.open("ab") as output:
        output.write(f"\n+ {' '.join(words)}\n".encode())
        output.flush()
        start = output.tell()
        with subprocess.Popen(
            words,
            cwd=plan.venv,
            env={**plan.environ, **(settings or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process:
            status = _wait(process, title)
    if status != 0:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
        shown = "\n".join(f"  | {line}" for line in lines[-LOG_TAIL:])
        raise SetupError(f"{title} failed; the whole log is {log}\n{shown}")


def _wait(process: subprocess.Popen[bytes], title: str) -> int:
    """The exit status of a step; a person at a terminal sees the seconds pass."""
    began = time.monotonic()
    again = f"\rsetup: {title} ..." if sys.stdout.isatty() else ""
    while True:
        try:
            status = process.wait(timeout=1.0 if again else None)
        except subprocess.TimeoutExpired:
            print(f"{again} {time.monotonic() - began:.0f} s", end="", flush=True)
            continue
        print(f"{again} {time.monotonic() - began:.0f} s", flush=True)
        return status

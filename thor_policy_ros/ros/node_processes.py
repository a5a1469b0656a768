"""Starts the package's nodes as separate processes, each with its own log, and ends them all.

For `make demo` and the tests, which run where `ros2 launch` may be absent; on a robot the launch
files do this.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

STOP_GRACE_S = 5.0
LOG_TAIL_LINES = 15
EXECUTOR_REMAPS = (
    ("action_chunk", "policy_node/action_chunk"),
    ("heartbeat", "policy_node/heartbeat"),
)


class NodeDiedError(RuntimeError):
    """A node ended by itself; the message holds the end of its log."""


@dataclass(frozen=True)
class NodeCommand:
    """One node: module under `thor_policy_ros.ros`, parameter files, single parameters, remaps.

    prefix: a command that starts it, as on another host.
    """

    module: str
    params_files: tuple[Path, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    remaps: tuple[tuple[str, str], ...] = ()
    prefix: tuple[str, ...] = ()

    def argv(self) -> list[str]:
        argv = [
            *self.prefix,
            sys.executable,
            "-m",
            f"thor_policy_ros.ros.{self.module}",
            "--ros-args",
        ]
        for path in self.params_files:
            argv += ["--params-file", str(path)]
        for name, value in self.parameters:
            argv += ["-p", f"{name}:={value}"]
        for old, new in self.remaps:
            argv += ["-r", f"{old}:={new}"]
        return argv


class NodeProcesses:
    """A group of node processes that lives as long as its `with` block."""

    def __init__(self, log_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log_dir = log_dir
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> NodeProcesses:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, commands: Sequence[NodeCommand]) -> None:
        for command in commands:
            with self.log_path(command.module).open("wb") as log:
                self._processes[command.module] = subprocess.Popen(
                    command.argv(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )

    def log_path(self, module: str) -> Path:
        return self._log_dir / f"{module}.log"

    def pid(self, module: str) -> int:
        """Of a node that was started."""
        return self._processes[module].pid

    def alive(self, module: str) -> bool:
        return self._processes[module].poll() is None

    def require_alive(self) -> None:
        """Raises NodeDiedError naming the node that ended, its exit status and its last words."""
        for module, process in self._processes.items():
            if process.poll() is not None:
                raise NodeDiedError(
                    f"{module} ended with status {process.returncode}; the end of "
                    f"{self.log_path(module)}:\n{self._log_tail(module)}"
                )

    def stop(self) -> None:
        """Interrupts every node, waits, and kills what has not ended by then."""
        for process in self._processes.values():
            _signal_group(process, signal.SIGINT)
        deadline = time.monotonic() + STOP_GRACE_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    def _log_tail(self, module: str) -> str:
        lines = self.log_path(module).read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (empty)"


def _signal_group(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signum)

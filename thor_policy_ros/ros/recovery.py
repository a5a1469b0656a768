"""Back to work after a crash: in this process where that can be, else by ending it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter

CHECK_PERIOD_S = 0.2
HUNG_STATUS, STICKY_STATUS = 70, 71


class FrameWatchdog:
    """Ends the process when one frame takes longer than `timeout_s`: no thread can be ended from
    outside. last_words: publishes the node's diagnostics.
    """

    def __init__(
        self,
        node: Node,
        serving_since_s: Callable[[], float | None],
        timeout_s: float,
        last_words: Callable[[], None],
    ) -> None:
        self._node, self._since_s, self._timeout_s = node, serving_since_s, timeout_s
        self._last_words = last_words
        self.stuck_s = 0.0
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(CHECK_PERIOD_S, self._check, clock=steady)

    def _check(self) -> None:
        since_s = self._since_s()
        self.stuck_s = 0.0 if since_s is None else time.perf_counter() - since_s
        if self.stuck_s > self._timeout_s:
            why = f"a frame takes longer than inference_timeout_s = {self._timeout_s:g} s"
            end_process(self._node, why, HUNG_STATUS, self._last_words)


def end_process(node: Node, why: str, status: int, last_words: Callable[[], None]) -> None:
    """At once: native code that hangs or is broken would not let Python end."""
    node.get_logger().fatal(f"{why}; this process ends, respawn:=true starts it again")
    last_words()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def read_state(path: str) -> dict[str, Any]:
    """The parameters kept in the file; none where there is no file yet. ValueError for a file
    that is not of this kind.
    """
    if not path or not Path(path).exists():
        return {}
    try:
        kept = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"state_file {path} is not JSON ({error}); remove it") from error
    if not isinstance(kept, dict):
        raise ValueError(f"state_file {path} wants an object of parameters; remove it")
    return kept


def apply_state(node: Node, path: str) -> str:
    """Sets the kept parameters; '' or which were refused."""
    refused = []
    for name, value in read_state(path).items():
        if node.has_parameter(name):
            result = node.set_parameters([Parameter(name, value=value)])[0]
            if not result.successful:
                refused.append(f"{name}: {result.reason}")
    return "; ".join(refused)


def keep_state(path: str, changed: Mapping[str, Any]) -> str:
    """Adds the parameters to the file, whole or not at all; '' or why it could not be written."""
    if not path:
        return ""
    beside = f"{path}.new"
    try:
        kept = {**read_state(path), **changed}
        Path(beside).write_text(json.dumps(kept, indent=1) + "\n")
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        with suppress(OSError):  # half of it, on a full disk
            Path(beside).unlink(missing_ok=True)
        return f"state_file is not written: {error}"
    return ""

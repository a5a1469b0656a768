"""The life of a node's process: make it, spin it in one thread, end it cleanly."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import rclpy
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
)
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

from thor_policy_ros.ros.quiet_executor import QuietExecutor
from thor_policy_ros.ros.writable_places import place_log

RCLError = rclpy_implementation.RCLError
AnyNode = TypeVar("AnyNode", bound=Node)
Start = Callable[[AnyNode], Callable[[], Coroutine[Any, Any, Any]] | None]


def run_node(factory: Callable[[], AnyNode], start: Start[AnyNode] = lambda node: None) -> int:
    """Spins the node until Ctrl-C, SIGTERM or `rclpy.shutdown()`; the exit status.

    factory: makes a node with a `close` method, called once after the last callback; it returns
    False when a thread of the node could not be ended, and the process ends around it.
    start: gives the coroutine to run first on the executor, or None. A parameter that the node
    refuses ends the process with status 2 and the reason.
    """
    log_arguments, log_note = place_log(os.environ)
    try:
        rclpy.init(args=[*sys.argv, *log_arguments])
        node = factory()
    except (
        InvalidParameterTypeException,
        InvalidParameterValueException,
        RCLError,
        ValueError,
    ) as error:
        sys.stderr.write(f"refused to start: {error}\n")
        rclpy.try_shutdown()
        return 2
    if log_note:
        node.get_logger().warning(log_note)
    executor = QuietExecutor()
    executor.add_node(node)
    first = start(node)
    if first is not None:
        executor.create_task(first)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass  # the ordinary end
    except RCLError:
        if rclpy.ok():
            raise
        # The signal came while the executor was building its wait set.
    finally:
        # Ctrl-C under `ros2 launch` interrupts twice: the terminal's signal, and launch's own.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        all_ended = node.close()
        # Nobody spins any more: what a callback awaits would be waited for without end.
        executor.shutdown(timeout_sec=0.0)
        node.destroy_node()
        rclpy.try_shutdown()
    if not all_ended:
        # Python's own end would pull the interpreter from under native code: an abort.
        sys.stderr.write("ended while a thread of the node was still at work\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    # At its end Python looks through all that torch has made, to free memory that the system gets
    # anyway: 1.0 s of a core, and 4.4 s beside 8 busy processes on 2; without, 0.3 and 1.0 to 1.9.
    gc.freeze()
    return 0

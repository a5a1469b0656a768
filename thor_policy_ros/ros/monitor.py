"""The terminal dashboard: `thor-policy monitor`, or `python -m thor_policy_ros.ros.monitor`.

Subscribes /diagnostics and the policy node's topics, on this host or another one of the same
domain; it changes nothing on the robot. Leave it with Ctrl-C.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.live import Live

from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros.frame_loop import STAGES
from thor_policy_ros.ros.monitor_record import Frame, MonitorRecord, Status
from thor_policy_ros.ros.monitor_view import NOTHING, Screen
from thor_policy_ros.runtime.frame_hops import HOPS

RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
REFRESH_S = 0.25
LOOK_S = 0.1
"""After which a signal is answered, at the latest."""
REMOTE_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # a picture asks nobody for a font
PATIENCE_S = 15.0


class MonitorNode(Node):
    """Fills a record. policy_node, executor_node: full names, as '/arm/policy_node'."""

    def __init__(self, policy_node: str, executor_node: str) -> None:
        super().__init__("thor_policy_monitor", start_parameter_services=False)
        self.record = MonitorRecord()
        self.title = policy_node
        self._of = tuple(f"{name.lstrip('/')}: " for name in (policy_node, executor_node))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        topics = {
            f"{policy_node}/frame_latency": (FrameLatency, self._on_latency),
            f"{policy_node}/action_chunk": (ActionChunk, self._on_chunk),
        }
        for topic, (kind, callback) in topics.items():
            self.create_subscription(kind, topic, callback, RELIABLE)

    def screen(self) -> Screen:
        """As things are now."""
        offset_s = time.time() - time.monotonic()
        return Screen(
            self.record,
            self.title,
            time.monotonic(),
            lambda at_s: time.strftime("%H:%M:%S", time.localtime(at_s + offset_s)),
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        now_s = time.monotonic()
        for status in message.status:
            if status.name.startswith(self._of):
                values = {pair.key: pair.value for pair in status.values}
                level = int.from_bytes(status.level, "little")
                self.record.add_status(status.name, Status(level, status.message, values, now_s))

    def _on_latency(self, message: FrameLatency) -> None:
        frame = Frame(
            backend=message.backend,
            stages_ms={stage: getattr(message, f"{stage}_ms") for stage in STAGES},
            decision=message.decision,
            deadline_ms=message.deadline_ms,
            deadline_missed=message.deadline_missed,
            dropped_frames=message.dropped_frames,
            missed_ticks=message.missed_ticks,
            hops_ms={hop: getattr(message, f"{hop}_ms") for hop in HOPS},
        )
        self.record.add_frame(frame, time.monotonic())

    def _on_chunk(self, _: ActionChunk) -> None:
        self.record.add_chunk(time.monotonic())


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thor-policy monitor", description=__doc__)
    made.add_argument("--node", default="/policy_node", help="full name of the policy node")
    made.add_argument("--executor", help="full name; default: chunk_executor_node beside it")
    made.add_argument("--once", action="store_true", help="print one snapshot and leave")
    made.add_argument("--seconds", type=float, default=3.0, help="to listen before --once prints")
    made.add_argument("--save", type=Path, help="with --once: also to this .svg or .txt file")
    made.add_argument("--width", type=int, help="columns; default: the terminal's")
    made.add_argument("--no-colour", action="store_true", help="plain text")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 where --once heard nothing, or was interrupted."""
    arguments = parser().parse_args(argv)
    if arguments.save and arguments.save.suffix not in (".svg", ".txt"):
        parser().error(f"--save wants a .svg or .txt file, got {arguments.save}")
    policy_node = "/" + arguments.node.lstrip("/")
    executor = arguments.executor or f"{policy_node.rpartition('/')[0]}/chunk_executor_node"
    console = Console(
        width=arguments.width, no_color=arguments.no_colour or None, record=bool(arguments.save)
    )
    # A signal that became an exception could come out of any call of rclpy's, and as another one.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    interrupted = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: interrupted.set())
    node = MonitorNode(policy_node, "/" + executor.lstrip("/"))
    spinner = SingleThreadedExecutor()
    spinner.add_node(node)
    try:
        if arguments.once:
            return _once(node, spinner, console, arguments, interrupted)
        _follow(node, spinner, console, interrupted)
    finally:
        spinner.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _once(
    node: MonitorNode,
    spinner: SingleThreadedExecutor,
    console: Console,
    options: argparse.Namespace,
    interrupted: threading.Event,
) -> int:
    begun_s = time.monotonic()
    heard_s: float | None = None
    while heard_s is None or time.monotonic() - heard_s < options.seconds:
        if interrupted.is_set():
            return 1
        spinner.spin_once(timeout_sec=LOOK_S)
        if heard_s is None and node.record.heard:
            heard_s = time.monotonic()
        if heard_s is None and time.monotonic() - begun_s > max(PATIENCE_S, options.seconds):
            sys.stderr.write(f"{node.title}: {NOTHING}\n")
            return 1
    console.print(node.screen())
    if options.save and options.save.suffix == ".svg":
        picture = console.export_svg(title=f"thor-policy monitor {node.title}")
        options.save.write_text(REMOTE_FONT.sub("", picture))
    elif options.save:
        console.save_text(str(options.save))
    return 0


def _follow(
    node: MonitorNode,
    spinner: SingleThreadedExecutor,
    console: Console,
    interrupted: threading.Event,
) -> None:
    """Until Ctrl-C: redrawn in a terminal; one snapshot after another into a file or a pipe."""
    if not console.is_terminal:
        while not interrupted.is_set():
            _spin_for(spinner, 1.0, interrupted)
            console.print(node.screen())
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not interrupted.is_set():
            _spin_for(spinner, REFRESH_S, interrupted)
            live.update(node.screen(), refresh=True)


def _spin_for(
    spinner: SingleThreadedExecutor, duration_s: float, interrupted: threading.Event
) -> None:
    end_s = time.monotonic() + duration_s
    while not interrupted.is_set() and (left_s := end_s - time.monotonic()) > 0:
        spinner.spin_once(timeout_sec=min(left_s, LOOK_S))


if __name__ == "__main__":
    raise SystemExit(main())

"""Tick jitter of the chunk executor beside a busy process on every core.

    python -m benchmarks.tick_jitter --seconds 60 --out benchmarks/results/tick_jitter.json

The executor runs in a process of its own at 100 Hz, follows a chunk ten times a second and reads
joint states at 100 Hz; `--load` processes do nothing but count, at the ordinary priority. The
jitter is what the node itself publishes on /diagnostics.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros.conversions import chunk_to_msg, header
from thor_policy_ros.ros.node_processes import NodeCommand, NodeProcesses
from thor_policy_ros.types import ActionChunk as Chunk

BUSY = "while True: pass"
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
JOINTS = ["a", "b", "c", "d", "e", "f", "g"]


class Surroundings(Node):
    """The robot and the policy, as far as the executor sees them."""

    def __init__(self) -> None:
        super().__init__("jitter_bench")
        self.values: dict[str, str] = {}
        self._chunks = self.create_publisher(ActionChunk, "action_chunk", RELIABLE)
        self._joints = self.create_publisher(JointState, "joint_states", RELIABLE)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.create_timer(0.01, self._measure)
        self.create_timer(0.1, self._send)

    def _now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds * 1e-9)

    def _measure(self) -> None:
        message = JointState(header=header(self._now_s()), name=JOINTS)
        message.position = array.array("d", [0.0] * len(JOINTS))
        self._joints.publish(message)

    def _send(self) -> None:
        now_s = self._now_s()
        rows = 0.01 * np.sin(np.arange(10)[:, None] * 0.1 + now_s).astype(np.float32)
        chunk = Chunk(np.tile(rows, (1, len(JOINTS))), 0.1, now_s)
        self._chunks.publish(
            chunk_to_msg(
                chunk,
                sequence=1,
                backend="none",
                instruction="",
                joint_names=JOINTS,
                prefix_age_s=0.0,
                now_s=now_s,
            )
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith("execution"):
                self.values = {value.key: value.value for value in status.values}


def measure(seconds: float, load: int, priority: int, lock_memory: bool) -> dict[str, object]:
    """Figures of the node's last diagnostics after `seconds` beside `load` busy processes."""
    size = len(JOINTS)
    command = NodeCommand(
        "chunk_executor_node",
        parameters=(
            ("joint_names", str(JOINTS)),
            ("latency_window", str(int(seconds * 100))),
            ("realtime_priority", str(priority)),
            ("lock_memory", str(lock_memory).lower()),
            ("limits.lower", str([-1.0] * size)),
            ("limits.upper", str([1.0] * size)),
            ("limits.velocity", str([1.0] * size)),
            ("limits.acceleration", str([5.0] * size)),
        ),
    )
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(load)]
    rclpy.init()
    node, spinner = Surroundings(), SingleThreadedExecutor()
    spinner.add_node(node)
    try:
        with NodeProcesses(Path(tempfile.mkdtemp())) as processes:
            processes.start([command])
            end_s = time.monotonic() + seconds + 3.0
            while time.monotonic() < end_s:
                processes.require_alive()
                spinner.spin_once(timeout_sec=0.1)
    finally:
        for process in busy:
            process.kill()
        node.destroy_node()
        rclpy.shutdown()
    wanted = ("state", "ticks", "scheduler", "memory_locked")
    return {
        "busy_processes": load,
        **{k: v for k, v in node.values.items() if k in wanted or k.startswith("tick_jitter")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--load", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--priority", type=int, default=0, help="SCHED_FIFO, 1 to 99")
    parser.add_argument("--lock-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    found = measure(arguments.seconds, arguments.load, arguments.priority, arguments.lock_memory)
    report = {
        "command": "python -m benchmarks.tick_jitter " + " ".join(sys.argv[1:]),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_average_before": round(before, 2),
        **found,
    }
    print(json.dumps(report, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What the policy node adds to the model, with real messages, and whether its memory grows.

`python -m thor_policy_ros.ros.node_cost --seconds 120`. The simulated robot, the policy and the
executor run as processes of their own, as in the demo. For every chunk:

own       control tick to chunk handed to the middleware, less vision, prefill and denoising
in, out   a camera message and a chunk on their way between two processes
all       own + in + out: camera message in to chunk received, less the model and the wait for
          the tick

Exit status 1 where `own` misses its bounds or the policy's memory grew by more than --growth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image

from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros.conversions import seconds
from thor_policy_ros.ros.demo import isolated_ros
from thor_policy_ros.ros.memory_use import MB, rss_bytes
from thor_policy_ros.ros.node_processes import NodeProcesses
from thor_policy_ros.ros.soak import add_priorities, node_commands

START_LIMIT_S, SETTLE_S = 120.0, 10.0
OWN_P50_MS, OWN_P99_MS = 2.0, 5.0
MODEL = ("vision_ms", "prefill_ms", "denoise_ms")


@dataclass
class CostRecord:
    """Every figure in ms; rss: bytes, once a second. schedulers: by node, as it says itself."""

    own: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    arriving: list[float] = field(default_factory=list)
    leaving: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    schedulers: dict[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Quantiles, and the growth of memory: the last fifth's median over the first's."""
        count = min(len(self.own), len(self.leaving))
        arriving = float(np.median(self.arriving))
        together = np.array(self.own[:count]) + np.array(self.leaving[:count]) + arriving
        fifth = max(len(self.rss) // 5, 1)
        first, last = (float(np.median(part)) for part in (self.rss[:fifth], self.rss[-fifth:]))
        return {
            "schedulers": self.schedulers,
            "frames": len(self.own),
            "own_ms": quantiles(self.own),
            "in_ms": quantiles(self.arriving),
            "out_ms": quantiles(self.leaving),
            "all_ms": quantiles(together.tolist()),
            "model_ms": quantiles(self.model),
            "rss_first_mb": first / MB,
            "rss_last_mb": last / MB,
            "rss_growth": last / first - 1,
        }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99."""
    found = np.quantile(np.array(values), [0.5, 0.95, 0.99])
    return dict(zip(("p50", "p95", "p99"), found.tolist(), strict=True))


class CostNode(Node):
    """Listens to what the running nodes publish anyway."""

    def __init__(self, record: CostRecord) -> None:
        super().__init__("node_cost")
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)
        self.record = record
        deep = QoSProfile(depth=50)
        self.create_subscription(FrameLatency, "policy_node/frame_latency", self._on_frame, deep)
        self.create_subscription(ActionChunk, "policy_node/action_chunk", self._on_chunk, deep)
        self.create_subscription(
            Image, "camera_base/image_raw", self._on_image, qos_profile_sensor_data
        )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, deep)

    def end(self) -> None:
        self._spinner.shutdown()
        self.destroy_node()

    def spin_for(self, period_s: float) -> None:
        deadline_s = time.monotonic() + period_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._spinner.spin_once(timeout_sec=left_s)

    def _on_frame(self, message: FrameLatency) -> None:
        model = sum(getattr(message, name) for name in MODEL)
        if model > 0:  # a frame without a chunk ran no model
            self.record.own.append(message.total_ms - model)
            self.record.model.append(model)

    def _on_chunk(self, message: ActionChunk) -> None:
        self.record.leaving.append((time.time() - seconds(message.header.stamp)) * 1e3)

    def _on_image(self, message: Image) -> None:
        self.record.arriving.append((time.time() - seconds(message.header.stamp)) * 1e3)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node = status.name.partition(":")[0]
            said = {pair.key: pair.value for pair in status.values}
            if "scheduler" in said:
                self.record.schedulers[node] = said["scheduler"]


def measure(arguments: argparse.Namespace) -> CostRecord:
    """In an initialised rclpy. NodeDiedError where a process ends early."""
    node = CostNode(CostRecord())
    try:
        with NodeProcesses(arguments.out / "logs") as processes:
            processes.start(
                node_commands(
                    arguments,
                    arguments.backend,
                    realtime_priority=arguments.realtime_priority,
                    inference_priority=arguments.inference_priority,
                )
            )
            wait_for_frames(node)
            node.spin_for(SETTLE_S)
            node.record = CostRecord()
            for _ in range(arguments.seconds):
                node.spin_for(1.0)
                processes.require_alive()
                node.record.rss.append(rss_bytes(processes.pid("policy_node")) or 0)
    finally:
        node.end()
    return node.record


def wait_for_frames(node: CostNode) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while not node.record.own:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no frame within {START_LIMIT_S:.0f} s; see the logs in --out")
        node.spin_for(0.2)


def faults(figures: dict[str, Any], growth: float) -> list[str]:
    """What misses its bound."""
    own, found = figures["own_ms"], []
    for name, bound in (("p50", OWN_P50_MS), ("p99", OWN_P99_MS)):
        if not own[name] < bound:
            found.append(f"own {name} is {own[name]:.2f} ms, wanted below {bound:g}")
    if figures["rss_growth"] > growth:
        found.append(f"memory grew by {figures['rss_growth']:.1%}, wanted at most {growth:.1%}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m thor_policy_ros.ros.node_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=int, default=120, help="default: %(default)s")
    parser.add_argument("--backend", default="pytorch", help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, help="default: the demo checkpoint")
    parser.add_argument("--device", default="cpu", help="default: cpu, as the demo")
    add_priorities(parser)
    parser.add_argument("--growth", type=float, default=0.01, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/node_cost"), help="folder for logs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(argv)
    arguments.mode = "auto"
    with isolated_ros():
        figures = measure(arguments).figures()
    found = faults(figures, arguments.growth)
    result = {
        "command": f"python -m thor_policy_ros.ros.node_cost --seconds {arguments.seconds}"
        f" --backend {arguments.backend} --inference-priority {arguments.inference_priority}"
        f" --realtime-priority {arguments.realtime_priority}",
        "backend": arguments.backend,
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "load": os.getloadavg()[0],
        **figures,
        "faults": found,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""The demo on two hosts, measured: each hop of a frame, bytes on the wire, episodes solved.

    python -m thor_policy_ros.ros.two_host_run --episodes 10 --transport raw jpeg png

Robot and executor on one host, the policy on another (network namespaces of this machine, so both
have the same clock), Fast DDS between them. Wants root.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from thor_policy_ros.msg import EpisodeResult, FrameLatency
from thor_policy_ros.ros.demo import isolate, share_dir
from thor_policy_ros.ros.frame_loop import STAGES
from thor_policy_ros.ros.node_processes import EXECUTOR_REMAPS, NodeCommand, NodeProcesses
from thor_policy_ros.ros.two_host_nodes import networked, split
from thor_policy_ros.ros.two_hosts import ROBOT, TwoHosts
from thor_policy_ros.runtime.frame_hops import HOPS
from thor_policy_ros.runtime.latency import LatencyWindow

FRAMES = 100_000
START_LIMIT_S, EPISODE_LIMIT_S = 120.0, 60.0
DEEP = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class HopRecorder(Node):
    """On the robot's host, as an operator would be."""

    def __init__(self, transport: str) -> None:
        super().__init__("two_host_run")
        self.episodes: list[EpisodeResult] = []
        self.latency = LatencyWindow(FRAMES)
        self.frames = self.missed_ticks = 0
        self.image_bytes: list[int] = []
        self.create_subscription(EpisodeResult, "episode_result", self.episodes.append, DEEP)
        self.create_subscription(FrameLatency, "policy_node/frame_latency", self._on_frame, DEEP)
        kind, suffix = (Image, "") if transport == "raw" else (CompressedImage, "/compressed")
        self.create_subscription(kind, f"camera_base/image_raw{suffix}", self._on_image, NEWEST)
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)

    def spin(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._spinner.spin_once(timeout_sec=left_s)

    def end(self) -> None:
        self._spinner.shutdown()
        self.destroy_node()

    def _on_frame(self, message: FrameLatency) -> None:
        figures = {name: getattr(message, f"{name}_ms") for name in (*HOPS, *STAGES)}
        self.latency.add({name: ms for name, ms in figures.items() if math.isfinite(ms)})
        self.frames += 1
        self.missed_ticks = message.missed_ticks

    def _on_image(self, message: Any) -> None:
        self.image_bytes.append(len(message.data))


def nodes(episodes: int, seed: int) -> list[NodeCommand]:
    share = share_dir()
    config = (share / "config" / "demo.yaml",)
    checkpoint = str((share / "checkpoints" / "demo").resolve())
    return [
        NodeCommand("policy_node", config, (("checkpoint", checkpoint),)),
        NodeCommand("chunk_executor_node", config, remaps=EXECUTOR_REMAPS),
        NodeCommand(
            "sim_robot_node",
            config,
            (("episodes", str(episodes)), ("seed", str(seed))),
            (("commands", "chunk_executor_node/commands"),),
        ),
    ]


def measure(transport: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises NoNamespacesError, NodeDiedError, and TimeoutError where episodes do not end."""
    relayed = arguments.loss > 0 or arguments.delay_ms > 0
    with TwoHosts(relayed) as hosts, networked(), hosts.entered(ROBOT):
        if relayed:
            hosts.impair(arguments.loss, arguments.delay_ms * 1e-3)
        rclpy.init(args=[])
        recorder = HopRecorder(transport)
        folder = Path(tempfile.mkdtemp(prefix="two_hosts_"))
        try:
            with NodeProcesses(folder) as processes:
                started = nodes(arguments.episodes, arguments.seed)
                processes.start(split(started, hosts, transport, arguments.quality))
                return {
                    "transport": transport,
                    "quality": arguments.quality if transport == "jpeg" else None,
                    **_record(recorder, processes, hosts, arguments.episodes),
                }
        finally:
            recorder.end()
            rclpy.try_shutdown()


def _record(
    recorder: HopRecorder, processes: NodeProcesses, hosts: TwoHosts, episodes: int
) -> dict[str, Any]:
    _until(recorder, processes, lambda: recorder.frames > 0, START_LIMIT_S)
    before, begun_s = hosts.crossed(), time.monotonic()
    for wanted in range(1, episodes + 1):
        _until(recorder, processes, lambda n=wanted: len(recorder.episodes) >= n, EPISODE_LIMIT_S)
    after, seconds = hosts.crossed(), time.monotonic() - begun_s
    found = recorder.latency.quantiles()
    return {
        "episodes": episodes,
        "solved": sum(result.success for result in recorder.episodes),
        "seconds": round(seconds, 1),
        "image_bytes": round(sum(recorder.image_bytes) / max(1, len(recorder.image_bytes))),
        "robot_sends_kB_per_s": round((after[0] - before[0]) / seconds / 1e3, 1),
        "policy_sends_kB_per_s": round((after[1] - before[1]) / seconds / 1e3, 1),
        "frames": recorder.frames,
        "missed_ticks": recorder.missed_ticks,
        "ms": {
            name: {q: round(getattr(found[name], q), 2) for q in ("p50", "p95", "p99")}
            for name in (*HOPS, *STAGES)
            if name in found
        },
    }


def _until(recorder: HopRecorder, processes: NodeProcesses, done: Any, limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while not done():
        if len(recorder.episodes) == 0 or recorder.frames == 0:
            processes.require_alive()
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"nothing new in {limit_s:.0f} s; {len(recorder.episodes)} episodes")
        recorder.spin(0.2)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="two_host_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--episodes", type=int, default=5)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--transport", nargs="+", choices=("raw", "jpeg", "png"), default=["jpeg"])
    made.add_argument("--quality", type=int, default=90, help="of JPEG, 1 to 100")
    made.add_argument("--loss", type=float, default=0.0, help="share of frames lost, each way")
    made.add_argument("--delay-ms", type=float, default=0.0, help="each way")
    made.add_argument("--json", type=Path, help="write the figures to this file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    isolate()
    document = {
        "command": "python -m thor_policy_ros.ros.two_host_run",
        "arguments": {k: v for k, v in vars(arguments).items() if k != "json"},
        "cpu_count": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "runs": [measure(transport, arguments) for transport in arguments.transport],
    }
    document["load_after"] = round(os.getloadavg()[0], 1)
    text = json.dumps(document, indent=1) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

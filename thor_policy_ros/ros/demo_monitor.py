"""The node behind `make demo`: listens to the running nodes and draws the live table."""

from __future__ import annotations

import time

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rich.table import Table
from std_msgs.msg import String

from thor_policy_ros.msg import ActionChunk, EpisodeResult, FrameLatency
from thor_policy_ros.ros.demo_progress import STAGES, DemoProgress, Episode

EVENTS = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


class DemoMonitor(Node):
    """Feeds a `DemoProgress` from the public topics of the policy and the simulated robot."""

    def __init__(self, progress: DemoProgress) -> None:
        super().__init__("demo_monitor")
        self._progress = progress
        self.create_subscription(FrameLatency, "policy_node/frame_latency", self._on_frame, EVENTS)
        self.create_subscription(ActionChunk, "policy_node/action_chunk", self._on_chunk, EVENTS)
        self.create_subscription(EpisodeResult, "episode_result", self._on_episode, EVENTS)
        self.create_subscription(String, "instruction", self._on_instruction, LATCHED)

    def _on_frame(self, message: FrameLatency) -> None:
        self._progress.add_frame(
            {stage: getattr(message, f"{stage}_ms") for stage in STAGES},
            deadline_missed=message.deadline_missed,
            missed_ticks=message.missed_ticks,
        )

    def _on_chunk(self, message: ActionChunk) -> None:
        age = self.get_clock().now() - Time.from_msg(message.observed_at)
        self._progress.add_chunk(time.monotonic(), age.nanoseconds / 1e6)

    def _on_episode(self, message: EpisodeResult) -> None:
        self._progress.add_episode(
            Episode(
                index=message.episode,
                instruction=message.instruction,
                outcome=message.outcome,
                success=message.success,
                duration_s=message.duration_s,
            )
        )

    def _on_instruction(self, message: String) -> None:
        self._progress.instruction = message.data


def live_table(progress: DemoProgress, now_s: float) -> Table:
    """The table that `make demo` redraws while it runs."""
    table = Table(
        title=(
            f"episode {min(len(progress.episodes) + 1, progress.wanted_episodes)}"
            f"/{progress.wanted_episodes}: {progress.instruction or 'waiting for the robot'}"
        ),
        caption=(
            f"solved {progress.solved} of {len(progress.episodes)}   "
            f"{progress.chunk_rate_hz(now_s):.1f} chunks/s   {progress.frames} frames   "
            f"{progress.deadline_misses} late"
        ),
    )
    table.add_column("stage")
    for column in ("p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for stage in STAGES:
        table.add_row(stage, *(f"{value:.1f}" for value in progress.stage_quantiles_ms(stage)))
    return table

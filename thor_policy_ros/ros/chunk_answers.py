"""What the executor tells the policy of its chunks: taken up, or why not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from thor_policy_ros.msg import ActionChunk, ChunkFeedback
from thor_policy_ros.ros.conversions import header, seconds
from thor_policy_ros.runtime.executor import Command

TOPIC = "chunk_feedback"
FEEDBACK_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
MOVING = ("tracking", "holding")


@dataclass(frozen=True)
class _Waiting:
    message: ActionChunk
    blending: str
    received_s: float


class ChunkAnswers:
    """Answers each chunk once: when the first command from it leaves, or when it is refused."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(ChunkFeedback, TOPIC, FEEDBACK_QOS)
        self._waiting: _Waiting | None = None

    def accepted(self, message: ActionChunk, blending: str, now_s: float) -> None:
        """It will be commanded from at the next tick, if nothing comes in between."""
        if self._waiting is not None:
            self._answer(self._waiting, now_s, "a newer chunk came before the next tick")
        self._waiting = _Waiting(message, blending, now_s)

    def refused(self, message: ActionChunk, reason: str, now_s: float) -> None:
        self._answer(_Waiting(message, "", now_s), now_s, reason)

    def commanded(self, command: Command, now_s: float) -> None:
        """A tick is over: the chunk that waited is in use, or the robot does not move by it."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._answer(waiting, now_s, "" if command.state in MOVING else command.reason)

    def forget(self) -> None:
        """A reset: what waits is not answered any more."""
        self._waiting = None

    def _answer(self, waiting: _Waiting, now_s: float, reason: str) -> None:
        chunk = waiting.message
        age_s = now_s - seconds(chunk.observed_at)
        answer = ChunkFeedback(header=header(now_s), sequence=chunk.sequence)
        answer.observed_at = chunk.observed_at
        answer.taken_up, answer.reason = not reason, reason
        answer.blending = waiting.blending
        answer.age = age_s
        answer.transport = waiting.received_s - seconds(chunk.header.stamp)
        answer.handover = now_s - waiting.received_s
        if not reason and chunk.dt > 0:
            past = math.floor(age_s / chunk.dt)  # between row `past` and the one after it
            answer.skipped_rows = min(max(past, 0), chunk.horizon)
        self._publisher.publish(answer)

"""Subscriptions that feed `LatestFrames`: decode, put, return. None waits for inference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header

from thor_policy_ros.ros.conversions import joint_positions, seconds
from thor_policy_ros.runtime.camera_images import MessageError, compressed_to_rgb, image_to_rgb
from thor_policy_ros.runtime.latency import RateMeter
from thor_policy_ros.runtime.latest_frames import STATE, LatestFrames

RATE_WINDOW_S = 5.0
JOINT_STATES = "joint_states"

LATCHED = QoSProfile(
    depth=1,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


def sensor_qos(reliability: str) -> QoSProfile:
    """Newest only; reliability: 'best_effort' or 'reliable'."""
    policy = ReliabilityPolicy[reliability.upper()]
    return QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=policy)


@dataclass(frozen=True)
class Camera:
    """One camera of the robot and the model's image input that it feeds."""

    name: str
    topic: str
    slot: str
    compressed: bool = False
    rotate_180: bool = False


@dataclass
class InputRecord:
    """What came in on one topic. input: the name that `LatestFrames` has for it."""

    topic: str
    input: str
    rate: RateMeter
    received: int = 0
    refused: int = 0
    last_refusal: str = ""
    refusing: bool = False


class PolicyInputs:
    """Camera and joint state subscriptions of one configured policy; the executor's thread
    owns it. A message that is refused is counted with its reason and changes nothing.
    arrived: is told of every image, as `FrameHops.arrived`.
    """

    def __init__(
        self,
        node: Node,
        frames: LatestFrames,
        cameras: Sequence[Camera],
        joint_names: Sequence[str],
        reliability: str,
        accept_zero_stamps: Callable[[], bool],
        arrived: Callable[[str, float, float, float], None] = lambda *_: None,
    ) -> None:
        self._node = node
        self._frames = frames
        self._joint_names = tuple(joint_names)
        self._accept_zero_stamps = accept_zero_stamps
        self._arrived = arrived
        self._not_before_s = -math.inf
        self.records: dict[str, InputRecord] = {}
        self._subscriptions: list[Any] = []
        qos = sensor_qos(reliability)
        for camera in cameras:
            kind = CompressedImage if camera.compressed else Image
            self._subscribe(kind, camera.topic, camera.slot, partial(self._put_image, camera), qos)
        if self._joint_names:
            self._subscribe(JointState, JOINT_STATES, STATE, self._put_state, qos)

    def forget_until(self, now_s: float) -> None:
        """Drops what is stamped before `now_s`, also when it arrives later."""
        self._not_before_s = now_s

    def destroy(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _subscribe(
        self, kind: Any, topic: str, name: str, put: Callable[[Any, float], None], qos: QoSProfile
    ) -> None:
        resolved = self._node.resolve_topic_name(topic)
        record = InputRecord(resolved, name, RateMeter(RATE_WINDOW_S))
        self.records[name] = record
        callback = partial(self._receive, record, put)
        self._subscriptions.append(self._node.create_subscription(kind, topic, callback, qos))

    def _receive(
        self, record: InputRecord, put: Callable[[Any, float], None], message: Any
    ) -> None:
        now_s = self._node.get_clock().now().nanoseconds * 1e-9
        record.received += 1
        record.rate.tick(now_s)
        try:
            stamp_s = self._stamp_s(message.header, now_s)
            if now_s < self._not_before_s:  # the clock went back: that time is not ours
                self._not_before_s = -math.inf
            if stamp_s >= self._not_before_s:
                began_s = time.perf_counter()
                put(message, stamp_s)
                if record.input != STATE:
                    decode_s = time.perf_counter() - began_s
                    self._arrived(record.input, stamp_s, now_s, decode_s)
            record.refusing = False
        except MessageError as error:
            record.refused += 1
            record.refusing = True
            record.last_refusal = str(error)
            self._node.get_logger().warning(
                f"{record.topic}: refused: {error}", throttle_duration_sec=5.0
            )

    def _stamp_s(self, header: Header, now_s: float) -> float:
        stamp_s = seconds(header.stamp)
        if stamp_s != 0.0:
            return stamp_s
        if self._accept_zero_stamps():
            return now_s
        raise MessageError(
            "its stamp is zero, so its age is not known; make the driver stamp its messages "
            "or set accept_zero_stamps"
        )

    def _put_image(self, camera: Camera, message: Any, stamp_s: float) -> None:
        decode = compressed_to_rgb if camera.compressed else image_to_rgb
        self._frames.put_image(camera.slot, decode(message, camera.rotate_180), stamp_s)

    def _put_state(self, message: JointState, stamp_s: float) -> None:
        self._frames.put_state(joint_positions(message, self._joint_names), stamp_s)

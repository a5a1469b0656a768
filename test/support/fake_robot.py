"""The topics of a robot with two cameras, published by a probe; every fault on demand."""

from __future__ import annotations

import array

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from support.ros_probe import Probe

from thor_policy_ros.ros.conversions import header, image_from_rgb

JOINTS = ("base_yaw", "shoulder", "elbow", "wrist", "suction")
POSITIONS = (0.1, 0.2, 1.5, 0.4, 0.0)
TOPICS = {"base": "camera_base/image_raw", "wrist": "camera_wrist/image_raw"}
LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class FakeRobot:
    """Publishes at 50 Hz while the probe waits.

    silent: topics that say nothing ('base', 'wrist', 'joints'). age_s: how far in the past each
    is stamped. zero_stamps: topics stamped zero. encoding, joint_names: as they are sent. noise:
    the cameras' sensors have some, of one pixel.
    """

    def __init__(self, probe: Probe, instruction: str | None = "pick up the red cube") -> None:
        self._probe = probe
        self.silent: set[str] = set()
        self.age_s = {"base": 0.0, "wrist": 0.0, "joints": 0.0}
        self.zero_stamps: set[str] = set()
        self.encoding = "rgb8"
        self.joint_names = JOINTS
        self.noise = True
        self._image = np.full((32, 32, 3), 77, np.uint8)
        self._cameras = {n: probe.create_publisher(Image, t, SENSOR) for n, t in TOPICS.items()}
        self._joints = probe.create_publisher(JointState, "joint_states", SENSOR)
        self._words = probe.create_publisher(String, "instruction", LATCHED)
        if instruction is not None:
            self.say(instruction)
        self._timer = probe.create_timer(0.02, self.publish)

    def say(self, instruction: str) -> None:
        self._words.publish(String(data=instruction))

    def publish(self) -> None:
        if self.noise:
            self._image[0, 0, 1] ^= 1
        for name, publisher in self._cameras.items():
            if name not in self.silent:
                message = image_from_rgb(self._image, self._stamp_s(name), name)
                message.encoding = self.encoding
                publisher.publish(message)
        if "joints" not in self.silent:
            message = JointState(header=header(self._stamp_s("joints")))
            message.name = list(self.joint_names)
            positions = dict(zip(JOINTS, POSITIONS, strict=True))
            message.position = array.array("d", [positions[n] for n in self.joint_names])
            self._joints.publish(message)

    def _stamp_s(self, name: str) -> float:
        return 0.0 if name in self.zero_stamps else self._probe.now_s() - self.age_s[name]

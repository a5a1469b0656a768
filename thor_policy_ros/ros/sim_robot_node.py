"""The simulated arm as a robot: cameras, joint states and words out, joint commands in.

The policy side cannot tell it from a real one. Between episodes the arm is moved by hand, as it
were, so the policy and the executor are told through their `~/reset`, and the next episode
begins with the first command that follows.
"""

from __future__ import annotations

import enum
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, String

from thor_policy_ros.msg import EpisodeResult
from thor_policy_ros.ros.conversions import (
    camera_info_msg,
    compressed_from_rgb,
    header,
    image_from_rgb,
    time_msg,
)
from thor_policy_ros.ros.delay_line import DelayLine
from thor_policy_ros.ros.diagnostics import DiagnosticsPublisher
from thor_policy_ros.ros.inputs import JOINT_STATES, LATCHED
from thor_policy_ros.ros.motion_reports import injection_report
from thor_policy_ros.ros.parameter_tables import SIM_ROBOT
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.process import run_node
from thor_policy_ros.ros.reset_calls import ResetCalls
from thor_policy_ros.ros.smooth_motion_parameters import injected_latency
from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.sim.recording import Recorder

STEP_S = 0.01
# Behind by more than this the simulation runs late for good rather than in a burst.
MOST_STEPS_AT_ONCE = 5
# After the resets: long enough for a command that was under way to arrive and be ignored.
SETTLE_S = 0.05
# The last result is delivered before the process ends.
FAREWELL_S = 2.0
CAMERA_NAMES = ("base", "wrist")  # of the simulator's images, in their order
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class Phase(enum.Enum):
    """resetting: the others are told. ready: waits for a command. running: time passes."""

    RESETTING = "resetting"
    SETTLING = "settling"
    READY = "ready"
    RUNNING = "running"
    FINISHED = "finished"


class Due:
    """Says when something at a fixed rate of simulated time is due."""

    def __init__(self, rate_hz: float) -> None:
        self._period_s = 1.0 / rate_hz
        self._next_s = 0.0

    def __call__(self, now_s: float) -> bool:
        if now_s < self._next_s - 1e-9:
            return False
        self._next_s = max(self._next_s + self._period_s, now_s)
        return True


class SimRobotNode(Node):
    """One thread. With `use_sim_time` stamps are the simulated time of /clock, else wall time."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("sim_robot_node", **kwargs)
        self.parameters = parameters = NodeParameters(self, SIM_ROBOT)
        parameters.start()
        self._sim_stamps = bool(self.get_parameter("use_sim_time").value)
        self._factor = parameters["realtime_factor"]
        if self._factor != 1.0 and not self._sim_stamps:
            raise ValueError(f"realtime_factor {self._factor} wants use_sim_time on every node")
        self._arm = TabletopArm()
        folder = parameters["recording_dir"]
        self._recorder = Recorder(Path(folder)) if folder else None
        self._episode = 0
        self._phase = Phase.READY
        self._phase_began_s = 0.0
        self._time_s = 1.0  # 0 means to ROS that there is no time yet
        self._steps = 0
        self._behind = 0
        self._camera_due = Due(parameters["camera_rate_hz"])
        self._joints_due = Due(parameters["joint_state_rate_hz"])
        self._random = np.random.default_rng(parameters["seed"])
        self._wire = DelayLine()
        self._make_interfaces()
        self._begin_episode()
        self._began_s = time.perf_counter()
        self.create_timer(
            STEP_S / self._factor, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    @property
    def _raw(self) -> bool:
        return bool(self.parameters["camera_transport"] == "raw")

    def _make_interfaces(self) -> None:
        self._cameras = [
            self.create_publisher(Image, f"camera_{name}/image_raw", RELIABLE)
            for name in CAMERA_NAMES
        ]
        self._compressed = (
            []
            if self._raw
            else [
                self.create_publisher(
                    CompressedImage, f"camera_{name}/image_raw/compressed", RELIABLE
                )
                for name in CAMERA_NAMES
            ]
        )
        self._infos = [
            self.create_publisher(CameraInfo, f"camera_{name}/camera_info", RELIABLE)
            for name in CAMERA_NAMES
        ]
        self._joints = self.create_publisher(JointState, JOINT_STATES, RELIABLE)
        self._clock_out = self.create_publisher(ClockMsg, "/clock", RELIABLE)
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self._results = self.create_publisher(EpisodeResult, "episode_result", QoSProfile(depth=50))
        self.create_subscription(Float64MultiArray, "commands", self._on_command, RELIABLE)
        others = (self.parameters["policy_node"], self.parameters["executor_node"])
        self._resets = ResetCalls(self, tuple(name for name in others if name))
        self._diagnostics = DiagnosticsPublisher(
            self, socket.gethostname, lambda: [injection_report(injected_latency(self.parameters))]
        )

    def close(self) -> bool:
        """Nothing to free."""
        return True

    # Time

    def _on_timer(self) -> None:
        """Catches up with real time, then says what the robot's sensors see."""
        for _ in range(self._steps_due()):
            self._step()
        self._clock_out.publish(ClockMsg(clock=time_msg(self._time_s)))
        self._wire.flush(self._time_s)
        if self._joints_due(self._time_s):
            self._publish_joints()
        if self._phase in (Phase.READY, Phase.RUNNING) and self._camera_due(self._time_s):
            self._publish_images()
        self._advance_phase()

    def _steps_due(self) -> int:
        wanted = int((time.perf_counter() - self._began_s) * self._factor / STEP_S)
        due = wanted - self._steps
        self._steps = wanted
        if due > MOST_STEPS_AT_ONCE:
            self._behind += due - MOST_STEPS_AT_ONCE
            self.get_logger().warning(
                f"the simulation is {self._behind * STEP_S:.2f} s behind real time in all",
                throttle_duration_sec=5.0,
            )
        return min(due, MOST_STEPS_AT_ONCE)

    def _step(self) -> None:
        self._time_s += STEP_S
        if self._phase is Phase.RUNNING:
            if self._recorder is not None:
                self._recorder.add_pose(self._arm.pose(), self._arm.time_s)
            self._arm.advance(STEP_S)

    def _stamp_s(self) -> float:
        if self._sim_stamps:
            return self._time_s
        return float(self.get_clock().now().nanoseconds * 1e-9)

    # Episodes

    def _advance_phase(self) -> None:
        now_s = time.perf_counter()
        in_phase_s = now_s - self._phase_began_s
        if self._phase is Phase.RUNNING and self._arm.outcome() != "running":
            self._end_episode()
        elif self._phase is Phase.RESETTING and self._resets.poll(now_s):
            self._enter(Phase.SETTLING)
        elif self._phase is Phase.SETTLING and in_phase_s >= SETTLE_S:
            self._enter(Phase.READY)
        elif self._phase is Phase.FINISHED and in_phase_s >= FAREWELL_S:
            rclpy.shutdown()

    def _begin_episode(self) -> None:
        seed = self.parameters["seed"] + self._episode
        self._arm.reset(seed, self.parameters["speed"], self.parameters["instruction"] or None)
        self._instruction.publish(String(data=self._arm.instruction))
        self.get_logger().info(f"episode {self._episode}: {self._arm.instruction}")
        self._resets.begin(time.perf_counter())
        self._enter(Phase.RESETTING)

    def _end_episode(self) -> None:
        outcome = self._arm.outcome()
        message = EpisodeResult(header=header(self._stamp_s()), episode=self._episode)
        message.instruction = self._arm.instruction
        message.outcome, message.success = outcome, outcome == "success"
        message.duration_s = self._arm.time_s
        self._results.publish(message)
        self.get_logger().info(f"episode {self._episode}: {outcome}, {self._arm.time_s:.1f} s")
        if self._recorder is not None:
            seed, speed = self.parameters["seed"] + self._episode, self.parameters["speed"]
            self._recorder.finish(seed, speed, self._arm.instruction, outcome)
        self._episode += 1
        if self._episode == self.parameters["episodes"]:
            self._enter(Phase.FINISHED)
        else:
            self._begin_episode()

    def _enter(self, phase: Phase) -> None:
        self._phase, self._phase_began_s = phase, time.perf_counter()

    # Inputs and outputs

    def _on_command(self, message: Float64MultiArray) -> None:
        if self._phase not in (Phase.READY, Phase.RUNNING):
            return
        try:
            self._arm.command(np.array(message.data, np.float32))
        except ValueError as error:
            self.get_logger().error(f"command refused: {error}", throttle_duration_sec=5.0)
            return
        if self._phase is Phase.READY:
            self._enter(Phase.RUNNING)

    def _publish_joints(self) -> None:
        message = JointState(header=header(self._stamp_s()), name=list(self._arm.joint_names))
        message.position = self._arm.state().tolist()
        self._send(self._joints, message, self._delay_s())

    def _delay_s(self) -> float:
        """In simulated time; 0 unless a test adds latency."""
        return injected_latency(self.parameters).draw_s(self._random)

    def _send(self, publisher: Publisher, message: Any, delay_s: float) -> None:
        """On the one wire of all sensors, where a test may delay it."""
        self._wire.send(publisher.publish, message, self._time_s, delay_s)

    def _publish_images(self) -> None:
        stamp_s = self._stamp_s()
        delay_s = self._delay_s()  # both pictures are of one moment
        for publisher, message in self._image_messages(stamp_s):
            self._send(publisher, message, delay_s)
        for number, k in enumerate(self._arm.intrinsics().values()):
            size = int(2 * k[0, 2] + 1), int(2 * k[1, 2] + 1)  # the lens is over the middle
            info = camera_info_msg(k, size, stamp_s, f"camera_{CAMERA_NAMES[number]}")
            self._infos[number].publish(info)

    def _image_messages(self, stamp_s: float) -> Iterator[tuple[Publisher, Any]]:
        form, quality = self.parameters["camera_transport"], self.parameters["jpeg_quality"]
        for k, pixels in enumerate(self._arm.images().values()):
            frame_id = f"camera_{CAMERA_NAMES[k]}"
            if self._compressed:
                message = compressed_from_rgb(pixels, stamp_s, frame_id, form, quality)
                yield self._compressed[k], message
            if self._raw or self._cameras[k].get_subscription_count():
                yield self._cameras[k], image_from_rgb(pixels, stamp_s, frame_id)


def main() -> int:
    return run_node(SimRobotNode)


if __name__ == "__main__":
    raise SystemExit(main())

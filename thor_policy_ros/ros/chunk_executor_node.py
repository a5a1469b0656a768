"""Follows the policy's chunks at the control rate, within the limits of the joints.

Its process imports neither torch nor the model: it keeps the robot under control, holds and
stops it, also when the policy's process is gone.
"""

from __future__ import annotations

import array
import gc
import math
import socket
import time
from collections.abc import Mapping
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros.chunk_answers import ChunkAnswers
from thor_policy_ros.ros.conversions import (
    NS,
    MessageError,
    chunk_from_msg,
    commands_msg,
    header,
    joint_positions,
    seconds,
)
from thor_policy_ros.ros.diagnostics import (
    ERROR,
    STALE,
    WARN,
    DiagnosticsPublisher,
    Report,
    note_missing_clock,
    quantile_values,
)
from thor_policy_ros.ros.inputs import JOINT_STATES, sensor_qos
from thor_policy_ros.ros.motion_safety import MotionSafety, bounds_of
from thor_policy_ros.ros.parameter_tables import EXECUTOR
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.process import run_node
from thor_policy_ros.ros.realtime import RealtimeState, enter_realtime
from thor_policy_ros.ros.tick_clock import tick_clock
from thor_policy_ros.runtime.alarms import Alarms
from thor_policy_ros.runtime.blending import BLENDINGS
from thor_policy_ros.runtime.clock_jumps import JumpWatch
from thor_policy_ros.runtime.executor import ChunkExecutor, Command
from thor_policy_ros.runtime.latency import LatencyWindow, RateMeter
from thor_policy_ros.runtime.latest_frames import CLOCK_TOLERANCE_S

RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
# A second of ticks: who judges the motion by it misses none while it is busy.
EVERY_TICK = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
REFUSAL_SHOWN_S = 5.0
SAY_AGAIN_S = 0.2
STATE_LEVELS = {"waiting": STALE, "holding": WARN, "stopped": ERROR}


class ChunkExecutorNode(Node):
    """Subscribes `action_chunk`, `joint_states` and `heartbeat`; publishes `~/commands`,
    `~/joint_trajectory`, `~/commanded_state` and, for the policy, `chunk_feedback`.

    One thread runs everything. Raises ValueError for limits that do not fit.

    Time. Chunks and joints are stamped in ROS time, and are read in it alone. Ticks are paced,
    and their jitter is measured, by the clock of `tick_clock`. A steady clock beside ROS time
    tells when that jumps; the two are never added or compared but in their progress.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("chunk_executor_node", **kwargs)
        self.parameters = NodeParameters(self, EXECUTOR, on_change=self._on_change)
        self.parameters.start()
        names = self.parameters["joint_names"]
        if not names:
            raise ValueError("set joint_names: the joints to command, in the controller's order")
        self._period_s = 1.0 / self.parameters["control_rate_hz"]
        bounds = bounds_of(self.parameters, names)
        self._safety = MotionSafety(self, self.parameters, bounds)
        self._motion = ChunkExecutor(
            names,
            bounds.limits,
            self._period_s,
            guard=self._safety.guard,
            workspace=bounds.workspace,
        )
        self._on_change({})
        self._command: Command | None = None
        self._not_before_s = -math.inf
        self._said_at_s = -math.inf
        self._at_rest: Future | None = None
        self._pace = tick_clock(self)
        self._jumps = JumpWatch(simulated=self.get_clock().ros_time_is_active)
        self._realtime = RealtimeState()
        self._ticks = 0  # of this process, resets and all: against time it tells of missed ones
        self._ticked_at_s: float | None = None
        self._alarms = Alarms()
        self._jitter = LatencyWindow(self.parameters["latency_window"])
        self._chunk_rate = RateMeter(REFUSAL_SHOWN_S)
        self._refusal, self._refused_at_s = "", -math.inf
        self._unusable = 0
        self._make_interfaces()

    def _make_interfaces(self) -> None:
        output = "" if self._safety.dry else self.parameters["output"]
        self._commands = (
            self.create_publisher(Float64MultiArray, "~/commands", RELIABLE)
            if output in ("commands", "both")
            else None
        )
        self._trajectories = (
            self.create_publisher(JointTrajectory, "~/joint_trajectory", RELIABLE)
            if output in ("trajectory", "both")
            else None
        )
        self._states = self.create_publisher(JointState, "~/commanded_state", EVERY_TICK)
        self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, RELIABLE)
        self.create_subscription(
            JointState, JOINT_STATES, self._on_joint_state, sensor_qos("best_effort")
        )
        # Reentrant: ticks go on while a reset waits for the robot to come to rest.
        group = ReentrantCallbackGroup()
        self.create_service(Trigger, "~/reset", self._on_reset, callback_group=group)
        self._answers = ChunkAnswers(self)
        self.create_timer(self._period_s, self._on_tick, clock=self._pace)
        self._diagnostics = DiagnosticsPublisher(self, self._hardware_id, self._reports)

    def enter_realtime(self) -> None:
        """In the thread that will spin, once everything is made."""
        gc.collect()
        gc.freeze()  # what the imports made is never looked through again: 10 ms at a time
        parameters = self.parameters
        self._realtime = enter_realtime(parameters["realtime_priority"], parameters["lock_memory"])
        for refusal in self._realtime.refusals:
            self.get_logger().warning(refusal)

    def close(self) -> bool:
        """Nothing to free."""
        return True

    # Inputs

    def _on_chunk(self, message: ActionChunk) -> None:
        now_s = self._now_s()
        try:
            chunk = chunk_from_msg(message)
        except MessageError as error:
            self._refuse(str(error), now_s)
            return
        blending = self._blending_of(message)
        if chunk.observed_at_s < self._not_before_s:
            reason = "chunk was observed before the reset, or before the clock was set"
        else:
            self._motion.set_blending(blending, self.parameters["ensemble_decay"])
            reason = self._motion.accept(chunk, message.joint_names, now_s)
        if reason:
            self._refuse(reason, now_s)
            self._answers.refused(message, reason, now_s)
        else:
            self._chunk_rate.tick(now_s)
            self._answers.accepted(message, blending, now_s)

    def _blending_of(self, message: ActionChunk) -> str:
        """The node's own choice, else the chunk's, else that of policies which do not say."""
        wanted = self.parameters["chunk_blending"] or message.blending
        return wanted if wanted in BLENDINGS else "crossfade"

    def _on_joint_state(self, message: JointState) -> None:
        now_s = self._now_s()
        stamp_s = seconds(message.header.stamp)
        if stamp_s < self._not_before_s:
            return
        try:
            positions = joint_positions(message, self._motion.joint_names)
            self._check_age(now_s - stamp_s)
        except MessageError as error:
            self._refuse(str(error), now_s)
            return
        self._motion.set_measured(positions, stamp_s)

    def _check_age(self, age_s: float) -> None:
        """MessageError for a joint state that is not of now: it would pass for fresh later on."""
        if age_s > self.parameters["max_joint_state_age_s"]:
            raise MessageError(f"JointState is {age_s:.3f} s old; compare the clocks")
        if age_s < -CLOCK_TOLERANCE_S:
            raise MessageError(f"JointState is {-age_s:.3f} s ahead of now; compare the clocks")

    def _refuse(self, reason: str, now_s: float) -> None:
        self._unusable += 1
        self._refusal, self._refused_at_s = reason, now_s
        self.get_logger().warning(f"refused: {reason}", throttle_duration_sec=5.0)

    async def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """The robot was moved by something else: begin anew where it now is.

        Commands that move decelerate to rest first; the answer comes then. From then on chunks
        made from older observations are refused, and no command is sent before a new one.
        """
        self._motion.reset()
        if not self._motion.resting:
            self._at_rest = self._at_rest or Future()
            await self._at_rest
            self._motion.reset()
        self._answers.forget()
        self._command = None
        self._not_before_s = self._now_s()
        response.success, response.message = True, "waiting for a measurement and a new chunk"
        return response

    # Ticks

    def _on_tick(self) -> None:
        now_s = self._now_s()
        if now_s < self._not_before_s:  # the clock went back: that reset is not of this time
            self._not_before_s = -math.inf
        self._ticks += 1
        self._count_jitter()
        self._watch_clock(now_s)
        self._safety.watch()
        before, self._command = self._command, self._motion.command(now_s)
        if before is not None and before.state != self._command.state:
            self._say_state()
        self._answers.commanded(self._command, now_s)
        if self._at_rest is not None and self._motion.resting:
            self._at_rest.set_result(None)
            self._at_rest = None
        if self._command.positions is None:
            return
        self._states.publish(self._commanded_state(self._command, now_s))
        if self._commands is not None:
            self._commands.publish(commands_msg(self._command.positions))
        if self._trajectories is not None:
            self._trajectories.publish(self._trajectory(self._command))

    def _say_state(self) -> None:
        """At once, but not more often than someone can read."""
        now_s = time.monotonic()
        if now_s - self._said_at_s > SAY_AGAIN_S:
            self._said_at_s = now_s
            self._diagnostics.publish()

    def _commanded_state(self, command: Command, now_s: float) -> JointState:
        """For viewers, also in a dry run."""
        message = JointState(header=header(now_s), name=list(self._motion.joint_names))
        if command.positions is not None and command.velocities is not None:
            message.position = array.array("d", command.positions.tobytes())
            message.velocity = array.array("d", command.velocities.tobytes())
        return message

    def _trajectory(self, command: Command) -> JointTrajectory:
        """One point, to be reached by the next tick. A zero stamp means: begin now."""
        period = Duration(sec=int(self._period_s), nanosec=round(self._period_s % 1.0 * NS))
        point = JointTrajectoryPoint(time_from_start=period)
        point.positions = command.positions.tolist() if command.positions is not None else []
        return JointTrajectory(joint_names=list(self._motion.joint_names), points=[point])

    def _count_jitter(self) -> None:
        """By the clock that paces the ticks, so that setting another one is no jitter."""
        at_s = self._pace.now().nanoseconds * 1e-9
        if self._ticked_at_s is not None:
            late_ms = abs(at_s - self._ticked_at_s - self._period_s) * 1e3
            self._jitter.add({"jitter": late_ms})
        self._ticked_at_s = at_s

    def _watch_clock(self, now_s: float) -> None:
        """A clock that is set ahead must not hurry the robot along a chunk."""
        by_s = self._jumps.jumped_s(now_s, time.monotonic())
        if by_s == 0.0:
            return
        self._motion.clock_jumped(now_s, by_s)
        self._not_before_s = now_s
        self.get_logger().warning(
            f"the clock of stamps jumped by {by_s:.3f} s; the robot stops until chunks and joint "
            "states of the new time come"
        )

    # Parameters and reports

    def _on_change(self, changed: Mapping[str, Any]) -> None:
        self._motion.set_times(
            self.parameters["crossfade_s"],
            self.parameters["hold_timeout_s"],
            self.parameters["max_chunk_age_s"],
        )
        self._motion.set_trust(
            self.parameters["max_joint_state_age_s"],
            # Nothing is sent in a dry run, so nothing follows.
            math.inf if self._safety.dry else self.parameters["max_lag_s"],
        )
        self._motion.set_resume(self.parameters["resume_ramp_s"], self.parameters["max_start_s"])

    def _now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds * 1e-9)

    def _hardware_id(self) -> str:
        return self.parameters["hardware_id"] or socket.gethostname()

    def _reports(self) -> list[Report]:
        now_s, stats = self._now_s(), self._motion.stats
        state = self._command.state if self._command else "waiting"
        reason = self._command.reason if self._command else "no tick yet"
        report = Report("execution", fine=state)
        note_missing_clock(self, report)
        if state in STATE_LEVELS:
            report.note(STATE_LEVELS[state], f"{state}: {reason}")
        if now_s - self._refused_at_s < REFUSAL_SHOWN_S:
            report.note(WARN, f"refused: {self._refusal}")
        report.values = {
            "state": state,
            "reason": reason,
            "chunk_rate_hz": self._chunk_rate.rate_hz(now_s),
            "last_refusal": self._refusal,
            "refusals": self._unusable,
            "chunks_accepted": stats.accepted,
            "clamped_position": stats.clamped_position,
            "clamped_velocity": stats.clamped_velocity,
            "clamped_acceleration": stats.clamped_acceleration,
            "clock_jumps": stats.clock_jumps,
            "ticks": self._ticks,
            "scheduler": self._realtime.scheduler,
            "memory_locked": self._realtime.memory_locked,
        }
        for refusal in self._realtime.refusals:
            report.note(WARN, refusal)
        self._report_jitter(report)
        return [report, self._safety.report(self._unusable)]

    def _report_jitter(self, report: Report) -> None:
        found = self._jitter.quantiles().get("jitter")
        if found is None:
            return
        report.values.update(quantile_values("tick_jitter", (found.p50, found.p95, found.p99)))
        self._alarms.hysteresis = self.parameters["diagnostics_hysteresis"]
        if self._alarms.above("jitter", found.p99, self.parameters["tick_jitter_warn_ms"]):
            report.note(WARN, f"tick jitter p99 is {found.p99:.1f} ms")


def main() -> int:
    return run_node(ChunkExecutorNode, ChunkExecutorNode.enter_realtime)


if __name__ == "__main__":
    raise SystemExit(main())

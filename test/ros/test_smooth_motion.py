"""Chunks that join, latency that is added, clocks that jump: real nodes in the test's process."""

from __future__ import annotations

import array
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import RELIABLE, Probe
from support.scripted_policy import ScriptedPolicy

from thor_policy_ros.msg import ActionChunk, ChunkFeedback, FrameLatency
from thor_policy_ros.ros import policy_node
from thor_policy_ros.ros.chunk_executor_node import ChunkExecutorNode
from thor_policy_ros.ros.conversions import chunk_to_msg, header, seconds, time_msg
from thor_policy_ros.ros.diagnostics import ERROR, OK, WARN
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.sim_robot_node import SimRobotNode
from thor_policy_ros.ros.verified_loading import LoadedPolicy
from thor_policy_ros.types import ActionChunk as Chunk
from thor_policy_ros.types import Verification

POLICY, EXECUTOR, ROBOT = "policy_node", "chunk_executor_node", "sim_robot_node"
FINE = Verification(ok=True, cosine=1.0, max_abs_error=0.0)
TEN = (2.0,) * 5


def overrides(values: dict[str, Any]) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in values.items()]


# The policy


@pytest.fixture
def policy() -> ScriptedPolicy:
    return ScriptedPolicy()


@pytest.fixture
def active(
    policy: ScriptedPolicy, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PolicyNode]:
    monkeypatch.setattr(policy_node, "load_policy", lambda *_: LoadedPolicy(policy, FINE))
    values = {
        "joint_names": list(JOINTS),
        "camera.base.slot": "base_0_rgb",
        "camera.wrist.slot": "left_wrist_0_rgb",
        "control_rate_hz": 20.0,
    }
    node = PolicyNode(parameter_overrides=overrides(values))
    probe.host(node)
    assert probe.transition(POLICY, "configure") and probe.transition(POLICY, "activate")
    yield node
    node.close()
    node.destroy_node()


class Answering:
    """An executor of the test's own, which takes every chunk up after `late_s`."""

    def __init__(self, probe: Probe, late_s: float = 0.0) -> None:
        self.chunks: list[ActionChunk] = []
        self._probe, self._late_s = probe, late_s
        self._answers = probe.create_publisher(ChunkFeedback, "chunk_feedback", RELIABLE)
        probe.create_subscription(ActionChunk, f"{POLICY}/action_chunk", self._on_chunk, RELIABLE)

    def _on_chunk(self, message: ActionChunk) -> None:
        self.chunks.append(message)
        answer = ChunkFeedback(header=header(self._probe.now_s() + self._late_s))
        answer.sequence, answer.taken_up = message.sequence, True
        answer.transport, answer.handover, answer.age = 0.004, 0.007, 0.125
        self._answers.publish(answer)


def test_rtc_is_turned_on_and_off_while_the_policy_runs(
    active: PolicyNode, policy: ScriptedPolicy, probe: Probe
) -> None:
    FakeRobot(probe)
    executor = Answering(probe, late_s=0.25)
    chunks = executor.chunks
    probe.wait(lambda: len(chunks) > 2, "chunks")
    assert chunks[-1].blending == "crossfade" and chunks[-1].guided_rows == 0
    assert policy.backend.guidance[-1] is None
    assert probe.set_parameter(POLICY, "chunk_blending", "rtc").successful
    probe.wait(lambda: chunks[-1].blending == "rtc" and chunks[-1].guided_rows > 0, "guidance")
    values = probe.diagnosis(f"{POLICY}: motion", OK, "chunks join by rtc")
    assert values["rtc_delay_measured_by"] == "executor"
    assert 250 <= float(values["rtc_delay_ms"]) < 2000
    guidance = policy.backend.guidance[-1]
    assert guidance is not None and (guidance.weights[:3] == 1.0).all(), "0.25 s and rows of 0.1"
    assert probe.set_parameter(POLICY, "chunk_blending", "latest").successful
    probe.wait(lambda: chunks[-1].blending == "latest", "chunks without")
    assert chunks[-1].guided_rows == 0 and policy.backend.guidance[-1] is None


def test_the_executors_answer_tells_the_ways_to_it_and_back(
    active: PolicyNode, probe: Probe
) -> None:
    frames = probe.listen(FrameLatency, f"{POLICY}/frame_latency")
    FakeRobot(probe)
    Answering(probe)
    probe.wait(lambda: any(f.chunk_transport_ms == f.chunk_transport_ms for f in frames), "answer")
    found = next(f for f in frames if f.chunk_transport_ms == f.chunk_transport_ms)
    assert found.chunk_transport_ms == pytest.approx(4.0)
    assert found.chunk_handover_ms == pytest.approx(7.0)
    assert found.observation_to_command_ms == pytest.approx(125.0)
    assert 0.0 < found.feedback_transport_ms < 5000.0

    def told() -> list[str]:
        status = probe.diagnostics.get(f"{POLICY}: inference")
        values = [] if status is None else status.values
        return [pair.value for pair in values if pair.key == "chunk_transport_p50_ms"]

    assert float(probe.wait(told, "the hop in the diagnostics")[0]) == pytest.approx(4.0, abs=0.1)


def test_without_an_executor_the_diagnostics_say_whose_word_counts(
    active: PolicyNode, probe: Probe
) -> None:
    FakeRobot(probe)
    assert probe.set_parameter(POLICY, "chunk_blending", "rtc").successful
    values = probe.diagnosis(f"{POLICY}: motion", WARN, "no executor answers")
    assert values["rtc_delay_measured_by"] == "published"


def test_wishes_that_cannot_be_met_are_refused_with_the_reason(
    active: PolicyNode, probe: Probe
) -> None:
    assert not probe.set_parameter(POLICY, "chunk_blending", "smooth").successful
    assert probe.set_parameter(POLICY, "chunk_blending", "rtc").successful
    refused = probe.set_parameter(POLICY, "rtc_mode", "trained")
    assert not refused.successful and "was not trained with a prefix" in refused.reason
    for name, value in (("rtc_execution_horizon", 8), ("rtc_max_guidance_weight", 5.0)):
        assert probe.set_parameter(POLICY, name, value).successful
    rules = active._chunking.rules
    assert (rules.execution_horizon, rules.max_weight) == (8, 5.0)


def test_added_latency_is_felt_and_warned_of_as_long_as_it_lasts(
    active: PolicyNode, probe: Probe
) -> None:
    FakeRobot(probe)
    frames = probe.listen(FrameLatency, f"{POLICY}/frame_latency")
    probe.diagnosis(f"{POLICY}: injected latency", OK, "none")
    assert probe.set_parameter(POLICY, "inject_latency_ms", 150.0).successful
    probe.wait(lambda: frames and frames[-1].total_ms >= 150.0, "a late frame")
    values = probe.diagnosis(f"{POLICY}: injected latency", WARN, "TEST: latency is added")
    assert values["inject_latency_ms"] == "150"
    assert probe.set_parameter(POLICY, "inject_latency_ms", 0.0).successful
    probe.diagnosis(f"{POLICY}: injected latency", OK, "none")
    seen = len(frames)
    probe.wait(
        lambda: len(frames) > seen + 3 and min(f.total_ms for f in frames[seen:]) < 150.0,
        "frames without it",
    )


def test_added_latency_does_not_hold_up_a_deactivation(active: PolicyNode, probe: Probe) -> None:
    FakeRobot(probe)
    chunks = probe.listen(ActionChunk, f"{POLICY}/action_chunk")
    probe.wait(lambda: chunks, "a chunk")
    assert probe.set_parameter(POLICY, "inject_latency_ms", 9_000.0).successful
    probe.spin_for(0.3)
    begun = time.monotonic()
    assert probe.transition(POLICY, "deactivate")
    assert time.monotonic() - begun < 5.0


# The simulated robot


def test_the_simulated_robots_sensors_leave_late_with_true_stamps(probe: Probe) -> None:
    values = {"policy_node": "", "executor_node": "", "inject_latency_ms": 300.0}
    robot = SimRobotNode(parameter_overrides=overrides(values))
    probe.host(robot)
    late: dict[str, list[float]] = {"image": [], "joints": []}

    def note(kind: str) -> Callable[[Any], None]:
        return lambda m: late[kind].append(probe.now_s() - seconds(m.header.stamp))

    probe.create_subscription(Image, "camera_base/image_raw", note("image"), RELIABLE)
    probe.create_subscription(JointState, "joint_states", note("joints"), RELIABLE)
    try:
        probe.wait(lambda: len(late["image"]) > 5 and len(late["joints"]) > 5, "sensors")
        assert min(late["image"]) >= 0.28 and min(late["joints"]) >= 0.28
        probe.diagnosis(f"{ROBOT}: injected latency", WARN, "TEST: latency is added on purpose")
        assert probe.set_parameter(ROBOT, "inject_latency_ms", 0.0).successful
        probe.wait(lambda: late["joints"][-1] < 0.2, "joint states in time")
        probe.diagnosis(f"{ROBOT}: injected latency", OK, "none")
    finally:
        probe.release(robot)


# The executor


class Moving:
    """An executor in this process with a robot that follows it, sent a ramp ten times a second."""

    def __init__(self, probe: Probe, **changes: Any) -> None:
        self.probe = probe
        values = {
            "joint_names": ["a"],
            "hold_timeout_s": 0.3,
            "tick_jitter_warn_ms": 1000.0,
            "limits.lower": [-50.0],
            "limits.upper": [50.0],
            "limits.velocity": [2.0],
            "limits.acceleration": [10.0],
            **changes,
        }
        self.node = ChunkExecutorNode(parameter_overrides=overrides(values))
        probe.host(self.node)
        self.commands: list[float] = []
        self.now_s: Callable[[], float] = probe.now_s
        self.sequence = 0
        self.blending = ""
        self.answers = probe.listen(ChunkFeedback, "chunk_feedback")
        self._chunks = probe.create_publisher(ActionChunk, "action_chunk", RELIABLE)
        self._joints = probe.create_publisher(JointState, "joint_states", RELIABLE)
        probe.create_subscription(
            Float64MultiArray, f"{EXECUTOR}/commands", self._on_command, RELIABLE
        )
        probe.wait(self._chunks.get_subscription_count, "the executor")
        self._timers = [probe.create_timer(0.02, self._measure), probe.create_timer(0.1, self.send)]
        self._began_s = self.now_s()

    @property
    def at(self) -> float:
        return self.commands[-1] if self.commands else 0.0

    def send(self, age_s: float = 0.0) -> None:
        """Half a unit a second from where the joint is."""
        rows = self.at + 0.05 * np.arange(1, 21, dtype=np.float32)[:, None]
        self.sequence += 1
        now_s = self.now_s()
        message = chunk_to_msg(
            Chunk(rows, 0.1, now_s - age_s), sequence=self.sequence, backend="pytorch",
            instruction="", joint_names=["a"], prefix_age_s=0.0, now_s=now_s,
        )  # fmt: skip
        message.blending = self.blending
        self._chunks.publish(message)

    def silence(self) -> None:
        """No chunk any more."""
        self.probe.destroy_timer(self._timers.pop())

    def end(self) -> None:
        for timer in self._timers:
            self.probe.destroy_timer(timer)
        self.probe.release(self.node)

    def _on_command(self, message: Float64MultiArray) -> None:
        self.commands.append(float(message.data[0]))

    def _measure(self) -> None:
        message = JointState(header=header(self.now_s()), name=["a"])
        message.position = array.array("d", [self.at])
        self._joints.publish(message)


@pytest.fixture
def moving(probe: Probe) -> Iterator[Moving]:
    made = Moving(probe)
    yield made
    made.end()


def test_every_chunk_is_answered_once_with_how_it_joined(moving: Moving, probe: Probe) -> None:
    moving.blending = "rtc"
    probe.wait(lambda: sum(a.taken_up for a in moving.answers) > 5, "chunks taken up")
    moving.silence()
    probe.spin_for(0.6)
    sequences = [answer.sequence for answer in moving.answers]
    assert len(set(sequences)) == len(sequences)
    for answer in moving.answers:
        assert 0.0 <= answer.transport < 5.0 and 0.0 <= answer.handover < 5.0
        if answer.taken_up:
            assert answer.transport + answer.handover <= answer.age + 1e-6
    taken = [answer for answer in moving.answers if answer.taken_up]
    assert taken[-1].blending == "rtc" and taken[-1].reason == ""
    assert 0.0 <= taken[-1].age < 1.0
    moving.send(age_s=5.0)
    probe.wait(lambda: len(moving.answers) == len(sequences) + 1, "an answer")
    moving.send(age_s=0.35)
    probe.wait(lambda: len(moving.answers) == len(sequences) + 2, "another answer")
    refused, late = moving.answers[-2:]
    assert not refused.taken_up and "ago (at most" in refused.reason
    assert late.taken_up and late.skipped_rows >= 3


def test_the_executors_own_choice_of_blending_goes_before_the_chunks(
    moving: Moving, probe: Probe
) -> None:
    moving.blending = "latest"
    probe.wait(lambda: moving.answers and moving.answers[-1].blending == "latest", "the chunk's")
    assert probe.set_parameter(EXECUTOR, "chunk_blending", "temporal_ensemble").successful
    probe.wait(lambda: moving.answers[-1].blending == "temporal_ensemble", "the node's own")
    assert not probe.set_parameter(EXECUTOR, "chunk_blending", "smooth").successful


def braking_way(commands: list[float]) -> float:
    """v^2 / 2a from the speed of the last commands, and a tick's worth of rounding."""
    speed = max(abs(np.diff(commands[-20:])).max() / 0.01, 0.5)
    return speed**2 / (2 * 10.0) + speed * 0.05


@pytest.mark.parametrize("jump_s", [0.4, 3600.0, -0.4, -3600.0])
def test_a_jump_of_the_wall_clock_never_moves_the_robot(
    moving: Moving, probe: Probe, jump_s: float
) -> None:
    """The node's ROS clock is set; its ticks come from the steady clock, as always."""
    probe.wait(lambda: len(moving.commands) > 60, "a motion")
    moving.silence()
    probe.spin_for(0.05)
    before = list(moving.commands)
    node_now = moving.node._now_s
    moving.node._now_s = lambda: node_now() + jump_s  # type: ignore[method-assign]
    seen = len(moving.commands)
    probe.wait(lambda: len(moving.commands) > seen + 40, "commands after the jump")
    after = np.array(moving.commands[seen:])
    assert np.abs(after - before[-1]).max() <= braking_way(before)
    assert after[-1] == after[-5], "it stands"
    probe.diagnosis(f"{EXECUTOR}: execution", ERROR, "stopped")
    # Chunks of the time before the jump are refused; those of the new time move it again.
    moving.now_s = lambda: probe.now_s() + jump_s
    probe.spin_for(0.1)
    moving.send()
    probe.wait(lambda: moving.at > after[-1] + 0.1, "motion by a chunk of the new time")


@pytest.mark.parametrize("jump_s", [3.0, -3.0])
def test_a_jump_of_slash_clock_never_moves_the_robot(probe: Probe, jump_s: float) -> None:
    """With use_sim_time, through a real /clock."""
    clock = probe.create_publisher(Clock, "/clock", RELIABLE)
    time_s = [100.0]

    def advance() -> None:
        time_s[0] += 0.01
        clock.publish(Clock(clock=time_msg(time_s[0])))

    timer = probe.create_timer(0.01, advance)
    moving = Moving(probe, use_sim_time=True)
    moving.now_s = lambda: time_s[0]
    try:
        probe.wait(lambda: len(moving.commands) > 60, "a motion")
        moving.silence()
        probe.spin_for(0.05)
        before, seen = list(moving.commands), len(moving.commands)
        time_s[0] += jump_s
        probe.spin_for(0.6)
        after = np.array(moving.commands[seen:])
        assert np.abs(after - before[-1]).max(initial=0.0) <= braking_way(before)
        moving.send()
        probe.wait(lambda: moving.at > before[-1] + 0.2, "motion by a chunk of the new time")
    finally:
        moving.end()
        probe.destroy_timer(timer)


def test_the_tick_jitter_is_published_and_knows_nothing_of_the_wall_clock(
    moving: Moving, probe: Probe
) -> None:
    node_now = moving.node._now_s
    moving.node._now_s = lambda: node_now() + 100.0  # type: ignore[method-assign]
    probe.spin_for(1.5)
    values = moving.node._reports()[0].values
    assert 0.0 <= float(values["tick_jitter_p99_ms"]) < 1000.0  # type: ignore[arg-type]
    assert values["scheduler"] == "ordinary" and values["memory_locked"] is False

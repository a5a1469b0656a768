"""The policy node in the test's process, with a policy that is as broken as the test wants."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from support.fake_robot import JOINTS, POSITIONS, FakeRobot
from support.ros_probe import Probe
from support.scripted_policy import ScriptedPolicy

from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros import policy_node
from thor_policy_ros.ros.conversions import seconds
from thor_policy_ros.ros.diagnostics import ERROR, OK, STALE, WARN
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.realtime import RealtimeState
from thor_policy_ros.ros.verified_loading import LoadedPolicy
from thor_policy_ros.types import Verification

NODE = "policy_node"
LIFECYCLE, INPUTS, INFERENCE = (f"{NODE}: {task}" for task in ("lifecycle", "inputs", "inference"))
BASE = {
    "joint_names": list(JOINTS),
    "camera.base.slot": "base_0_rgb",
    "camera.wrist.slot": "left_wrist_0_rgb",
    "control_rate_hz": 20.0,
    "hardware_id": "test bench",
}
FINE = Verification(ok=True, cosine=1.0, max_abs_error=0.0)
Load = Callable[..., ScriptedPolicy]


@pytest.fixture
def policy() -> ScriptedPolicy:
    return ScriptedPolicy()


@pytest.fixture
def load(policy: ScriptedPolicy, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Load]]:
    """The loader that the node calls; a test may replace the one element."""
    loaders: list[Load] = [lambda request, say: policy]

    def load_policy(request: Any, references: Any, say: Any) -> LoadedPolicy:
        return LoadedPolicy(loaders[0](request, say), FINE)

    monkeypatch.setattr(policy_node, "load_policy", load_policy)
    yield loaders


@pytest.fixture
def make(probe: Probe, load: list[Load]) -> Iterator[Callable[..., PolicyNode]]:
    nodes: list[PolicyNode] = []

    def make(**changes: Any) -> PolicyNode:
        values = {**BASE, **{name.replace("__", "."): v for name, v in changes.items()}}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = PolicyNode(parameter_overrides=overrides)
        probe.host(node)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.close()
        node.destroy_node()


@pytest.fixture
def active(make: Callable[..., PolicyNode], probe: Probe) -> PolicyNode:
    node = make()
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    return node


@pytest.fixture
def robot(probe: Probe) -> FakeRobot:
    return FakeRobot(probe)


def test_a_chunk_and_its_latency(active: PolicyNode, probe: Probe, robot: FakeRobot) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    latencies = probe.listen(FrameLatency, f"{NODE}/frame_latency")
    probe.wait(lambda: len(chunks) >= 3 and len(latencies) >= 3, "three chunks")
    chunk = chunks[-1]
    assert tuple(chunk.joint_names) == JOINTS
    assert (chunk.horizon, chunk.action_dim, chunk.dt) == (10, 5, 0.1)
    np.testing.assert_allclose(chunk.actions[:5], POSITIONS, atol=1e-6)
    assert (chunk.backend, chunk.instruction) == ("pytorch", "pick up the red cube")
    assert 0 <= seconds(chunk.header.stamp) - seconds(chunk.observed_at) < 0.2
    assert [m.sequence for m in chunks] == list(range(chunks[0].sequence, chunk.sequence + 1))
    frame = latencies[-1]
    assert frame.decision.startswith("refill") and not frame.prefix_reused
    assert (frame.vision_ms, frame.prefill_ms, frame.denoise_ms) == (1.0, 2.0, 3.0)
    assert 0 < frame.wait_ms < frame.total_ms and 0 < frame.publish_ms < frame.total_ms
    assert frame.deadline_ms == 50.0
    assert 0 < frame.camera_transport_ms < 200 and 0 < frame.camera_decode_ms < 200
    assert frame.camera_wait_ms >= frame.wait_ms * 0.5
    assert math.isnan(frame.chunk_transport_ms), "no executor answers here"


def test_only_the_inference_thread_touches_the_backend(
    active: PolicyNode, policy: ScriptedPolicy, probe: Probe, robot: FakeRobot
) -> None:
    probe.wait(lambda: len(policy.backend.steps) > 2, "frames")
    assert probe.transition(NODE, "deactivate") and probe.transition(NODE, "cleanup")
    assert policy.backend.threads == {"inference"}
    assert policy.backend.closed == 1


@pytest.mark.parametrize(
    ("state", "level", "said"),
    [
        (RealtimeState("SCHED_FIFO 30"), OK, "chunks on time"),
        (RealtimeState(refusals=("realtime_priority 30 is not permitted",)), WARN, "permitted"),
    ],
)
def test_frames_and_not_loading_run_at_the_priority_that_is_asked_for(
    make: Callable[..., PolicyNode],
    probe: Probe,
    robot: FakeRobot,
    monkeypatch: pytest.MonkeyPatch,
    state: RealtimeState,
    level: bytes,
    said: str,
) -> None:
    asked: list[tuple[str, int, bool]] = []

    def enter(priority: int, lock_memory: bool) -> RealtimeState:
        asked.append((threading.current_thread().name, priority, lock_memory))
        return state

    monkeypatch.setattr(policy_node, "enter_realtime", enter)
    make(realtime_priority=30)
    assert probe.transition(NODE, "configure") and not asked
    assert probe.transition(NODE, "activate") and asked == [("inference", 30, False)]
    values = probe.diagnosis(INFERENCE, level, said)
    assert values["scheduler"] == state.scheduler


def test_callbacks_and_services_do_not_wait_for_inference(
    active: PolicyNode, policy: ScriptedPolicy, probe: Probe, robot: FakeRobot
) -> None:
    latencies = probe.listen(FrameLatency, f"{NODE}/frame_latency")
    probe.wait(lambda: latencies, "a first frame")
    policy.backend.gate = gate = threading.Event()
    policy.backend.denoising.clear()
    probe.wait(policy.backend.denoising.is_set, "a frame that hangs")
    try:
        record = active._inputs.records["base_0_rgb"]  # type: ignore[union-attr]
        before = record.received
        probe.wait(lambda: record.received > before + 5, "images while inference hangs")
        assert probe.state(NODE) == "active"
        assert probe.set_parameter(NODE, "num_denoise_steps", 4).successful
    finally:
        gate.set()
    seen = len(latencies)
    probe.wait(lambda: len(latencies) > seen + 1, "frames afterwards")
    late, after = latencies[seen], latencies[-1]
    assert late.deadline_missed
    assert after.missed_ticks >= 1, "ticks passed while inference hung"
    assert after.dropped_frames > 0
    assert policy.backend.steps[-1] == 4


@pytest.mark.parametrize(
    ("name", "slot", "topic"),
    [
        ("base", "base_0_rgb", "/camera_base/image_raw"),
        ("wrist", "left_wrist_0_rgb", "/camera_wrist/image_raw"),
        ("joints", "state", "/joint_states"),
    ],
)
def test_an_input_that_is_missing_or_falls_silent_is_named(
    active: PolicyNode, probe: Probe, robot: FakeRobot, name: str, slot: str, topic: str
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    robot.silent = {name}
    probe.diagnosis(INPUTS, ERROR, f"{slot}: missing, none has come ({topic})")
    assert not chunks
    robot.silent = set()
    values = probe.diagnosis(INPUTS, OK)
    assert float(values[f"{slot}_age_s"]) < 0.2 and float(values[f"{slot}_rate_hz"]) > 1
    robot.silent = {name}
    probe.diagnosis(INPUTS, ERROR, f"{slot}: stale")
    probe.diagnosis(INFERENCE, STALE, "no chunk for")
    quiet = len(chunks)
    probe.spin_for(0.3)
    assert len(chunks) == quiet, "no inference on a stale input"


def test_skewed_old_future_and_unstamped_inputs_are_refused(
    active: PolicyNode, probe: Probe, robot: FakeRobot
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    robot.age_s["wrist"] = 0.15
    probe.diagnosis(INPUTS, ERROR, "left_wrist_0_rgb: skewed")
    robot.age_s["wrist"] = 0.5
    probe.diagnosis(INPUTS, ERROR, "left_wrist_0_rgb: stale")
    robot.age_s["wrist"] = -1.0
    probe.diagnosis(INPUTS, ERROR, "left_wrist_0_rgb: future")
    probe.call(Trigger, f"{NODE}/reset", Trigger.Request())
    robot.age_s["wrist"] = 0.0
    robot.zero_stamps = {"wrist"}
    probe.diagnosis(INPUTS, ERROR, "/camera_wrist/image_raw refused: its stamp is zero")
    before = len(chunks)
    assert probe.set_parameter(NODE, "accept_zero_stamps", True).successful
    probe.diagnosis(INPUTS, OK)
    probe.wait(lambda: len(chunks) > before, "a chunk")


def test_messages_that_cannot_be_used_are_counted_with_their_reason(
    active: PolicyNode, probe: Probe, robot: FakeRobot
) -> None:
    robot.encoding = "mono16"
    values = probe.diagnosis(INPUTS, ERROR, "/camera_base/image_raw refused: encoding 'mono16'")
    assert int(values["base_0_rgb_refused"]) > 0
    robot.encoding = "bgr8"
    probe.diagnosis(INPUTS, OK)
    robot.joint_names = JOINTS[:3]
    probe.diagnosis(INPUTS, ERROR, "JointState lacks wrist, suction")


def test_the_newest_of_topic_and_parameter_is_the_instruction(
    active: PolicyNode, probe: Probe, policy: ScriptedPolicy
) -> None:
    robot = FakeRobot(probe, instruction=None)
    probe.diagnosis(INPUTS, ERROR, "prompt: missing")
    for text, give in (
        ("from the parameter", lambda t: probe.set_parameter(NODE, "instruction", t)),
        ("from the topic", robot.say),
        ("", robot.say),
        ("again", lambda t: probe.set_parameter(NODE, "instruction", t)),
    ):
        give(text)
        probe.wait(lambda t=text: policy.observations and policy.observations[-1].prompt == t, text)  # type: ignore[misc]


def test_a_refused_chunk_is_not_published_and_diagnosed(
    active: PolicyNode, probe: Probe, policy: ScriptedPolicy, robot: FakeRobot
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    latencies = probe.listen(FrameLatency, f"{NODE}/frame_latency")
    probe.wait(lambda: chunks and latencies, "a chunk")
    policy.actions = np.full((10, 5), np.nan, np.float32)
    probe.wait(lambda: "refused: joint base_yaw row 0" in latencies[-1].decision, "a refusal")
    probe.diagnosis(INFERENCE, ERROR, "last chunk refused: joint base_yaw row 0")
    before = len(chunks)
    probe.spin_for(0.2)
    assert len(chunks) == before
    policy.actions = None
    probe.wait(lambda: len(chunks) > before, "a chunk again")


def test_limits_refuse_a_chunk_before_it_is_published(
    make: Callable[..., PolicyNode], probe: Probe, policy: ScriptedPolicy, robot: FakeRobot
) -> None:
    make(limits__upper=[1.0] * 5)
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    probe.diagnosis(INFERENCE, ERROR, "joint elbow row 0: 1.5 is outside [-inf, 1]")


def test_a_wrong_instruction_refuses_frames_and_leaves_the_node_active(
    active: PolicyNode, probe: Probe, policy: ScriptedPolicy, robot: FakeRobot
) -> None:
    def too_long(observation: Any) -> None:
        if len(observation.prompt) > 100:
            raise ValueError("the prompt takes 99 tokens")

    policy.on_observation = too_long
    probe.set_parameter(NODE, "instruction", "pick up " * 50)
    probe.diagnosis(INFERENCE, ERROR, "the prompt takes 99 tokens")
    assert probe.state(NODE) == "active"
    probe.set_parameter(NODE, "instruction", "pick up the red cube")
    probe.diagnosis(INFERENCE, OK)


def test_an_inference_failure_leads_to_unconfigured_and_recovers(
    active: PolicyNode, probe: Probe, policy: ScriptedPolicy, robot: FakeRobot
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    probe.wait(lambda: chunks, "a chunk")
    policy.backend.fails = RuntimeError("CUDA error: device lost")
    probe.diagnosis(LIFECYCLE, ERROR, "CUDA error: device lost")
    assert probe.state(NODE) == "unconfigured"
    assert policy.backend.closed == 1
    policy.backend.fails = None
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    before = len(chunks)
    probe.wait(lambda: len(chunks) > before, "a chunk after the recovery")
    probe.diagnosis(LIFECYCLE, OK, "active")


def test_after_a_reset_chunks_come_from_newer_inputs(
    active: PolicyNode, probe: Probe, policy: ScriptedPolicy, robot: FakeRobot
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    probe.wait(lambda: chunks, "a chunk")
    policy.backend.gate = threading.Event()
    policy.backend.denoising.clear()
    probe.wait(policy.backend.denoising.is_set, "a frame under way")
    before, asked_s = len(chunks), probe.now_s()
    robot.age_s = dict.fromkeys(robot.age_s, 0.1)
    threading.Timer(0.3, policy.backend.gate.set).start()
    assert probe.call(Trigger, f"{NODE}/reset", Trigger.Request()).success
    probe.wait(lambda: len(chunks) > before, "a chunk after the reset")
    assert all(seconds(chunk.observed_at) >= asked_s for chunk in chunks[before:])
    assert chunks[-1].instruction == "pick up the red cube", "the instruction is a setting"


def test_reset_says_when_there_is_nothing_to_reset(
    make: Callable[..., PolicyNode], probe: Probe
) -> None:
    make()
    answer = probe.call(Trigger, f"{NODE}/reset", Trigger.Request())
    assert not answer.success and "unconfigured" in answer.message


def test_configuring_is_shown_while_loading_and_progress_is_told(
    make: Callable[..., PolicyNode], probe: Probe, load: list[Load], policy: ScriptedPolicy
) -> None:
    gate = threading.Event()

    def slow(request: Any, say: Callable[[str], None]) -> ScriptedPolicy:
        say("warming up")
        assert gate.wait(30.0)
        return policy

    load[0] = slow
    node = make()
    task = node.executor.create_task(node.start)
    probe.diagnosis(LIFECYCLE, OK, "configuring: warming up")
    assert probe.state(NODE) == "configuring"
    assert not probe.set_parameter(NODE, "backend", "other").successful
    assert not probe.transition(NODE, "configure")
    gate.set()
    probe.wait(task.done, "the start")
    assert task.result() and probe.state(NODE) == "active"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"joint_names": ["a"]}, "joint_names has 1 names; checkpoint 'demo' wants a state of 5"),
        ({"action_names": ["a", "b"]}, "action_names has 2 names"),
        ({"camera__wrist__slot": "nose"}, "slot is 'nose'; the checkpoint's inputs are: base_0"),
        ({"limits__upper": [1.0, 2.0]}, "limits.upper has 2 values for 5 joints"),
        ({"limits__upper": [0.0] * 5, "limits__lower": [1.0] * 5}, "exceeds upper"),
    ],
)
def test_parameters_that_do_not_fit_the_checkpoint_fail_configure_and_free_it(
    make: Callable[..., PolicyNode],
    probe: Probe,
    policy: ScriptedPolicy,
    changes: dict[str, Any],
    reason: str,
) -> None:
    make(**changes)
    assert not probe.transition(NODE, "configure")
    probe.diagnosis(LIFECYCLE, ERROR, reason)
    assert probe.state(NODE) == "unconfigured"
    assert policy.backend.closed == 1


def test_an_unexpected_error_while_loading_is_told_and_recovered_from(
    make: Callable[..., PolicyNode], probe: Probe, load: list[Load], policy: ScriptedPolicy
) -> None:
    def broken(*_: Any) -> ScriptedPolicy:
        raise RuntimeError("CUDA out of memory")

    works, load[0] = load[0], broken
    make()
    assert not probe.transition(NODE, "configure")
    probe.diagnosis(LIFECYCLE, ERROR, "configuring: RuntimeError: CUDA out of memory")
    assert probe.state(NODE) == "unconfigured"
    load[0] = works
    assert probe.transition(NODE, "configure")
    assert probe.state(NODE) == "inactive"


def test_no_chunk_while_inactive_and_sequence_begins_anew(
    active: PolicyNode, probe: Probe, robot: FakeRobot
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    probe.wait(lambda: len(chunks) > 3, "chunks")
    assert probe.transition(NODE, "deactivate")
    probe.spin_for(0.1)
    before = len(chunks)
    probe.spin_for(0.4)
    assert len(chunks) == before
    probe.diagnosis(INFERENCE, STALE, "not active")
    assert probe.transition(NODE, "activate")
    probe.wait(lambda: len(chunks) > before, "chunks again")
    assert chunks[before].sequence == 1


def test_the_rate_follows_the_live_parameter(
    active: PolicyNode, probe: Probe, robot: FakeRobot, policy: ScriptedPolicy
) -> None:
    probe.wait(lambda: len(policy.backend.steps) > 2, "frames")
    assert probe.set_parameter(NODE, "control_rate_hz", 2.0).successful
    probe.wait(lambda: len(policy.backend.steps) > 3, "a frame at the new rate")
    begun, before = time.monotonic(), len(policy.backend.steps)
    probe.wait(lambda: len(policy.backend.steps) >= before + 2, "two frames")
    assert time.monotonic() - begun > 0.7, "two periods of 0.5 s, the first one begun"


def test_shutdown_frees_the_policy_from_every_state(
    make: Callable[..., PolicyNode], probe: Probe, policy: ScriptedPolicy
) -> None:
    for closed, labels in enumerate(([], ["configure"], ["configure", "activate"])):
        node = make()
        for label in labels:
            assert probe.transition(NODE, label)
        assert probe.transition(NODE, "shutdown")
        assert probe.state(NODE) == "finalized"
        assert policy.backend.closed == closed
        probe.release(node)


def test_closing_waits_a_little_for_a_thread_that_is_busy(
    make: Callable[..., PolicyNode],
    probe: Probe,
    load: list[Load],
    policy: ScriptedPolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_node, "CLOSE_TIMEOUT_S", 0.1)
    gate, loading = threading.Event(), threading.Event()

    def slow(request: Any, say: Callable[[str], None]) -> ScriptedPolicy:
        loading.set()
        assert gate.wait(30.0)
        return policy

    load[0] = slow
    node = make()
    node.executor.create_task(node.start)
    probe.wait(loading.is_set, "the load")
    thread = node._thread
    assert node.close() is False, "said to have ended while it loads"
    gate.set()
    assert thread is not None and thread.join(30.0)


def test_each_input_has_a_status_of_its_own_and_thresholds_are_live(
    active: PolicyNode, probe: Probe, robot: FakeRobot
) -> None:
    for task in ("camera base", "camera wrist", "state", "instruction"):
        probe.diagnosis(f"{NODE}: {task}", OK)
    values = probe.diagnosis(f"{NODE}: camera wrist", OK)
    assert float(values["rate_hz"]) > 16 and values["topic"] == "/camera_wrist/image_raw"
    assert probe.set_parameter(NODE, "input_rate_warn_ratio", 10.0).successful
    probe.diagnosis(f"{NODE}: camera wrist", WARN, "below 200 Hz")
    assert probe.set_parameter(NODE, "input_rate_warn_ratio", 0.1).successful
    robot.silent = {"wrist"}
    probe.diagnosis(f"{NODE}: camera wrist", ERROR, "stale")
    probe.diagnosis(f"{NODE}: camera base", OK)

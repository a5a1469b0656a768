"""Reuse set while the node runs: what the decisions, the chunks and the diagnostics show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import Probe
from support.scripted_policy import ScriptedPolicy

from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros import policy_node
from thor_policy_ros.ros.decision_record import DecisionRecord, kind_of, reuse_report
from thor_policy_ros.ros.diagnostics import OK, STALE, WARN
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.reuse_parameters import REUSE, reuse_refusal, reuse_rules
from thor_policy_ros.ros.verified_loading import LoadedPolicy
from thor_policy_ros.runtime.reuse import ReuseRules
from thor_policy_ros.types import FrameTiming, StepResult, Verification

NODE = "policy_node"
DIAGNOSIS = f"{NODE}: reuse"
VALUES = {
    "joint_names": list(JOINTS),
    "camera.base.slot": "base_0_rgb",
    "camera.wrist.slot": "left_wrist_0_rgb",
    "control_rate_hz": 20.0,
}


@pytest.fixture
def robot(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRobot]:
    """A robot at rest, and an active policy node."""
    fine = Verification(ok=True, cosine=1.0, max_abs_error=0.0)
    loaded = LoadedPolicy(ScriptedPolicy(), fine)
    monkeypatch.setattr(policy_node, "load_policy", lambda request, references, say: loaded)
    node = PolicyNode(parameter_overrides=[Parameter(n, value=v) for n, v in VALUES.items()])
    probe.host(node)
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    yield FakeRobot(probe)
    node.close()
    node.destroy_node()


@pytest.fixture
def frames(robot: FakeRobot, probe: Probe) -> list[FrameLatency]:
    frames = probe.listen(FrameLatency, f"{NODE}/frame_latency")
    probe.wait(lambda: len(frames) > 2, "frames")
    return frames


@pytest.fixture
def set_parameter(probe: Probe) -> Callable[[str, Any], None]:
    def set_parameter(name: str, value: Any) -> None:
        result = probe.set_parameter(NODE, name, value)
        assert result.successful, result.reason

    return set_parameter


def decisions(frames: list[FrameLatency], count: int, probe: Probe) -> list[str]:
    """Of the next frames, the first two left out: they may be older than what was set."""
    seen = len(frames) + 2
    probe.wait(lambda: len(frames) >= seen + count, f"{count} frames")
    return [frame.decision for frame in frames[seen : seen + count]]


def test_kv_reuse_freq_shows_in_the_frames_at_once(
    frames: list[FrameLatency], probe: Probe, set_parameter: Callable[[str, Any], None]
) -> None:
    assert {frame.decision for frame in frames[1:]} == {"refill: age"}
    set_parameter("reuse_mode", "fixed")
    set_parameter("kv_reuse_freq", 3)
    found = decisions(frames, 9, probe)
    assert found.count("refill: age") >= 3, "also where ticks were missed"
    assert found.count("reuse") >= 2
    assert set(found) == {"refill: age", "reuse"}
    for frame in frames[-9:]:
        assert frame.prefix_reused == (frame.decision == "reuse")
        assert (frame.prefill_ms == 0.0) == frame.prefix_reused
    values = probe.diagnosis(DIAGNOSIS, OK, "fixed: refills at least every 3 ticks")
    assert (values["mode"], values["reuse_every"]) == ("fixed", "3")
    assert int(values["reuse_frames"]) > 0 and int(values["refill_frames"]) > 0
    set_parameter("kv_reuse_freq", 1)
    assert set(decisions(frames, 3, probe)) == {"refill: age"}


def test_a_new_instruction_a_changed_image_and_a_reset_refill_and_say_so(
    robot: FakeRobot,
    frames: list[FrameLatency],
    probe: Probe,
    set_parameter: Callable[[str, Any], None],
) -> None:
    def comes(decision: str) -> None:
        probe.wait(lambda: any(f.decision == decision for f in frames), decision)

    set_parameter("reuse_mode", "fixed")
    set_parameter("kv_reuse_freq", 100)
    set_parameter("kv_refresh_threshold", 0.05)
    comes("reuse")
    robot.say("pick up the blue cube")
    comes("refill: prompt changed")
    robot._image = np.full((32, 32, 3), 177, np.uint8)
    comes("refill: image changed: base_0_rgb, left_wrist_0_rgb")
    values = probe.diagnosis(DIAGNOSIS, OK)
    assert float(values["image_change_base_0_rgb"]) >= 0.0
    set_parameter("kv_max_age_ms", 120.0)
    comes("refill: age in ms")
    set_parameter("kv_max_age_ms", 0.0)
    assert probe.call(Trigger, f"{NODE}/reset", Trigger.Request()).success
    comes("refill: reset")


def test_the_chunk_in_hand_goes_on_unless_set_otherwise_and_is_no_fault(
    frames: list[FrameLatency], probe: Probe, set_parameter: Callable[[str, Any], None]
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    set_parameter("kv_reuse_freq", 4)
    found = decisions(frames, 12, probe)
    assert found.count("continue") >= 4 and "refill: age" in found
    skipped = [frame for frame in frames if frame.decision == "continue"]
    assert all(frame.denoise_ms == 0.0 for frame in skipped)
    late = sum(frame.deadline_missed for frame in skipped)
    assert late <= 1, "a busy machine may hold one frame up, but none misses by going on"
    sequences = [chunk.sequence for chunk in chunks]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    values = probe.diagnosis(f"{NODE}: inference", OK, "chunks on time")
    assert values["refused_chunks"] == "0" and int(values["unwanted_chunks"]) > 0


def test_deadline_takes_fewer_steps_when_time_is_short(
    frames: list[FrameLatency], probe: Probe, set_parameter: Callable[[str, Any], None]
) -> None:
    """The engine says 3 ms for the flow: 6 ms with the prefix, and a little of the node's own."""
    set_parameter("reuse_mode", "deadline")
    probe.wait(lambda: frames[-1].decision == "refill: age", "a full frame in time")
    probe.diagnosis(DIAGNOSIS, OK, "deadline: refills every tick")
    set_parameter("deadline_ms", 0.5)
    found = decisions(frames, 9, probe)
    assert set(found) <= {"continue", "hold", "refill: overdue (1 step; late)"}
    assert 2 <= found.count("refill: overdue (1 step; late)") <= 9


def test_what_does_not_go_together_is_refused(
    frames: list[FrameLatency], probe: Probe, set_parameter: Callable[[str, Any], None]
) -> None:
    refused = probe.set_parameter(NODE, "reuse_mode", "clever")
    assert not refused.successful
    assert "choose one of: 'fixed', 'adaptive', 'deadline', 'continue'" in refused.reason
    assert not probe.set_parameter(NODE, "kv_refresh_threshold", 1.5).successful
    set_parameter("reuse_mode", "adaptive")
    probe.diagnosis(DIAGNOSIS, WARN, "reuse_mode adaptive does nothing while kv_reuse_freq is 1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"backend": "pytorch_pipelined"}, ""),
        ({"backend": "pytorch", "kv_reuse_freq": 3, "reuse_mode": "deadline"}, ""),
        ({"backend": "pytorch_pipelined", "kv_reuse_freq": 2}, "set kv_reuse_freq to 0 or 1"),
        ({"backend": "pytorch_pipelined", "reuse_mode": "deadline"}, "set reuse_mode to continue"),
    ],
)
def test_a_pipelined_backend_refills_every_frame(changes: dict[str, Any], said: str) -> None:
    values = {"backend": "pytorch", **{row.name: row.default for row in REUSE}, **changes}
    assert said in reuse_refusal(values) and bool(said) == bool(reuse_refusal(values))


def test_the_defaults_compute_nothing_from_an_old_prefix() -> None:
    values = {row.name: row.default for row in REUSE}
    assert reuse_rules(values, 100.0) == ReuseRules(mode="continue", deadline_ms=100.0)


class FakeRunner:
    image_changes = {"base": 0.5}
    costs = DecisionRecord().costs


def test_a_record_counts_kinds_and_keeps_the_last_reason() -> None:
    record = DecisionRecord()
    for decision in ("refill: image changed: base (kept wrist)", "reuse", "reuse (2 steps)", ""):
        record.add(StepResult(None, FrameTiming(), decision), FakeRunner())  # type: ignore[arg-type]
    assert record.kinds == {"refill": 1, "reuse": 2}
    assert record.last == "reuse (2 steps)"
    assert record.last_refill == "image changed: base (kept wrist)"
    copied = record.copy()
    record.add(StepResult(None, FrameTiming(), "hold"), FakeRunner())  # type: ignore[arg-type]
    assert copied.kinds["hold"] == 0 and copied.image_changes == {"base": 0.5}


@pytest.mark.parametrize(
    ("decision", "kind"),
    [("refill: age", "refill"), ("reuse (2 steps)", "reuse"), ("hold", "hold")],
)
def test_kinds(decision: str, kind: str) -> None:
    assert kind_of(decision) == kind


def test_a_report_before_the_first_frame() -> None:
    assert reuse_report(None, ReuseRules(), 1, 10).level == STALE
    report = reuse_report(DecisionRecord(), ReuseRules(), 2, 10)
    assert report.level == OK and report.values["reuse_frames"] == 0

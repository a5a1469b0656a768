"""The policy node tells of a frozen camera, and makes no chunk of it where that is set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import Probe
from support.scripted_policy import ScriptedPolicy

from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros import policy_node
from thor_policy_ros.ros.diagnostics import ERROR, OK, STALE, WARN
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.verified_loading import LoadedPolicy
from thor_policy_ros.types import Verification

NODE = "policy_node"
CAMERA = f"{NODE}: camera base"


class MovingRobot(FakeRobot):
    """Every image differs from the one before, until it freezes."""

    frozen = False

    def publish(self) -> None:
        if not self.frozen:
            self._image = np.random.default_rng().integers(0, 255, (32, 32, 3), np.uint8)
        super().publish()


def said(probe: Probe, name: str) -> DiagnosticStatus:
    return probe.diagnostics.get(name, DiagnosticStatus(level=STALE))


@pytest.fixture
def active(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyNode]:
    fine = Verification(ok=True, cosine=1.0, max_abs_error=0.0)
    loaded = LoadedPolicy(ScriptedPolicy(), fine)
    monkeypatch.setattr(policy_node, "load_policy", lambda request, references, say: loaded)
    values = {
        "joint_names": list(JOINTS),
        "camera.base.slot": "base_0_rgb",
        "camera.wrist.slot": "left_wrist_0_rgb",
        "control_rate_hz": 20.0,
        "frozen_camera_after_s": 0.5,
    }
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    node = PolicyNode(parameter_overrides=overrides)
    probe.host(node)
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    yield node
    node.close()
    node.destroy_node()


def test_it_is_told_and_where_set_no_chunk_is_made_of_it(probe: Probe, active: PolicyNode) -> None:
    robot = MovingRobot(probe)
    robot.noise = False
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")

    def level() -> bytes:
        return said(probe, CAMERA).level

    probe.wait(lambda: len(chunks) > 5, "chunks")
    probe.wait(lambda: level() == OK, "a camera that is fine")

    robot.frozen = True
    probe.wait(lambda: "frozen, the same picture" in said(probe, CAMERA).message, "a word")
    assert level() == WARN
    seen = len(chunks)
    probe.wait(lambda: len(chunks) > seen + 3, "chunks all the same: it only warns")

    assert probe.set_parameter(NODE, "frozen_camera_action", "stop").successful
    probe.wait(lambda: level() == ERROR, "an error")
    assert "base_0_rgb: frozen" in said(probe, f"{NODE}: inputs").message
    seen = len(chunks)
    probe.spin_for(0.5)
    assert len(chunks) == seen

    robot.frozen = False
    probe.wait(lambda: len(chunks) > seen + 3, "chunks of pictures that change")
    probe.wait(lambda: level() == OK, "a camera that is fine again")

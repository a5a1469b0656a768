"""What `thor-policy doctor` sees of a real graph: rates, ages, types and QoS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import Probe

from thor_policy_ros.evaluation.checks import FINE, WRONG
from thor_policy_ros.evaluation.graph_checks import check_graph
from thor_policy_ros.ros.graph_facts import inputs_of, values_of_file


def write(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump({"/**/policy_node": {"ros__parameters": values}}))
    return path


def seen(probe: Probe, config: Path) -> dict[str, Any]:
    """The facts, gathered by a process of its own while the probe publishes."""
    command = [sys.executable, "-m", "thor_policy_ros.ros.graph_facts"]
    command += ["--config", str(config), "--seconds", "2", "--node", "/nobody/policy_node"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        probe.wait(lambda: process.poll() is not None, "the facts")
        assert process.returncode == 0 and process.stdout is not None
        facts: dict[str, Any] = json.loads(process.stdout.read())
    return facts


def test_parameters_left_out_have_the_nodes_defaults(tmp_path: Path) -> None:
    values = values_of_file(write(tmp_path / "p.yaml", cameras=["top"], control_rate_hz=5.0))
    assert [one.topic for one in inputs_of(values)] == ["camera_top/image_raw"]
    assert (values["control_rate_hz"], values["image_reliability"]) == (5.0, "best_effort")
    compressed = {**values, "camera.top.transport": "compressed", "joint_names": ["a"]}
    kinds = [one.kind for one in inputs_of(compressed)]
    assert kinds == ["sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/JointState"]
    with pytest.raises(ValueError, match="cameras wants a list"):
        values_of_file(write(tmp_path / "q.yaml", cameras="top"))


@pytest.mark.node
def test_a_real_graph_is_seen_and_judged(probe: Probe, tmp_path: Path) -> None:
    robot = FakeRobot(probe)
    robot.zero_stamps = {"wrist"}
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    probe.create_publisher(CompressedImage, "/odd", best_effort)
    config = write(
        tmp_path / "p.yaml",
        joint_names=list(JOINTS),
        cameras=["base", "wrist", "odd"],
        image_reliability="reliable",
        **{
            "camera.base.topic": "/camera_base/image_raw",
            "camera.wrist.topic": "/camera_wrist/image_raw",
            "camera.odd.topic": "/odd",
        },
    )
    facts = seen(probe, config)
    inputs = {one["name"]: one for one in facts["inputs"]}
    assert inputs["camera base"]["rate_hz"] > 10
    assert 0 <= inputs["camera base"]["age_s"] < 0.2
    assert inputs["camera wrist"]["zero_stamps"] == inputs["camera wrist"]["received"] > 0
    assert "/probe publishes sensor_msgs/msg/CompressedImage" in inputs["camera odd"]["other_types"]
    assert inputs["state"]["topic"] == "/nobody/joint_states" and not inputs["state"]["publishers"]
    levels = {check.subject: check.level for check in check_graph(facts)}
    assert levels["camera base"] == FINE
    assert [levels[n] for n in ("camera wrist", "camera odd", "state")] == [WRONG] * 3
    assert facts["rmw"].startswith("rmw_") and "/probe" in facts["nodes"]


@pytest.mark.node
def test_a_publisher_that_is_shut_out_is_named(probe: Probe, tmp_path: Path) -> None:
    from sensor_msgs.msg import Image

    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    probe.create_publisher(Image, "/top", best_effort)
    parameters = {"camera.top.topic": "/top", "cameras": ["top"], "image_reliability": "reliable"}
    facts = seen(probe, write(tmp_path / "p.yaml", **parameters))
    (top,) = facts["inputs"]
    assert len(top["mismatches"]) == 1 and "/probe" in top["mismatches"][0]

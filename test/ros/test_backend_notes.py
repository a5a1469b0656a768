"""What a loaded engine says of itself reaches /diagnostics: the real FP8 engine in a real node."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rclpy.parameter import Parameter
from support.fake_robot import JOINTS, FakeRobot
from support.ros_probe import Probe

from thor_policy_ros.backends import fp8_mlp
from thor_policy_ros.backends.fp8_scales import (
    Fp8Scales,
    LayerRanges,
    Range,
    scales_path,
    write_scales,
)
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros.diagnostics import OK, WARN
from thor_policy_ros.ros.policy_node import PolicyNode

NODE = "policy_node"
BACKEND = f"{NODE}: backend"
NO_SCALES = (
    "no FP8 scales beside the checkpoint: dynamic ones are used; run `thor-policy calibrate`"
)
STAYS_DENSE = "MLPs of layers 0 stay bfloat16: they overflow E4M3"
OVERFLOWING = LayerRanges(Range(1.0, 400.0), Range(1.0, 1.5))


@pytest.fixture
def checkpoint(arm_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(arm_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def fp8_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch multiplies FP8 on a CPU too, slowly: the name is unavailable there by decision."""
    monkeypatch.setattr(fp8_mlp, "missing", tuple)
    monkeypatch.setattr(fp8_mlp, "_missing_on", lambda device: ())


@pytest.fixture
def node(probe: Probe, checkpoint: Path, fp8_on_a_cpu: None) -> Iterator[PolicyNode]:
    values = {
        "joint_names": list(JOINTS),
        "camera.base.slot": "base_0_rgb",
        "camera.wrist.slot": "left_wrist_0_rgb",
        "checkpoint": str(checkpoint),
        "device": "cpu",
        "dtype": "bfloat16",
        "cpu_threads": 1,
        "num_denoise_steps": 2,
        "backend": "fp8_mlp_freq1",
    }
    FakeRobot(probe)
    node = PolicyNode(parameter_overrides=[Parameter(n, value=v) for n, v in values.items()])
    probe.host(node)
    yield node
    node.close()
    node.destroy_node()


def runs(probe: Probe, backend: str, chunks: list[ActionChunk]) -> None:
    probe.wait(lambda: chunks and chunks[-1].backend == backend, f"a chunk of {backend}")


def test_missing_scales_are_a_warning_until_a_backend_without_it_takes_over(
    node: PolicyNode, probe: Probe
) -> None:
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    assert probe.diagnosis(BACKEND, WARN, NO_SCALES)["verified_as"] == "fp8"
    for backend, level, said in (
        ("pytorch", OK, "verified"),
        ("fp8_mlp_freq1", WARN, NO_SCALES),
        ("fp8_mlp_dynamic", OK, "verified"),
    ):
        assert probe.set_parameter(NODE, "backend", backend).successful
        runs(probe, backend, chunks)
        probe.wait(lambda name=backend: active(probe) == name, f"{backend} in the diagnostics")
        probe.diagnosis(BACKEND, level, said)


def test_layers_that_stay_bfloat16_are_a_fact_and_no_warning(
    node: PolicyNode, probe: Probe, checkpoint: Path
) -> None:
    digest = checkpoint_hash(checkpoint)
    write_scales(checkpoint, Fp8Scales(digest, 99.9, 9, "test", (OVERFLOWING,)))
    assert scales_path(checkpoint, digest).is_file()
    assert probe.transition(NODE, "configure")
    assert probe.diagnosis(BACKEND, OK, "verified")["notes"] == STAYS_DENSE


def active(probe: Probe) -> str:
    values = probe.diagnostics[BACKEND].values
    return next(value.value for value in values if value.key == "active")

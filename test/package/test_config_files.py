"""The ROS parameter files of the published policies fit the policies that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import thor_policy_ros
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.named_configs import NAMED

CONFIG = Path(thor_policy_ros.__file__).resolve().parents[1] / "config"
PUBLISHED = ("pi05_libero", "pi05_droid", "pi05_aloha")


def parameters(name: str, node: str) -> dict[str, Any]:
    sections = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    found: dict[str, Any] = sections.get(f"/**/{node}", {}).get("ros__parameters", {})
    return found


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> tuple[dict[str, Any], PolicyConfig]:
    found = parameters(request.param, "policy_node")
    assert found["policy_config"] == request.param
    return found, NAMED[request.param]


def test_every_camera_feeds_an_input_of_its_own(
    published: tuple[dict[str, Any], PolicyConfig],
) -> None:
    found, config = published
    slots = [found[f"camera.{name}.slot"] for name in found["cameras"]]
    topics = [found[f"camera.{name}.topic"] for name in found["cameras"]]
    assert slots == list(config.camera_slots[: len(slots)])
    assert len(set(topics)) == len(topics)


def test_joints_and_actions_are_as_many_as_the_policys(
    published: tuple[dict[str, Any], PolicyConfig],
) -> None:
    found, config = published
    joints = found.get("joint_names", [])
    assert len(joints) == (config.state_dim if config.state_in_prompt else 0)
    actions = found.get("action_names", joints)
    assert len(set(actions)) == len(actions) == config.action_dim


def test_limits_are_given_for_every_action(
    published: tuple[dict[str, Any], PolicyConfig],
) -> None:
    found, config = published
    lower, upper = found["limits.lower"], found["limits.upper"]
    assert len(lower) == len(upper) == config.action_dim
    assert all(low < high for low, high in zip(lower, upper, strict=True))


def test_a_chunk_lasts_until_the_next_one(
    published: tuple[dict[str, Any], PolicyConfig],
) -> None:
    found, config = published
    lasts_s = (config.model.action_horizon - 1) * config.action_dt_s
    assert 2 / found["control_rate_hz"] <= lasts_s


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_joint_positions_go_to_the_executor(name: str) -> None:
    """LIBERO's actions are displacements, DROID's velocities."""
    executor = parameters(name, "chunk_executor_node")
    assert bool(executor) is (name == "pi05_aloha")
    if executor:
        assert executor["joint_names"] == parameters(name, "policy_node")["joint_names"]
        for bound in ("lower", "upper", "velocity", "acceleration"):
            assert len(executor[f"limits.{bound}"]) == NAMED[name].action_dim


def test_only_liberos_pictures_are_turned() -> None:
    turned = {
        name: [parameters(name, "policy_node").get(f"camera.{camera}.rotate_180", False)
               for camera in parameters(name, "policy_node")["cameras"]]
        for name in PUBLISHED
    }  # fmt: skip
    assert all(turned["pi05_libero"])
    assert not any(turned["pi05_droid"] + turned["pi05_aloha"])

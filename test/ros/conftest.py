"""rclpy and a probe for the tests of the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from support.arm_checkpoint import write_arm_checkpoint
from support.ros_probe import Probe, init_ros


@pytest.fixture(scope="session", autouse=True)
def ros() -> Iterator[None]:
    init_ros()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def probe() -> Iterator[Probe]:
    with Probe() as node:
        yield node


@pytest.fixture(scope="session")
def arm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arm_checkpoint(tmp_path_factory.mktemp("arm_checkpoint"))

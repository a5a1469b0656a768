"""Settings of the whole test suite: ROS 2 kept to itself, the same examples every time."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest
from hypothesis import settings

# No deadline: on a busy machine the time of an example says nothing. The same examples every
# time: `make test` must not depend on luck; search further with `--hypothesis-profile=search`.
settings.register_profile("same", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile("same")

DOMAINS = range(1, 101)  # Fast DDS maps these to ports below the ephemeral range of Linux
_held: list[IO[bytes]] = []  # locks live as long as the process


def pytest_configure() -> None:
    """Set before rclpy is imported, and inherited by the processes of nodes under test."""
    os.environ["ROS_DOMAIN_ID"] = str(_free_domain())
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"  # off, a wrong field can publish stray memory
    os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="thor_policy_ros_test_log_")
    if "AMENT_PREFIX_PATH" not in os.environ:  # pytest was not started by make
        os.environ["AMENT_PREFIX_PATH"] = sys.prefix
    os.environ["MUJOCO_GL"] = "disable"  # no test may want a screen
    os.environ["HF_HUB_OFFLINE"] = "1"  # nor the network
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # toy sizes: threads only cost


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Recordings first: a process that has had hundreds of nodes is discovered late by a new one,
    and the recorder takes a topic that it cannot see for missing."""
    items.sort(key=lambda item: "test_recording.py" not in item.nodeid)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["ROS_LOG_DIR"], ignore_errors=True)


def pytest_report_header() -> list[str]:
    ros = os.environ.get("ROS_DISTRO") or "wheels of the venv"
    return [f"ROS 2: {ros}, domain {os.environ['ROS_DOMAIN_ID']}, this machine only"]


def _free_domain() -> int:
    """A domain id that no other test run of this machine holds."""
    for domain in DOMAINS:
        path = Path(tempfile.gettempdir()) / f"thor_policy_ros_domain_{domain}.lock"
        try:
            file = path.open("ab")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held by another run, or the file of another user
            continue
        _held.append(file)
        return domain
    raise pytest.UsageError(
        f"all ROS domains {DOMAINS[0]} to {DOMAINS[-1]} are held by other test runs; "
        f"remove {tempfile.gettempdir()}/thor_policy_ros_domain_*.lock"
    )

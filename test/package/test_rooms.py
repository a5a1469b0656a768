"""Who may import whom: the contracts that `make lint` holds do bite, and imports stay cheap."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import thor_policy_ros

PACKAGE = Path(thor_policy_ros.__file__).resolve().parent
ROOT = PACKAGE.parent
OF_ROS = re.compile(r"^(rclpy|cv_bridge|launch\w*|ament_\w+|\w+_(msgs|srvs|interfaces))$")


FORBIDDEN = [
    ("model", "thor_policy_ros.backends", "types <- model"),
    ("backends", "thor_policy_ros.runtime", "types <- model"),
    ("runtime", "thor_policy_ros.training", "types <- model"),
    ("evaluation", "thor_policy_ros.ros", "types <- model"),
    ("ros", "thor_policy_ros.evaluation", "types <- model"),
    ("sim", "thor_policy_ros.runtime", "sim imports types alone"),
    ("sim", "torch", "sim imports types alone"),
    ("runtime", "thor_policy_ros.sim", "The policy knows no simulator"),
    ("training", "rclpy", "ROS lives in ros/ only"),
    ("evaluation", "sensor_msgs", "ROS lives in ros/ only"),
]


def intruder(room: str, forbidden: str) -> str:
    return f"intruder_{room}_{forbidden.replace('.', '_')}"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What import-linter says of a copy of the package with every forbidden import in it."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(PACKAGE, copy / "thor_policy_ros", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for room, forbidden, _ in FORBIDDEN:
        file = copy / "thor_policy_ros" / room / f"{intruder(room, forbidden)}.py"
        file.write_text(f"import {forbidden}\n")
    linted = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as lint; lint()",
            "--no-logo",
            "--no-cache",
        ],
        cwd=copy,
        env={**os.environ, "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )
    assert linted.returncode != 0, linted.stdout + linted.stderr
    return linted.stdout


@pytest.mark.parametrize(("room", "forbidden", "contract"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(
    verdicts: str, room: str, forbidden: str, contract: str
) -> None:
    lines = verdicts.splitlines()
    assert any(line.startswith(contract) and "BROKEN" in line for line in lines), verdicts
    edge = f"thor_policy_ros.{room}.{intruder(room, forbidden)} -> {forbidden}"
    assert any(edge in line for line in lines), verdicts


def test_ros_is_imported_in_ros_alone() -> None:
    """Also the names that the contracts do not list, and our own messages."""
    strangers = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.parent != PACKAGE / "ros"
        for name in _imported(file)
        if OF_ROS.match(name.split(".")[0]) or name.startswith("thor_policy_ros.msg")
    ]
    assert strangers == []


def test_no_room_for_odds_and_ends() -> None:
    names = {p.stem for p in PACKAGE.rglob("*") if p.is_dir() or p.suffix == ".py"}
    assert names & {"utils", "util", "core", "common", "manager", "helpers", "misc"} == set()


def test_files_hold_one_concept() -> None:
    lengths = {f: len(f.read_text().splitlines()) for f in sorted(PACKAGE.rglob("*.py"))}
    assert {str(f.relative_to(ROOT)): n for f, n in lengths.items() if n > 450} == {}


@pytest.mark.parametrize(
    "module",
    [
        "thor_policy_ros",
        "thor_policy_ros.msg",
        "thor_policy_ros.types",
        "thor_policy_ros.runtime.executor",
        "thor_policy_ros.runtime.latest_frames",
        "thor_policy_ros.runtime.latency",
        "thor_policy_ros.runtime.safety",
        "thor_policy_ros.sim.arm_env",
        "thor_policy_ros.ros.chunk_executor_node",
        "thor_policy_ros.ros.sim_robot_node",
    ],
)
def test_import_does_not_load_torch(module: str) -> None:
    """Torch takes seconds and hundreds of MB, in processes that have no use for it."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _imported(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return names | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}

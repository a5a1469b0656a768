"""Faults are injected into the real nodes; the arithmetic that judges them can say no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from thor_policy_ros.ros.fault_record import CommandLog, FaultResult, judge, table
from thor_policy_ros.ros.fault_scenarios import SCENARIOS
from thor_policy_ros.ros.faults import ALL
from tools.guide_tables import TABLES

RUN = [sys.executable, "-m", "thor_policy_ros.ros.faults"]
VELOCITY, ACCELERATION = np.array([2.0, np.inf]), np.array([10.0, np.inf])


def log_of(
    path: np.ndarray, dt_s: float = 0.01, missing: frozenset[int] = frozenset()
) -> CommandLog:
    log = CommandLog()
    for k, row in enumerate(path):
        if k not in missing:
            log.add(5.0 + k * dt_s, row)
    return log


def judged(log: CommandLog) -> list[str]:
    return judge(log, 0.0, 99.0, 0.01, VELOCITY, ACCELERATION)[3]


def path_at(speed: float, ramp: float = 9.0) -> np.ndarray:
    speeds = np.minimum(np.arange(60) * 0.01 * ramp, speed)
    return np.stack([np.cumsum(speeds) * 0.01, np.arange(60) % 2], axis=1)


def test_a_motion_within_the_limits_passes_also_with_a_command_lost() -> None:
    assert judged(log_of(path_at(1.9))) == []
    assert judged(log_of(path_at(1.9), missing=frozenset({40}))) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (path_at(2.5), "velocity 2.500"),
        (path_at(1.9, ramp=20.0), "acceleration"),
        (np.vstack([path_at(1.0), [[np.nan, 0.0]]]), "not finite"),
        (path_at(1.0) + np.where(np.arange(60) > 40, 0.5, 0.0)[:, None], "velocity"),
    ],
)
def test_what_exceeds_a_limit_fails_the_run(path: np.ndarray, reason: str) -> None:
    assert any(reason in failure for failure in judged(log_of(path)))


def test_there_are_forty_faults_each_with_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in ALL]
    assert len(set(names)) == len(names) >= 40


def test_the_table_has_a_row_for_every_fault() -> None:
    rows = [FaultResult("a_b", "g", saw="x|y", saw_s=0.25, recovered_s=1.0).as_dict()] * 2
    text = table(rows)
    assert text.count("| a b |") == 2 and "x/y" in text and "0.2 s" in text
    assert "| c d | | | | not run: no disk | | |\n" in table(rows, {"c_d": "no disk"})


@pytest.mark.parametrize(
    ("file", "name"), [("faults.json", "faults"), ("faults_two_hosts.json", "link faults")]
)
def test_the_table_in_the_docs_is_that_of_a_run_without_failures(file: str, name: str) -> None:
    root = Path(__file__).parents[2]
    run = json.loads((root / "benchmarks" / "results" / file).read_text())
    assert not any(row["failures"] for row in run["faults"])
    assert f"<!-- table: {name} -->" in (root / "docs" / "faults.md").read_text()
    assert TABLES[name]() == table(run["faults"], run.get("not_run", {}))


@pytest.mark.node
@pytest.mark.slow
def test_the_short_form_leaves_the_robot_safe(tmp_path: Path) -> None:
    found = tmp_path / "faults.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*RUN, "--short", "--json", str(found)],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(found.read_text())["faults"]
    assert [row["name"] for row in rows] == [s.name for s in SCENARIOS if s.short]
    for row in rows:
        assert row["commands"] > 50 and row["recovered_s"] is not None
        assert row["saw"], f"nobody was told of {row['name']}"

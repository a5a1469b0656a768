"""Faults are injected into the real nodes; the arithmetic that judges them can say no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from thor_policy_ros.ros.fault_record import CommandLog, FaultResult, judge, table
from thor_policy_ros.ros.fault_scenarios import SCENARIOS
from thor_policy_ros.ros.faults import ALL, remarkable
from tools.guide_tables import TABLES

RUN = [sys.executable, "-m", "thor_policy_ros.ros.faults"]
VELOCITY, ACCELERATION = np.array([2.0, np.inf]), np.array([10.0, np.inf])


def log_of(
    path: np.ndarray, dt_s: float = 0.01, missing: frozenset[int] = frozenset()
) -> CommandLog:
    """As the executor says it, so that a step is the velocity that leads there."""
    log = CommandLog()
    said = np.diff(path, axis=0, prepend=path[:1]) / 0.01
    for k, row in enumerate(path):
        if k not in missing:
            log.add(5.0 + k * dt_s, row, said[k])
    return log


def moved_by_hand(at_s: float, step: int, leap: float = 0.3, pause_s: float = 0.2) -> CommandLog:
    """Between two commands, told at `at_s`."""
    first, second = log_of(path_at(1.0)[:step]), log_of(path_at(1.0)[step:] + np.array([leap, 0.0]))
    for k, (row, said) in enumerate(zip(second.positions, second.velocities, strict=True)):
        first.add(5.0 + step * 0.01 + pause_s + k * 0.01, row, said)
    first.breaks_s.append(at_s)
    return first


def judged(log: CommandLog) -> list[str]:
    return judge(log, 0.0, 99.0, 0.01, VELOCITY, ACCELERATION).failures


def path_at(speed: float, ramp: float = 9.0) -> np.ndarray:
    speeds = np.minimum(np.arange(60) * 0.01 * ramp, speed)
    return np.stack([np.cumsum(speeds) * 0.01, np.arange(60) % 2], axis=1)


def test_a_motion_within_the_limits_passes_also_with_commands_lost() -> None:
    assert judged(log_of(path_at(1.9))) == []
    lost = judge(
        log_of(path_at(1.9), missing=frozenset({40, 41})), 0.0, 99.0, 0.01, VELOCITY, ACCELERATION
    )
    assert lost.failures == [] and lost.lost == 2


def test_when_a_command_came_says_nothing_about_its_step() -> None:
    """A busy machine: ticks late and then in a row, or all of them at once."""
    assert judged(log_of(path_at(1.9), dt_s=0.001)) == []
    paused = judge(log_of(path_at(1.9), dt_s=0.2), 0.0, 99.0, 0.01, VELOCITY, ACCELERATION)
    assert paused.failures == [] and paused.longest_gap_s == pytest.approx(0.2)
    assert judged(log_of(path_at(2.5), dt_s=0.2)) == ["velocity 2.500 exceeds its limit"]


def begun_again(pause_s: float, speed: float) -> CommandLog:
    """Full speed, nothing for a while, and then commands at `speed` from where it was."""
    log = log_of(path_at(1.0)[:40])
    last = log.positions[-1]
    for k in range(1, 10):
        row = last + np.array([speed * 0.01 * k, 0.0])
        log.add(log.times_s[39] + pause_s + k * 0.01, row, [speed, 0.0])
    return log


def test_after_a_silence_it_may_begin_from_rest_but_not_with_a_jerk() -> None:
    """An executor that was killed, and started again."""
    assert judged(begun_again(1.5, 0.0)) == []
    assert judged(begun_again(1.5, 1.0)) == [], "late on a busy machine"
    assert judged(begun_again(1.5, 0.5)) == ["acceleration 50.00 exceeds its limit"]
    assert judged(begun_again(0.1, 0.0)) == ["acceleration 100.00 exceeds its limit"]


def test_a_robot_moved_by_hand_begins_anew_once_for_each_time_it_was() -> None:
    found = judge(moved_by_hand(5.25, 30), 0.0, 99.0, 0.01, VELOCITY, ACCELERATION)
    assert found.failures == [] and found.begun_anew == 1
    assert found.longest_reset_gap_s == pytest.approx(0.21)
    assert found.longest_gap_s == pytest.approx(0.01)
    assert judged(moved_by_hand(5.25, 30, pause_s=0.0)) == [], "however short the pause"
    assert judged(moved_by_hand(50.0, 30)) == [], "0.3 rad in 0.21 s could be commands lost"
    assert judged(moved_by_hand(50.0, 30, leap=0.9)) == ["a leap of 0.910 rad in 0.210 s"]
    twice = moved_by_hand(5.25, 30)
    twice.add(99.0, [9.0, 0.0], [0.0, 0.0])
    twice.add(99.01, [8.0, 0.0], [0.0, 0.0])
    assert judged(twice) == ["a leap of 1.000 rad in 0.010 s"], "93 s could be commands lost"


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


def test_a_new_process_begins_at_rest_where_the_one_before_was_killed() -> None:
    log = log_of(path_at(1.0)[:30])
    for k in range(3):
        log.add(7.0 + k * 0.01, log.positions[29], [0.0, 0.0])
    assert judged(log) == []


def test_a_command_that_is_not_what_it_says_fails_the_run() -> None:
    log = log_of(path_at(1.0))
    log.positions[40] = log.positions[40] + 0.1
    assert any("a leap of 0.1" in failure for failure in judged(log))


def test_what_a_busy_machine_says_hides_nothing_else() -> None:
    message = "last chunk refused: row 9 is nan; 12% of recent frames missed the deadline"
    assert remarkable(DiagnosticStatus(message=message)) == ["last chunk refused: row # is nan"]
    assert remarkable(DiagnosticStatus(message="tick jitter p99 is 12.0 ms")) == []


def test_there_are_forty_faults_each_with_a_name_of_its_own() -> None:
    names = [scenario.name for scenario in ALL]
    assert len(set(names)) == len(names) >= 40


def test_the_table_has_a_row_for_every_fault() -> None:
    rows = [FaultResult("a_b", "g", saw="x|y", saw_s=0.25, recovered_s=1.0).as_dict()] * 2
    text = table(rows)
    assert text.count("| a b |") == 2 and "x/y" in text and "0.2 s" in text
    assert "| c d | | | | not run: no disk | | |\n" in table(rows, {"c_d": "no disk"})


def test_the_tables_in_the_docs_have_every_fault_and_no_failure() -> None:
    root = Path(__file__).parents[2]
    run = json.loads((root / "benchmarks" / "results" / "faults.json").read_text())
    assert not any(row["failures"] for row in run["faults"])
    assert [row["name"] for row in run["faults"]] == [s.name for s in ALL]
    tables = "".join(TABLES[name]() for name in ("faults", "link faults"))
    assert all(f"| {row['name'].replace('_', ' ')} |" in tables for row in run["faults"])
    assert all(f"not run: {reason}" in tables for reason in run["not_run"].values())
    docs = (root / "docs" / "faults.md").read_text()
    assert "<!-- table: faults -->" in docs and "<!-- table: link faults -->" in docs


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

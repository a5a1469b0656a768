"""The long soak: what it changes and expects, how it judges, and half a minute of it for real."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from thor_policy_ros.evaluation import soak
from thor_policy_ros.ros import long_soak, random_changes
from thor_policy_ros.ros.demo import share_dir
from thor_policy_ros.ros.long_soak_record import LongSoakRecord, Memory, Motion
from thor_policy_ros.ros.random_changes import (
    LEFT_OUT,
    POLICY_NODE,
    ROWS,
    WORKING,
    Between,
    RandomChanges,
)


def test_every_live_parameter_is_changed_or_left_out_for_a_reason() -> None:
    for node, rows in ROWS.items():
        left_out = set(rows) & set(LEFT_OUT)
        assert set(WORKING[node]) | left_out == set(rows), node
        assert not set(WORKING[node]) & left_out
    assert set(LEFT_OUT) <= {name for rows in ROWS.values() for name in rows}


def test_working_ranges_are_within_the_declared_ones() -> None:
    for node, ranges in WORKING.items():
        for name, range_ in ranges.items():
            row = ROWS[node][name]
            values = (range_.low, range_.high) if isinstance(range_, Between) else range_
            assert all(row.refusal(value) == "" for value in values), name
            if row.bounds is not None:
                assert all(row.bounds[0] <= value <= row.bounds[1] for value in values), name


def drawn(seed: int, count: int = 600) -> list[random_changes.Change]:
    changes = RandomChanges(seed, ["pytorch", "fused", "fused_pipelined"], long_soak.START)
    found = []
    for _ in range(count):
        found.append(changes.draw())
        if not found[-1].expected:
            changes.took(found[-1])
    return found


def test_a_seed_gives_the_same_changes_of_every_kind() -> None:
    found = drawn(3)
    assert [repr(c) for c in found] == [repr(c) for c in drawn(3)]
    assert [repr(c) for c in found] != [repr(c) for c in drawn(4)]
    wrong = {c.expected for c in found if c.expected}
    assert {"type", "not a number", "below", "above", "choice"} <= wrong
    assert any("refills every frame" in reason for reason in wrong), "what does not go together"
    assert {c.value for c in found if c.name == "backend" and not c.expected} == {
        "pytorch", "fused", "fused_pipelined",
    }  # fmt: skip


def test_trained_continuation_is_expected_to_be_refused() -> None:
    changes = RandomChanges(0, ["pytorch"], {})
    changes.values[POLICY_NODE]["chunk_blending"] = "rtc"
    assert changes._judged(POLICY_NODE, "rtc_mode", "trained").expected
    assert not changes._judged(POLICY_NODE, "rtc_mode", "guided").expected


def test_the_start_values_are_those_of_the_demo() -> None:
    config = yaml.safe_load((share_dir() / "config" / "demo.yaml").read_text())
    for node, rows in ROWS.items():
        given = config[f"/**/{node}"]["ros__parameters"]
        for name, row in rows.items():
            wanted = given.get(name, row.default)
            assert long_soak.START[node].get(name, row.default) == wanted, name


def test_the_slope_of_the_memory_is_told_after_the_warm_up() -> None:
    memory = Memory()
    for k in range(100):
        memory.at_s.append(36.0 * k)
        memory.rss.append(int((200 + (50 if k < 20 else 100) + 0.5 * k) * 1e6))
    figures = memory.figures(warm_s=36.0 * 20)
    assert figures["slope_mb_per_hour"] == pytest.approx(50.0, abs=0.1)
    assert figures["growth"] == pytest.approx(32 / 318, abs=0.002)
    record = LongSoakRecord(memory={"policy_node": memory})
    assert record.faults(36.0 * 20) == ["memory of policy_node grew by 10.2%"]
    memory.rss = [400_000_000] * 100
    assert record.faults(36.0 * 20) == []


class Robot:
    """Commands of a motion back and forth at up to 1.5 rad/s, 100 a second."""

    def __init__(self) -> None:
        self.motion, self.now_s, self.at, self.speed = Motion(), 10.0, 0.0, 0.0

    def move(self, ticks: int) -> None:
        for _ in range(ticks):
            self.now_s += 0.01
            self.speed = 1.5 * np.sin(4.0 * self.now_s)
            self.at += 0.01 * self.speed
            still = [0.0] * 4
            self.motion.add(self.now_s, [self.at, *still], [self.speed, *still])

    def put(self, at: float, pause_s: float) -> None:
        self.at, self.now_s = at, self.now_s + pause_s

    @property
    def faults(self) -> list[str]:
        self.motion.finish()
        return LongSoakRecord(motion=self.motion).faults(0.0)


def test_a_pause_is_a_gap_unless_the_robot_was_moved_meanwhile() -> None:
    robot = Robot()
    robot.move(100)
    robot.motion.reset(robot.now_s)
    robot.put(0.7, 0.3)
    robot.move(100)
    robot.now_s += 0.6
    robot.move(100)
    assert robot.motion.found.longest_gap_s == 0.0, "judged later"
    assert any("no command for 0.610 s" in fault for fault in robot.faults)
    assert robot.motion.found.longest_reset_gap_s == pytest.approx(0.31)


def test_word_of_a_reset_may_come_after_the_robot_was_moved() -> None:
    robot = Robot()
    for episode in range(20):
        ended_s = robot.now_s
        robot.put(0.5 * (episode % 2), 0.2)
        robot.move(150)
        robot.motion.reset(ended_s)
        robot.move(50)
    robot.motion.finish()
    found = robot.motion.found
    assert not any("leap" in failure or "velocity" in failure for failure in found.failures)
    assert found.begun_anew == 19 and found.longest_gap_s < 0.02


def test_a_leap_without_a_reset_is_found() -> None:
    robot = Robot()
    robot.move(1500)
    robot.put(robot.at + 1.0, 0.2)
    robot.move(2500)
    assert any("a leap of 1.0" in fault for fault in robot.faults)


def test_what_exceeds_a_limit_is_found_in_any_part() -> None:
    motion = Motion()
    for k in range(7000):
        speed = 30.0 if k == 6990 else 0.0
        motion.add(10.0 + 0.01 * k, [0.3 * (k >= 6990), 0, 0, 0, 0], [speed, 0, 0, 0, 0])
    motion.finish()
    assert any("velocity 30.000" in fault for fault in motion.found.failures)
    assert motion.found.peak_velocity == pytest.approx(30.0)
    motion = Motion()
    motion.add(1.0, [math.nan, 0.0, 0.0, 0.0, 0.0], [0.0] * 5)
    motion.finish()
    assert motion.found.failures == ["a command is not finite (before 1.0 s)"]


def test_trips_and_surprises_are_faults() -> None:
    record = LongSoakRecord(surprises=["a = 1 was refused: no"], unverified_chunks=2)
    record.interventions.update({"heartbeat": 1, "stop": 3, "resume_slew": 70})
    assert record.faults(0.0) == [
        "a = 1 was refused: no",
        "2 chunks were not verified",
        "the heartbeat was missed 1 times",
        "the executor stopped the robot 3 times",
    ]


def facts(quiet: tuple[int, int], changing: tuple[int, int]) -> dict[str, object]:
    parts = {"quiet": quiet, "changing": changing}
    return {
        "finished": True,
        "faults": [],
        **{name: {"solved": s, "episodes": n} for name, (s, n) in parts.items()},
    }


def test_success_is_compared_with_the_quiet_part() -> None:
    same = soak.judged(facts((100, 100), (598, 600)))
    assert same["faults"] == [] and same["success"]["fisher_p"] == 1.0
    fell = soak.judged(facts((100, 100), (540, 600)))
    assert fell["faults"] == ["success fell from 100.0% to 90.0%"]
    assert soak.judged(facts((0, 0), (0, 0)))["faults"] == ["no episode ended"]
    assert soak.judged({**facts((9, 9), (9, 9)), "finished": False})["faults"] == [
        "the soak ended early"
    ]


@pytest.mark.node
@pytest.mark.slow
def test_half_a_minute_of_it(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    argv = ["soak", "--minutes", "0.4", "--quiet", "0.1", "--every", "0.4", "--json", str(file)]
    command = [sys.executable, "-m", "thor_policy_ros.evaluation", *argv]
    command += ["--out", str(tmp_path / "out"), "--backends", "pytorch", "fused"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    result = json.loads(file.read_text())
    assert done.returncode == (1 if result["faults"] else 0), done.stderr
    assert result["finished"] and result["changes"]["surprises"] == []
    assert result["changes"]["made"] > 10 and result["changes"]["refused_as_they_must"] > 0
    assert result["unverified_chunks"] == 0 and result["success"]["changing"]["episodes"] > 3
    assert set(result["changing"]["chunks"]) <= {"pytorch", "fused"}
    motion = result["motion"]
    assert motion["commands"] > 1000 and 0.5 < motion["peak_velocity"] <= 2.0 * 1.01
    assert motion["peak_acceleration"] <= 10.0 * 1.01 + 0.01
    assert 0.5 < result["watchdog"]["tripped_after_s"] < 4.5
    assert result["watchdog"]["recovered_after_s"] is not None
    assert set(result["memory"]) > {"policy_node", "chunk_executor_node", "sim_robot_node"}
    assert np.isfinite(result["switch_s"]["max"])

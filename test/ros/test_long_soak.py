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


def moved(motion: Motion, begin_s: float, speed: float, ticks: int = 100) -> float:
    for k in range(ticks):
        motion.add(begin_s + 0.01 * k, [min(k * 0.001, speed) * 0.01 * k, 0.0, 0.0, 0.0, 0.0])
    return begin_s + 0.01 * (ticks - 1)


def test_only_a_reset_may_leave_a_gap_of_the_commands() -> None:
    motion = Motion()
    end_s = moved(motion, 10.0, 0.01)
    motion.reset(end_s)
    end_s = moved(motion, end_s + 0.3, 0.01)
    moved(motion, end_s + 0.7, 0.01)
    assert motion.longest_gap_s == 0.0, "judged later"
    motion.finish()
    assert motion.longest_gap_s == pytest.approx(0.7) and motion.motions == 2
    assert motion.longest_reset_gap_s == pytest.approx(0.3)
    found = LongSoakRecord(motion=motion).faults(0.0)
    assert any("no command for 0.700 s" in fault for fault in found)


def test_word_of_a_reset_may_come_after_the_robot_was_moved() -> None:
    motion, now_s = Motion(), 10.0
    for episode in range(20):
        for k in range(200):
            now_s += 0.01
            motion.add(now_s, [float(episode % 2), 0.0, 0.0, 0.0, 0.0])
            if k == 150 and episode:
                motion.reset(now_s - 1.51 - 0.2)
        now_s += 0.2
    motion.finish()
    assert motion.failures == [] and motion.motions == 20
    assert motion.longest_gap_s < 0.02 and motion.longest_reset_gap_s == pytest.approx(0.21)


def test_a_leap_without_a_reset_is_found() -> None:
    motion = Motion()
    for k in range(4000):
        motion.add(10.0 + 0.01 * k + 0.2 * (k >= 1500), [float(k >= 1500), 0.0, 0.0, 0.0, 0.0])
    motion.finish()
    assert any("velocity" in failure for failure in motion.failures)
    assert motion.longest_gap_s == pytest.approx(0.21)


def test_a_motion_beyond_the_limits_is_found_in_any_piece() -> None:
    motion = Motion()
    for k in range(7000):
        position = 0.3 if k >= 6990 else 0.0
        motion.add(10.0 + 0.01 * k, [position, 0.0, 0.0, 0.0, 0.0])
    motion.finish()
    assert any("velocity 30.000" in fault for fault in motion.failures)
    assert motion.peak_velocity == pytest.approx(30.0)
    motion = Motion()
    motion.add(1.0, [math.nan, 0.0, 0.0, 0.0, 0.0])
    motion.finish()
    assert motion.failures == ["a command is not finite (at 1.0 s)"]


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

"""The reuse study: its cells, its log, its figures, and episodes that follow from their seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tabletop import expert_answer

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.closed_loop import Conditions
from thor_policy_ros.evaluation.reaction import MOVED_BY_M, measure_reaction
from thor_policy_ros.evaluation.reuse_cells import (
    ADAPTIVE,
    DEADLINE,
    DEVICES,
    REFERENCE,
    WAYS,
    Cell,
    Way,
    cells,
)
from thor_policy_ros.evaluation.reuse_report import study_report, study_tables
from thor_policy_ros.evaluation.reuse_study import (
    ROUND,
    SEEDS_FROM,
    Bench,
    read_log,
    spoken,
    wanted,
)
from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.types import ActionChunk, FrameTiming, Observation, StepResult

FAST = next(iter(DEVICES))
CELL = Cell(REFERENCE, FAST, "task", 0.08)
REUSED = Cell(Way("reuse, every 3", "fixed", 3), FAST, "task", 0.08)


class TestCells:
    def test_all_that_was_asked_for_is_there(self) -> None:
        found = {(c.way.mode, c.way.every, c.way.indexing, c.speed_m_s) for c in cells()}
        for speed in (0.0, 0.08, 0.12):
            for every in (2, 3, 5):
                assert ("fixed", every, "aligned", speed) in found
                assert ("fixed", every, "naive", speed) in found
                assert ("continue", every, "aligned", speed) in found
            assert ("fixed", 1, "aligned", speed) in found
            assert {(w.mode, w.every, "aligned", speed) for w in (ADAPTIVE, DEADLINE)} <= found
        assert {c.way.name for c in cells() if c.kind == "reaction"} == {
            way.name for way in WAYS if way.indexing == "aligned"
        }

    def test_names_tell_them_apart(self) -> None:
        names = [cell.name for cell in cells()]
        assert len(set(names)) == len(names)

    def test_a_full_frame_takes_what_its_device_is_called(self) -> None:
        for name, profile in DEVICES.items():
            assert f"{profile.frame_ms(2, 3):g} ms" == name


class TestLog:
    def test_cells_take_turns_and_what_was_played_is_not_played_again(self) -> None:
        two, count = [CELL, REUSED], ROUND + 2
        todo = list(wanted(two, count, set()))
        assert [cell for cell, _ in todo] == (
            [CELL] * ROUND + [REUSED] * ROUND + [CELL] * 2 + [REUSED] * 2
        )
        assert [s for c, s in todo if c is CELL] == list(range(SEEDS_FROM, SEEDS_FROM + count))
        done = {(cell.name, seed) for cell, seed in todo[:5]}
        assert list(wanted(two, count, done)) == todo[5:]

    def test_a_line_that_was_cut_off_does_not_count(self, tmp_path: Path) -> None:
        log = tmp_path / "log.jsonl"
        assert read_log(log) == []
        log.write_text('{"seed": 1}\n{"seed": 2}\n{"seed')
        assert read_log(log) == [{"seed": 1}, {"seed": 2}]

    @pytest.mark.parametrize(
        ("decision", "counted"),
        [
            ("reuse", "reuse"),
            ("refill: image changed: base, wrist (kept base)", "refill: image changed"),
            ("refill: in time (2 steps; kept base)", "refill: in time, fewer steps"),
            ("continue", "continue"),
        ],
    )
    def test_decisions_are_counted_without_details(self, decision: str, counted: str) -> None:
        assert spoken(decision) == counted


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("checkpoints/demo", "pytorch", 3)


class TestEpisodes:
    @pytest.mark.parametrize("way", [REUSED.way, DEADLINE])
    def test_an_episode_follows_from_its_seed_alone(self, bench: Bench, way: Way) -> None:
        cell = Cell(way, FAST, "task", 0.08)
        first = bench.play(cell, 5)
        bench.play(Cell(REFERENCE, FAST, "task", 0.12), 6)
        assert bench.play(cell, 5) == first
        json.dumps(first)

    def test_reuse_and_continuing_save_device_time_and_the_reference_takes_a_tick(
        self, bench: Bench
    ) -> None:
        def ms_per_s(way: Way) -> float:
            record = bench.play(Cell(way, FAST, "task", 0.0), 7)
            return float(record["device"]["ms"] / record["simulated_s"])

        full = ms_per_s(REFERENCE)
        assert full == pytest.approx(940, rel=0.1)
        assert ms_per_s(REUSED.way) == pytest.approx((94 + 2 * 33) / 0.3, rel=0.2)
        assert ms_per_s(Way("continue", "continue", 3)) == pytest.approx(94 / 0.3, rel=0.3)

    def test_a_deadline_that_the_device_cannot_meet_still_gives_chunks(self, bench: Bench) -> None:
        record = bench.play(Cell(DEADLINE, "170 ms", "task", 0.0), 7)
        assert record["success"]
        decisions = record["decisions"]
        assert decisions["reuse"] > 0 and decisions["refill: overdue, fewer steps"] > 0

    def test_a_refill_by_state_leaves_little_to_reuse_while_the_arm_moves(
        self, bench: Bench
    ) -> None:
        way = next(way for way in WAYS if way.by_state)
        decisions = bench.play(Cell(way, FAST, "task", 0.0), 7)["decisions"]
        assert decisions["refill: state changed"] > decisions.get("reuse", 0)


def record(cell: Cell, seed: int, **fields: Any) -> dict[str, Any]:
    motion = {
        "motion_s": 2.0, "jerk_squared": 8.0, "jerk_values": 2.0,
        "jump_sum": 0.4, "jumps": 4.0, "jump_worst": 0.3,
    }  # fmt: skip
    return {
        "cell": cell.name,
        "seed": seed,
        "simulated_s": 2.0,
        "duration_s": 2.0,
        "motion": motion,
        "device": {"ms": 500.0, "frames": 4},
        "decisions": {"reuse": 3},
        "success": True,
        "outcome": "success",
        **fields,
    }


class TestReport:
    def test_figures_of_a_cell(self) -> None:
        wins = [record(CELL, seed) for seed in range(9)]
        lost = [record(CELL, 9, success=False, outcome="timeout")]
        report = study_report([CELL, REUSED], wins + lost, {"command": "x"})
        assert [cell["way"] for cell in report["cells"]] == ["refill every tick"]
        figures = report["cells"][0]
        assert (figures["successes"], figures["episodes"]) == (9, 10)
        assert figures["wilson_95"] == pytest.approx([0.596, 0.982], abs=1e-3)
        assert figures["outcomes"] == {"success": 9, "timeout": 1}
        assert figures["device_ms_per_s"] == 250.0
        assert figures["per_s"] == {"frames": 2.0}
        assert figures["jerk_rms"] == 2.0
        assert (figures["jump_mean"], figures["jump_worst"]) == pytest.approx((0.1, 0.3))
        assert figures["decisions"] == {"reuse": 30}

    def test_cells_are_paired_with_the_reference_by_seed(self) -> None:
        records = [record(CELL, seed, success=seed < 6) for seed in range(8)]
        records += [record(REUSED, seed, success=seed in (0, 1, 6)) for seed in range(7)]
        report = study_report([CELL, REUSED], records, {})
        paired = report["cells"][1]["paired"]
        assert paired == {"episodes": 7, "only_this": 1, "only_reference": 4}

    def test_continuing_is_paired_with_reusing_too(self) -> None:
        going = Cell(Way("continue, every 3", "continue", 3), FAST, "task", 0.08)
        records = [record(REUSED, seed, success=seed != 2) for seed in range(4)]
        records += [record(going, seed, success=seed != 1) for seed in range(4)]
        figures = study_report([REUSED, going], records, {})["cells"]
        assert "paired_with_reuse" not in figures[0]
        assert figures[1]["paired_with_reuse"] == {
            "episodes": 4, "only_this": 1, "only_reference": 1,
        }  # fmt: skip

    def test_an_arm_that_never_reacts_counts_as_slower_than_all(self) -> None:
        cell = Cell(REFERENCE, FAST, "reaction", 0.0)
        times = [0.2, 0.3, 0.4, None]
        records = [
            record(cell, seed, settled=True, reacted_s=t, arrived_s=t)
            for seed, t in enumerate(times)
        ]
        records.append(record(cell, 9, settled=False, reacted_s=None, arrived_s=None))
        figures = study_report([cell], records, {})["cells"][0]
        assert figures["settled"] == 4
        assert (figures["reacted_s_median"], figures["reacted_s_p90"]) == (0.3, None)

    def test_tables_hold_every_cell(self) -> None:
        reaction = Cell(REFERENCE, FAST, "reaction", 0.0)
        records = [record(CELL, 1), record(REUSED, 1)]
        records.append(record(reaction, 1, settled=True, reacted_s=0.2, arrived_s=0.4))
        tables = study_tables(study_report([CELL, REUSED, reaction], records, {}))
        assert [table.row_count for table in tables] == [2, 1]


def test_the_command_plays_reports_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, result, plot = (tmp_path / name for name in ("log.jsonl", "result.json", "plot.png"))
    command = ["reuse-study", "--only", f"every 3 | {FAST} | 0 m/s", "--log", str(log)]
    assert main([*command, "--episodes", "1", "--json", str(result), "--plot", str(plot)]) == 0
    cells_found = json.loads(result.read_text())["cells"]
    assert [cell["way"] for cell in cells_found] == ["reuse, every 3", "continue, every 3"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--episodes", "2"]) == 0
    assert [(r["cell"].split(" | ")[0], r["seed"] - SEEDS_FROM) for r in read_log(log)] == [
        ("reuse, every 3", 0), ("continue, every 3", 0),
        ("reuse, every 3", 1), ("continue, every 3", 1),
    ]  # fmt: skip
    assert main(["reuse-study", "--only", "nothing"]) == 2
    assert "0 cells that hold 'nothing'" in capsys.readouterr().err


@dataclass
class ExpertRunner:
    """The expert follows the target; `gives_up_s` is when it does no more."""

    env: TabletopArm
    gives_up_s: float = np.inf
    chunking: None = None

    def reset(self) -> None:
        pass

    def step(
        self, observation: Observation, now_s: float, tick: int, num_steps: int, **_: Any
    ) -> StepResult:
        if now_s > self.gives_up_s:
            return StepResult(None, FrameTiming())
        return StepResult(ActionChunk(expert_answer(self.env), 0.1, now_s), FrameTiming())


class TestReaction:
    @pytest.fixture
    def env(self) -> Iterator[TabletopArm]:
        return TabletopArm(image_size=8)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_an_expert_reacts_within_a_tick_and_arrives(self, env: TabletopArm, seed: int) -> None:
        found = measure_reaction(env, ExpertRunner(env), Conditions(), seed, period_ticks=3)
        assert found.settled and found.reacted_s is not None and found.arrived_s is not None
        assert 0.0 < found.reacted_s < 0.3
        assert found.reacted_s < found.arrived_s < 1.0

    def test_the_target_is_moved_by_a_hand(self, env: TabletopArm) -> None:
        places: list[np.ndarray] = []
        move = env.move_object

        def watched(index: int, place: np.ndarray) -> None:
            places.extend([env.objects()[index, :2].copy(), place])
            move(index, place)

        env.move_object = watched  # type: ignore[method-assign]
        measure_reaction(env, ExpertRunner(env), Conditions(), 4, period_ticks=1)
        assert np.linalg.norm(places[1] - places[0]) == pytest.approx(MOVED_BY_M)

    def test_a_delay_shows_in_full(self, env: TabletopArm) -> None:
        def reacted_s(latency_ms: float) -> float:
            conditions = Conditions(latency_ms=latency_ms)
            found = measure_reaction(env, ExpertRunner(env), conditions, 3, period_ticks=1)
            assert found.reacted_s is not None
            return found.reacted_s

        assert reacted_s(200.0) - reacted_s(0.0) == pytest.approx(0.2, abs=0.06)

    def test_an_arm_that_does_not_react_never_did(self, env: TabletopArm) -> None:
        runner = ExpertRunner(env)
        move = env.move_object

        def then_stand_still(index: int, place: np.ndarray) -> None:
            runner.gives_up_s = 0.0
            move(index, place)

        env.move_object = then_stand_still  # type: ignore[method-assign]
        found = measure_reaction(env, runner, Conditions(), 3, period_ticks=1)
        assert found.settled and found.arrived_s is None and found.reacted_s is None

    def test_an_arm_that_never_settles_has_no_reaction(self, env: TabletopArm) -> None:
        runner = ExpertRunner(env, gives_up_s=-1.0)
        found = measure_reaction(env, runner, Conditions(), 3, period_ticks=1)
        assert (found.settled, found.reacted_s, found.arrived_s) == (False, None, None)

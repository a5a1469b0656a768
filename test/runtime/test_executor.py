"""The chunk executor: what it commands, and when."""

import re
import time

import numpy as np
import pytest
from support.executing import DT_S, FREE, NORMAL, chunk, executor, follow, position
from support.motion import assert_limits_kept, joint_limits

from thor_policy_ros.runtime.executor import ChunkExecutor


class TestWaiting:
    def test_without_a_measurement_nothing_is_commanded(self):
        ex = ChunkExecutor(("a",), FREE, DT_S)
        assert ex.accept(chunk([1, 2], 0.0), ("a",), 0.0) == ""
        command = ex.command(0.0)
        assert (command.positions, command.state) == (None, "waiting")
        assert "not been measured" in command.reason

    def test_without_a_chunk_nothing_is_commanded(self):
        command = executor().command(0.0)
        assert (command.positions, command.state) == (None, "waiting")
        assert "no valid chunk" in command.reason

    def test_a_chunk_that_ran_out_before_the_first_measurement_does_not_start(self):
        ex = ChunkExecutor(("a",), FREE, DT_S)
        assert ex.accept(chunk([1, 2], 0.0), ("a",), 0.0) == ""
        assert ex.set_measured([0.0], 0.5) == ""
        assert ex.command(0.5).state == "waiting"

    def test_an_old_measurement_does_not_start(self):
        ex = executor(max_chunk_age_s=1.0)
        assert ex.accept(chunk([1, 2], 5.0), ("a",), 5.0) == ""
        assert "5.000 s old" in ex.command(5.0).reason
        ex.set_measured([0.0], 5.0)
        assert ex.command(5.01).state == "tracking"

    def test_a_joint_far_outside_its_limits_does_not_start(self):
        ex = executor(NORMAL, start=2.2)
        ex.accept(chunk([1, 2], 0.0), ("a",), 0.0)
        command = ex.command(0.0)
        assert command.state == "waiting"
        assert "'a' measured at 2.2000, outside its limits [-2.0000, 2.0000]" in command.reason

    def test_a_joint_slightly_outside_its_limits_is_brought_to_the_limit_within_them(self):
        ex = executor(NORMAL, start=2.04)
        ex.accept(chunk([2, 2], 0.0), ("a",), 0.0)
        path = [position(command) for command in follow(ex, 0.0, 0.5)]
        assert path[0] == pytest.approx(2.04 - 10.0 * DT_S**2)
        assert path[-1] == pytest.approx(2.0) and min(path) >= 2.0 - 1e-9
        wide = joint_limits(-2.0, 2.1, 1.0, 10.0)
        assert_limits_kept(path, [2.04], wide, DT_S)

    @pytest.mark.parametrize(
        ("positions", "stamp_s", "said"),
        [
            ([np.nan], 0.0, r"\['a'\] not finite"),
            ([0.0, 0.0], 0.0, r"shape \(1,\), got \(2,\)"),
            ([0.0], np.nan, "stamp nan"),
        ],
    )
    def test_a_broken_measurement_is_refused_and_the_one_before_stays(
        self, positions, stamp_s, said
    ):
        ex = executor(start=0.5)
        reason = ex.set_measured(positions, stamp_s)
        assert re.search(said, reason)
        ex.accept(chunk([0.5, 0.5], 0.0), ("a",), 0.0)
        assert position(ex.command(0.0)) == 0.5


class TestTracking:
    def test_rows_are_commands_for_their_times_and_interpolated_between(self):
        ex = executor()
        ex.accept(chunk([0, 1, 3], 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 0.2)
        assert {c.state for c in commands} == {"tracking"}
        assert [position(commands[k]) for k in (0, 5, 10, 15, 20)] == pytest.approx(
            [0, 0.5, 1, 2, 3]
        )

    def test_before_the_first_row_it_is_the_first_row(self):
        ex = executor(max_future_s=0.05)
        assert ex.accept(chunk([1, 2], 0.04), ("a",), 0.0) == ""
        assert position(ex.command(0.0)) == 1.0

    def test_a_late_chunk_is_joined_at_now(self):
        ex = executor()
        ex.set_measured([0.0], 0.35)
        assert ex.accept(chunk([0, 1, 2, 3, 4, 5], 0.0), ("a",), 0.35) == ""
        assert position(ex.command(0.35)) == pytest.approx(3.5)

    def test_velocities_are_those_of_the_steps(self):
        ex = executor()
        ex.accept(chunk([0, 1, 2], 0.0), ("a",), 0.0)
        command = follow(ex, 0.0, 0.1)[-1]
        assert command.velocities == pytest.approx([10.0])

    def test_a_command_cannot_be_written_to(self):
        """It is where the next step starts."""
        ex = executor()
        ex.accept(chunk([0, 1, 2], 0.0), ("a",), 0.0)
        command = ex.command(0.0)
        for values in (command.positions, command.velocities):
            with pytest.raises(ValueError, match="read-only"):
                values[0] = 1.0

    def test_columns_are_mapped_by_joint_name(self):
        ex = ChunkExecutor(("a", "b"), joint_limits(-9, 9, np.inf, np.inf, 2), DT_S, 0.0)
        ex.set_measured([0, 0], 0.0)
        rows = np.array([[1.0, 2.0], [1.0, 2.0]])
        assert ex.accept(chunk(rows, 0.0), ("b", "a"), 0.0) == ""
        assert ex.command(0.0).positions == pytest.approx([2.0, 1.0])

    def test_a_feasible_chunk_is_executed_exactly(self):
        """A smooth motion within speed and acceleration, one row a tick: no lag, no clamping."""
        limits = joint_limits(-2, 2, 1.0, 5.0)
        times = DT_S * np.arange(101)
        rows = 0.2 * (1 - np.cos(np.pi * times))
        ex = executor(limits, max_chunk_age_s=2.0)
        ex.accept(chunk(rows, 0.0, dt_s=DT_S), ("a",), 0.0)
        got = [position(c) for c in follow(ex, 0.0, 1.0)]
        assert got == pytest.approx(rows, abs=1e-6)
        stats = ex.stats
        assert stats.clamped_velocity == stats.clamped_acceleration == stats.clamped_position == 0

    def test_a_chunk_that_stays_where_the_joint_is_moves_nothing(self):
        """At the start, and after a stop."""
        ex = executor(NORMAL, start=0.5, crossfade_s=0.1, hold_timeout_s=0.0)
        ex.accept(chunk([0.5] * 4, 0.0), ("a",), 0.0)
        assert {position(c) for c in follow(ex, 0.0, 0.4)} == {0.5}
        ex.accept(chunk([1.5] * 3, 0.4), ("a",), 0.4)
        *_, last = follow(ex, 0.41, 1.2)
        assert last.state == "stopped" and position(last) > 0.6
        before = ex.stats
        ex.accept(chunk([position(last)] * 9, 1.2), ("a",), 1.2)
        stayed = [position(c) for c in follow(ex, 1.21, 1.9)]
        assert stayed == pytest.approx([position(last)] * len(stayed), abs=1e-7)
        assert ex.stats.clamped_acceleration == before.clamped_acceleration

    def test_irregular_ticks_do_not_shift_the_motion(self):
        """Commands belong to the clock, not to the count of ticks."""
        ex = executor(joint_limits(-9, 9, 9.0, 1e4))
        ex.accept(chunk(np.linspace(0, 1, 11), 0.0), ("a",), 0.0)
        now_s, random = 0.0, np.random.default_rng(0)
        for _ in range(60):
            command = ex.command(now_s)
            assert position(command) == pytest.approx(now_s, abs=1e-6)
            now_s += random.uniform(0.5, 1.5) * DT_S


class TestCrossfade:
    def test_the_first_chunk_fades_in_from_the_measured_position(self):
        ex = executor(crossfade_s=0.1)
        ex.accept(chunk([1, 1, 1, 1, 1], 0.0), ("a",), 0.0)
        got = [position(c) for c in follow(ex, 0.0, 0.12)]
        assert got[0] == 0.0
        assert got[5] == pytest.approx(0.5)
        assert got[10:] == pytest.approx([1.0] * 3)
        assert (np.diff(got) >= 0).all()

    def test_a_new_chunk_fades_in_over_the_trajectory_of_the_last(self):
        ex = executor(crossfade_s=0.1)
        ex.accept(chunk(np.arange(8) * 0.1, 0.0), ("a",), 0.0)
        follow(ex, 0.0, 0.3)
        ex.accept(chunk(np.full(8, 1.0), 0.3), ("a",), 0.3)
        got = [position(c) for c in follow(ex, 0.31, 0.42)]
        assert got[4] == pytest.approx(0.5 * 0.35 + 0.5 * 1.0)  # at 0.35 s both count half
        assert got[9:] == pytest.approx([1.0] * 3)

    def test_chunks_faster_than_the_fade_do_not_make_it_jump(self):
        """Every chunk disagrees by 1; each fades in from wherever the blend is."""
        ex = executor(crossfade_s=0.2, max_chunk_age_s=5.0)
        got = []
        for k in range(100):
            if k % 3 == 0:
                ex.accept(chunk([k // 3 % 2] * 9, k * DT_S), ("a",), k * DT_S)
            got.append(position(ex.command(k * DT_S)))
        # One fade moves at most 1.5 / 0.2 s per unit of disagreement; seven are under way.
        assert np.abs(np.diff(got)).max() < 7 * 1.5 / 0.2 * DT_S * 0.5
        assert min(got) >= 0.0 and max(got) <= 1.0

    def test_a_chunk_at_every_tick_does_not_keep_starting_over(self):
        ex = executor(crossfade_s=0.1)
        for k in range(30):
            ex.accept(chunk([1] * 9, k * DT_S), ("a",), k * DT_S)
            command = ex.command(k * DT_S)
        assert position(command) == pytest.approx(1.0, abs=1e-3)

    def test_of_two_chunks_between_ticks_only_the_last_counts(self):
        ex = executor(crossfade_s=0.1)
        other = executor(crossfade_s=0.1)
        for one in (ex, other):
            one.accept(chunk([1] * 5, 0.0), ("a",), 0.0)
            follow(one, 0.0, 0.1)
        ex.accept(chunk([9] * 5, 0.101), ("a",), 0.105)
        ex.accept(chunk([2] * 5, 0.102), ("a",), 0.105)
        other.accept(chunk([2] * 5, 0.102), ("a",), 0.105)
        assert [position(c) for c in follow(ex, 0.11, 0.3)] == [
            position(c) for c in follow(other, 0.11, 0.3)
        ]

    def test_the_fade_can_be_changed_while_running(self):
        ex = executor(crossfade_s=0.1)
        ex.accept(chunk([0] * 5, 0.0), ("a",), 0.0)
        ex.command(0.0)
        ex.set_times(crossfade_s=0.0, hold_timeout_s=0.5, max_chunk_age_s=1.0)
        ex.accept(chunk([1] * 5, 0.005), ("a",), 0.005)
        assert position(ex.command(0.01)) == 1.0


class TestRunningOut:
    def test_the_last_row_is_held_then_the_robot_is_stopped(self):
        ex = executor(hold_timeout_s=0.2)
        ex.accept(chunk([0, 1], 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 0.4)
        assert [c.state for c in commands[:11]] == ["tracking"] * 11
        assert {c.state for c in commands[11:30]} == {"holding"}
        assert {c.state for c in commands[32:]} == {"stopped"}
        assert "run out" in commands[20].reason
        assert "hold_timeout_s = 0.2" in commands[35].reason
        assert {position(c) for c in commands[10:]} == {1.0}

    def test_stopping_decelerates_and_then_stands(self):
        """Too far to reach the last row in time: stopped on the way, from full speed."""
        ex = executor(NORMAL, hold_timeout_s=0.0)
        ex.accept(chunk([1.9] * 3, 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 0.5)
        moving, stopped = commands[20], [c for c in commands if c.state == "stopped"]
        assert moving.velocities == pytest.approx([1.0])
        speeds = [float(c.velocities[0]) for c in stopped]
        assert speeds[:11] == pytest.approx([*np.linspace(0.9, 0.0, 10), 0.0], abs=1e-6)
        assert len({position(c) for c in stopped[11:]}) == 1

    def test_a_new_chunk_resumes_from_where_it_stopped(self):
        ex = executor(NORMAL, crossfade_s=0.1, hold_timeout_s=0.0)
        ex.accept(chunk([0.1] * 3, 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 1.0)
        assert commands[-1].state == "stopped"
        assert ex.accept(chunk([1.0] * 10, 1.0), ("a",), 1.0) == ""
        commands += follow(ex, 1.01, 1.8)
        assert commands[-1].state == "tracking"
        assert position(commands[-1]) == pytest.approx(0.8, abs=0.2)
        assert_limits_kept([c.positions for c in commands], [0.0], NORMAL, DT_S)

    def test_a_chunk_is_not_executed_beyond_its_greatest_age(self):
        ex = executor(max_chunk_age_s=0.25, hold_timeout_s=0.5)
        ex.accept(chunk([0, 1, 2, 3, 4], 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 0.4)
        assert commands[26].state == "holding"
        assert position(commands[-1]) == pytest.approx(2.5)


class TestStats:
    def test_each_limit_has_its_counter(self):
        ex = executor(NORMAL)
        ex.accept(chunk([3.0] * 10, 0.0), ("a",), 0.0)
        follow(ex, 0.0, 0.1)
        stats = ex.stats
        assert stats.clamped_position == 11  # 3.0 is outside at every tick of 11
        assert stats.clamped_velocity == 11  # far away
        assert stats.clamped_acceleration == 9  # the tenth tick reaches full speed

    def test_refusals_are_counted_and_the_last_one_told(self):
        ex = executor()
        reason = ex.accept(chunk([np.nan, 0.0], 0.0), ("a",), 0.0)
        assert reason
        assert (ex.stats.refused, ex.stats.accepted) == (1, 0)
        assert ex.stats.last_refusal == reason


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"joint_names": ()}, "joint names"),
        ({"joint_names": ("a", "a")}, "each once"),
        ({"joint_names": ("a", "b")}, "limits of 2 joints"),
        ({"control_dt_s": 0.0}, "control_dt_s"),
        ({"control_dt_s": np.nan}, "control_dt_s"),
        ({"crossfade_s": -1.0}, "crossfade_s=-1.0"),
        ({"hold_timeout_s": np.inf}, "hold_timeout_s=inf"),
        ({"max_chunk_age_s": 0.0}, "max_chunk_age_s=0.0"),
        ({"start_tolerance": -1.0}, "start_tolerance"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, said):
    settings = {"joint_names": ("a",), "limits": FREE, **wrong}
    with pytest.raises(ValueError, match=said):
        ChunkExecutor(**settings)


def test_a_tick_is_cheap():
    """Of 14 joints, with chunks at 33 Hz, six of them fading at a time: 38 times np.clip of a row
    of joints where that was measured, 0.45 ms of 10 on a slow core."""
    names = tuple(f"joint_{i}" for i in range(14))
    ex = ChunkExecutor(names, joint_limits(-2, 2, 1, 10, 14), DT_S, 0.2, max_chunk_age_s=1.0)
    ex.set_measured(np.zeros(14), 0.0)
    row, spent_s, one_s = np.linspace(-1, 1, 14), [], []
    for k in range(300):
        if k % 3 == 0:
            rows = np.full((50, 14), 0.1 * (k % 2))
            assert ex.accept(chunk(rows, k * DT_S), names, k * DT_S) == ""
        before_s = time.perf_counter()
        ex.command(k * DT_S)
        after_s = time.perf_counter()
        np.clip(row, -0.5, 0.5)
        one_s.append(time.perf_counter() - after_s)
        spent_s.append(after_s - before_s)
    # The least of many: what the code costs, not what else the machine was doing.
    ticks, ones = (np.quantile(taken[30:], 0.1) for taken in (spent_s, one_s))
    assert ticks < 100 * ones, f"a tick costs {ticks / ones:.0f} times np.clip of a row"

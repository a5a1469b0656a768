"""The chunk executor when its clock steps, leaps or is set; and when it is reset."""

import numpy as np
import pytest
from support.executing import DT_S, NORMAL, chunk, executor, follow, position
from support.motion import assert_limits_kept


class TestClock:
    def test_a_step_back_within_tolerance_stands_still(self):
        ex = executor()
        ex.accept(chunk([0, 1, 2, 3], 0.0), ("a",), 0.0)
        before = position(follow(ex, 0.0, 0.15)[-1])
        command = ex.command(0.10)
        assert (position(command), command.state) == (before, "tracking")
        assert position(ex.command(0.16)) == pytest.approx(1.6)

    def test_a_leap_back_brings_the_robot_to_rest_until_a_chunk_of_the_new_time(self):
        ex = executor(NORMAL)
        ex.set_measured([0.0], 100.0)
        ex.accept(chunk([1.5] * 10, 100.0), ("a",), 100.0)
        commands = follow(ex, 100.0, 100.3)
        assert commands[-1].velocities == pytest.approx([1.0])
        commands += follow(ex, 1.0, 1.3)
        assert commands[-1].state == "stopped"
        assert "clock went back by 99.300 s" in commands[-1].reason
        assert commands[-1].velocities == pytest.approx([0.0])
        assert ex.accept(chunk([0.0] * 10, 1.3), ("a",), 1.3) == ""
        commands += follow(ex, 1.31, 1.9)
        assert commands[-1].state == "tracking"
        assert ex.stats.clock_jumps == 1
        assert_limits_kept([c.positions for c in commands], [0.0], NORMAL, DT_S)

    def test_a_leap_back_before_the_start_forgets_what_was_measured_and_planned(self):
        ex = executor()
        ex.set_measured([0.0], 100.0)
        ex.accept(chunk([1.5] * 10, 100.0), ("a",), 100.0)
        assert "not been measured" in ex.command(1.0).reason
        ex.set_measured([0.0], 1.0)
        assert "no valid chunk" in ex.command(1.0).reason

    def test_a_chunk_of_the_new_time_is_taken_at_once(self):
        ex = executor()
        ex.set_measured([0.0], 100.0)
        ex.accept(chunk([1.0] * 10, 100.0), ("a",), 100.0)
        ex.command(100.0)
        assert ex.accept(chunk([0.5] * 10, 1.0), ("a",), 1.0) == ""
        command = ex.command(1.01)
        assert (command.state, position(command)) == ("tracking", 0.5)

    def test_a_leap_forward_catches_up_within_the_limits(self):
        ex = executor(NORMAL)
        ex.accept(chunk(np.linspace(0, 0.27, 10), 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 0.2) + follow(ex, 0.6, 0.9)
        assert commands[-1].state == "tracking"
        assert position(commands[-1]) == pytest.approx(0.27, abs=0.002)
        assert_limits_kept([c.positions for c in commands], [0.0], NORMAL, DT_S)

    def test_a_leap_past_the_chunk_stops(self):
        ex = executor(NORMAL)
        ex.accept(chunk(np.linspace(0, 0.9, 10), 0.0), ("a",), 0.0)
        commands = [*follow(ex, 0.0, 0.3), *follow(ex, 1e6, 1e6 + 0.3)]
        assert commands[-1].state == "stopped"
        assert commands[-1].velocities == pytest.approx([0.0])
        assert_limits_kept([c.positions for c in commands], [0.0], NORMAL, DT_S)

    @pytest.mark.parametrize("now_s", [np.nan, np.inf, -np.inf])
    def test_a_time_that_is_none_is_a_mistake_of_the_caller(self, now_s):
        with pytest.raises(ValueError, match="finite time"):
            executor().command(now_s)


def test_a_clock_that_is_set_ahead_stops_the_motion_instead_of_hurrying_it():
    """By less than the chunk is long: otherwise the robot would run after the later rows."""
    for by_s in (0.3, -0.05):
        ex = executor(NORMAL, start=0.0, crossfade_s=0.0, max_chunk_age_s=5.0)
        ex.accept(chunk([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45], 0.0), ("a",), 0.0)
        now_s, path = 0.0, []
        for tick in range(100):
            now_s += DT_S
            if tick == 50:
                now_s += by_s
                ex.clock_jumped(now_s, by_s)
            path.append(float(ex.command(now_s).positions[0]))
        steps = np.abs(np.diff(path))
        assert steps[50:].max() <= steps[:50].max() + 1e-12, "no faster for the jump"
        assert steps[-1] == 0.0 and "clock jumped" in ex.command(now_s).reason
        assert ex.stats.clock_jumps == 1


class TestReset:
    def test_reset_starts_again_at_a_new_measurement(self):
        ex = executor()
        ex.accept(chunk([1, 1], 0.0), ("a",), 0.0)
        assert position(ex.command(0.0)) == 1.0
        ex.reset()
        assert ex.command(0.01).state == "waiting"
        ex.set_measured([0.3], 0.02)
        ex.accept(chunk([0.3, 0.3], 0.0), ("a",), 0.02)
        assert position(ex.command(0.02)) == pytest.approx(0.3)
        assert ex.stats.accepted == 1

    def test_a_reset_while_moving_decelerates_within_the_limits_first(self):
        ex = executor(NORMAL)
        ex.accept(chunk([1.9] * 10, 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 0.3)
        assert commands[-1].velocities == pytest.approx([1.0]) and not ex.resting
        ex.reset()
        assert not ex.resting
        ex.accept(chunk([-1.0] * 10, 0.3), ("a",), 0.3)
        ex.set_measured([0.2], 0.3)
        braking = follow(ex, 0.31, 0.4)
        assert {c.state for c in braking} == {"stopped"}
        assert "reset: decelerating" in braking[0].reason
        assert braking[-1].velocities == pytest.approx([0.0]) and ex.resting
        assert_limits_kept([c.positions for c in commands + braking], [0.0], NORMAL, DT_S)
        assert "not been measured" in ex.command(0.41).reason, "since it came to rest"
        ex.set_measured([0.35], 0.42)
        assert position(ex.command(0.42)) == pytest.approx(0.35, abs=10.0 * DT_S**2 * 1.001)

    def test_a_second_reset_while_braking_brakes_on(self):
        ex = executor(NORMAL)
        ex.accept(chunk([1.9] * 10, 0.0), ("a",), 0.0)
        commands = follow(ex, 0.0, 0.3)
        ex.reset()
        commands += follow(ex, 0.31, 0.35)
        ex.reset()
        commands += follow(ex, 0.36, 0.4)
        assert ex.resting and ex.command(0.41).state == "waiting"
        assert_limits_kept([c.positions for c in commands], [0.0], NORMAL, DT_S)

    def test_a_reset_at_rest_is_at_once(self):
        ex = executor(NORMAL, start=0.5)
        assert ex.resting
        ex.accept(chunk([0.5] * 4, 0.0), ("a",), 0.0)
        follow(ex, 0.0, 0.2)
        ex.reset()
        assert ex.resting and ex.command(0.21).state == "waiting"

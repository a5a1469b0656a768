"""A jump of the stamps' clock is told from time that passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.clock_jumps import FASTEST_SIMULATION, JUMP_S, JumpWatch

steps_s = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=20)


@given(steps_s, st.floats(-1e9, 1e9), st.booleans())
def test_clocks_that_go_alike_never_jump(steps, offset_s, simulated):
    watch, now_s = JumpWatch(simulated), 0.0
    for step_s in steps:
        now_s += step_s
        assert watch.jumped_s(now_s + offset_s, now_s) == 0.0


@given(steps_s, st.floats(0.0, FASTEST_SIMULATION))
def test_a_simulation_may_go_slower_or_faster(steps, factor):
    watch, now_s = JumpWatch(simulated=True), 0.0
    for step_s in steps:
        now_s += step_s
        assert watch.jumped_s(now_s * factor, now_s) == 0.0


@pytest.mark.parametrize("simulated", [False, True])
@given(jump_s=st.floats(JUMP_S + 0.3, 1e6), back=st.booleans())
def test_a_jump_is_seen_once(simulated, jump_s, back):
    watch = JumpWatch(simulated)
    jump_s = -jump_s if back else jump_s
    assert watch.jumped_s(100.0, 5.0) == 0.0
    assert watch.jumped_s(100.01 + jump_s, 5.01) == pytest.approx(jump_s, abs=0.3)
    assert watch.jumped_s(100.02 + jump_s, 5.02) == 0.0


def test_a_wall_clock_that_stands_still_has_jumped_back():
    watch = JumpWatch(simulated=False)
    watch.jumped_s(10.0, 1.0)
    assert watch.jumped_s(10.0, 1.5) == pytest.approx(-0.5)


def test_small_corrections_are_no_jumps():
    watch = JumpWatch(simulated=False)
    watch.jumped_s(10.0, 1.0)
    assert watch.jumped_s(10.09, 1.01) == 0.0
    assert watch.jumped_s(10.05, 1.06) == 0.0

"""Trajectories and the fade between them: where, and in what range from now on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.motion import positions

from thor_policy_ros.runtime.trajectory import Crossfade, Trajectory, constant


def line(*rows: float, start_s: float = 0.0, dt_s: float = 1.0, end_s: float = math.inf):
    """A trajectory of one joint."""
    whole_s = start_s + dt_s * (len(rows) - 1)
    return Trajectory(np.array(rows)[:, None], start_s, dt_s, min(whole_s, end_s))


def at(trajectory: Trajectory, time_s: float) -> float:
    return float(trajectory.preview(time_s).at[0])


def span(trajectory: Trajectory, time_s: float) -> tuple[float, float]:
    preview = trajectory.preview(time_s)
    return float(preview.low[0]), float(preview.high[0])


def test_is_linear_between_rows_and_constant_outside():
    rows = line(1, 3, 2, start_s=10.0)
    times = (9.0, 10.0, 10.5, 11.0, 11.75, 12.0, 99.0)
    assert [at(rows, t) for t in times] == [1, 1, 2, 3, 2.25, 2, 2]


def test_ends_early_where_it_is_cut_off():
    cut = line(0, 1, 2, 9, end_s=1.5)
    assert [at(cut, t) for t in (1.25, 1.5, 3.0)] == [1.25, 1.5, 1.5]
    assert span(cut, 0.0) == (0, 2)  # as far as the row after the cut, not to the 9
    assert span(cut, 1.5) == (1.5, 1.5)


def test_the_range_is_of_what_is_still_to_come():
    rows = line(0, 5, -1, 2)
    assert [span(rows, t) for t in (0.0, 1.0, 1.5, 2.0, 3.0)] == [
        (-1, 5),
        (-1, 5),
        (-1, 2),
        (-1, 2),
        (2, 2),
    ]


def test_a_constant_is_the_same_at_any_time():
    assert (
        span(constant(np.array([0.3])), -1e9) == span(constant(np.array([0.3])), 1e9) == (0.3, 0.3)
    )


def test_a_fade_begins_and_ends_without_a_corner():
    """Otherwise every chunk would begin with a jump of velocity."""
    blend = Crossfade(constant(np.array([0.0])))
    blend.add(constant(np.array([1.0])), 0.0, fade_s=1.0)
    path = np.array([blend.follow(t).at[0] for t in np.linspace(0, 1, 101)])
    speed = np.diff(path) / 0.01
    assert speed[0] < 0.05 and speed[-1] < 0.05
    assert speed.max() == pytest.approx(1.5, abs=0.01)
    assert path[50] == pytest.approx(0.5)


rows = st.lists(positions, min_size=2, max_size=6)
layers = st.lists(
    st.tuples(rows, st.floats(-1.0, 1.0), st.floats(0.05, 0.5), st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=4,
)


@given(positions, layers, st.lists(st.floats(0.0, 3.0), min_size=2, max_size=40))
def test_a_blend_never_leaves_the_range_it_told_before(base, layers, times_s):
    """As long as no other trajectory comes."""
    blend = Crossfade(constant(np.array([base])))
    now_s = 0.0
    for values, start_s, dt_s, fade_s, after_s in layers:
        blend.add(line(*values, start_s=start_s, dt_s=dt_s), now_s, fade_s)
        now_s += after_s
        blend.follow(now_s)
    low, high = -math.inf, math.inf
    for later_s in sorted(times_s):
        preview = blend.follow(now_s + later_s)
        told = np.array([low, preview.low[0], preview.at[0], preview.high[0], high])
        assert (np.diff(told) >= -1e-9).all()
        low, high = preview.low[0], preview.high[0]


@given(positions, layers)
def test_in_the_end_the_newest_is_followed_alone(base, layers):
    blend = Crossfade(constant(np.array([base])))
    for k, (values, _, dt_s, fade_s, _) in enumerate(layers):
        blend.add(line(*values, dt_s=dt_s), 0.1 * k, fade_s)
        blend.follow(0.1 * k + 0.05)
    assert blend.newest.rows[:, 0].tolist() == layers[-1][0]
    assert blend.follow(10.0).at[0] == pytest.approx(layers[-1][0][-1], abs=1e-9)

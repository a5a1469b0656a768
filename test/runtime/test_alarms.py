"""Levels rise at once and fall late, and never flicker inside the band."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.alarms import ERROR, FINE, WARN, Alarms


def test_above_rises_at_the_threshold_and_falls_below_the_band() -> None:
    alarms = Alarms(0.1)
    seen = [alarms.above("hot", value, 80.0, 100.0) for value in (80, 81, 75, 72, 71, 101, 95, 85)]
    assert seen == [FINE, WARN, WARN, FINE, FINE, ERROR, ERROR, WARN]


def test_below_is_the_mirror_image() -> None:
    alarms = Alarms(0.1)
    seen = [alarms.below("rate", value, 10.0, 5.0) for value in (10, 9.9, 10.5, 11, 4, 5.4, 5.6)]
    assert seen == [FINE, WARN, WARN, FINE, ERROR, ERROR, WARN]


def test_figures_are_judged_apart_and_forgotten_together() -> None:
    alarms = Alarms(0.5)
    assert (alarms.above("a", 2, 1), alarms.above("b", 0.8, 1)) == (WARN, FINE)
    assert alarms.above("a", 0.8, 1) == WARN
    alarms.forget()
    assert alarms.above("a", 0.8, 1) == FINE


def test_what_is_not_a_number_changes_nothing() -> None:
    alarms = Alarms()
    assert alarms.above("a", math.nan, 1) == FINE
    alarms.above("a", 2, 1)
    assert alarms.above("a", math.nan, 1) == WARN
    with pytest.raises(ValueError, match="from 0 to below 1"):
        Alarms(1.0)


@given(
    st.lists(st.floats(0.91, 1.0), min_size=1, max_size=20),
    st.sampled_from([0.5, 1.5]),
)
def test_inside_the_band_the_level_stays_as_it_was(values: list[float], first: float) -> None:
    alarms = Alarms(0.1)
    before = alarms.above("x", first, 1.0)
    assert {alarms.above("x", value, 1.0) for value in values} == {before}

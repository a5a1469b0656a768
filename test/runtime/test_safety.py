"""The safety check: nonsense is refused, with the joint, row, value and bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.motion import joint_limits

from thor_policy_ros.runtime.safety import Tolerance, check_chunk

DT_S = 0.1
LIMITS = joint_limits([-1.0, 0.0], [1.0, 0.1], [1.0, np.inf], [5.0, np.inf], joints=2)
NAMES = ("elbow", "suction")
EXACT = Tolerance(position=0.0, slew=1.0)


def rows(**changes: float) -> np.ndarray:
    """A still chunk; r3j0=2.0 sets row 3 of joint 0."""
    actions = np.full((5, 2), 0.05, np.float32)
    for place, value in changes.items():
        actions[int(place[1]), int(place[3])] = value
    return actions


def check(actions: np.ndarray, tolerance: Tolerance = EXACT, **options: object) -> str:
    return check_chunk(actions, DT_S, LIMITS, joint_names=NAMES, tolerance=tolerance, **options)


def test_a_sane_chunk_passes():
    assert check(rows()) == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_even_without_limits(value):
    assert check(rows(r3j1=value)) == f"joint suction row 3: {value} is not finite"
    assert check_chunk(rows(r3j1=value), DT_S, None) == f"joint #1 row 3: {value} is not finite"


def test_a_position_outside_its_limits_is_refused():
    said = check(rows(r3j1=0.2))
    assert said == "joint suction row 3: 0.2 is outside [0, 0.1] by more than 0"


def test_the_worst_position_is_told():
    assert check(rows(r1j1=0.2, r4j1=-0.7)).startswith("joint suction row 4: -0.7")


def test_positions_within_the_tolerance_pass():
    assert check(rows(r3j1=0.14), Tolerance(position=0.05)) == ""
    assert check(rows(r3j1=0.16), Tolerance(position=0.05)) != ""


def test_a_slew_beyond_the_velocity_limit_is_refused():
    said = check(rows(r3j0=0.25))
    assert said == "joint elbow row 3: slews at 2/s, more than 1 times its limit of 1/s"


def test_slews_within_the_tolerance_pass():
    assert check(rows(r3j0=0.24), Tolerance(position=0.0, slew=2.0)) == ""
    assert check(rows(r3j0=0.24), Tolerance(position=0.0, slew=1.5)) != ""


def test_the_slew_from_the_present_joints_counts_when_they_are_given():
    assert check(rows(), previous=np.array([0.0, 0.0], np.float32)) == ""
    said = check(rows(), previous=np.array([0.5, 0.0], np.float32))
    assert said.startswith("joint elbow row 0: slews at 4.5/s")


def test_a_joint_without_velocity_limit_may_slew():
    assert check(rows(r3j1=0.0, r2j1=0.1)) == ""


def test_a_difference_that_overflows_float32_is_refused():
    wide = joint_limits(-np.inf, np.inf, 1.0, np.inf, joints=2)
    assert "row 3: slews" in check_chunk(rows(r2j0=-3e38, r3j0=3e38), DT_S, wide)


def test_another_number_of_joints_is_refused():
    said = check_chunk(np.zeros((5, 3), np.float32), DT_S, LIMITS)
    assert said == "chunk has 3 action dimensions, limits 2"


@pytest.mark.parametrize("shape", [(5,), (0, 2), (1, 5, 2)])
def test_another_shape_is_refused(shape):
    assert "wants actions [H,A]" in check_chunk(np.zeros(shape, np.float32), DT_S, LIMITS)


@pytest.mark.parametrize("wrong", [{"position": -1.0}, {"position": np.nan}, {"slew": 0.0}])
def test_a_tolerance_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="tolerance wants"):
        Tolerance(**wrong)


@given(hnp.arrays(np.float32, (4, 2)))
def test_what_passes_is_within_limits_and_slew(actions):
    if check(actions) == "":
        assert np.isfinite(actions).all()
        assert (actions >= LIMITS.lower).all() and (actions <= LIMITS.upper).all()
        assert (np.abs(np.diff(actions, axis=0)) / DT_S <= LIMITS.velocity + 1e-5).all()


@given(st.integers(0, 2**32 - 1))
def test_any_slow_walk_inside_the_limits_passes(seed):
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.uniform(-0.099, 0.099, (10, 2)), axis=0)
    actions = np.clip(walk, LIMITS.lower, LIMITS.upper).astype(np.float32)
    assert check(actions) == ""

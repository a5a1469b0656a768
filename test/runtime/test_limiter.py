"""The limiter: limits at every tick, exact where the reference allows, no overshoot, no hunting."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.motion import assert_limits_kept, control_dts_s, joint_limits, limits, positions

from thor_policy_ros.runtime.limiter import JointLimiter
from thor_policy_ros.types import JointLimits


def run(limiter: JointLimiter, references: np.ndarray) -> np.ndarray:
    """Commands, f64[N,A], while following `references`, f64[N,A], from `positions` on."""
    previous = limiter.clip(references[0])
    commands = []
    for reference in references:
        reference = limiter.clip(reference)
        limiter.follow(previous, reference)
        previous = reference
        commands.append(limiter.positions)
    return np.array(commands)


def at_rest(limits: JointLimits, dt_s: float, *start: float) -> JointLimiter:
    """A limiter at `start`, or as near as the position limits allow."""
    limiter = JointLimiter(limits, dt_s)
    limiter.start(limiter.clip(np.array(start)))
    return limiter


two = st.tuples(positions, positions)


@given(limits(2), control_dts_s, two, st.lists(two | st.none(), min_size=1, max_size=60))
def test_limits_hold_for_any_jumping_reference_and_any_braking(limits, dt_s, start, wishes):
    limiter = at_rest(limits, dt_s, *start)
    begun = limiter.positions
    previous, commands = begun, []
    for wish in wishes:
        if wish is None:
            limiter.brake()
        else:
            reference = limiter.clip(np.array(wish))
            limiter.follow(previous, reference)
            previous = reference
        commands.append(limiter.positions)
    assert_limits_kept(commands, begun, limits, dt_s)


@given(
    st.floats(0.1, 3.0),
    st.floats(0.5, 50.0),
    control_dts_s,
    st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=80),
)
def test_a_reference_that_keeps_the_limits_is_reproduced(speed, acceleration, dt_s, pushes):
    velocity, path = 0.0, [0.0]
    for push in pushes:
        velocity = float(np.clip(velocity + push * acceleration * dt_s, -speed, speed))
        path.append(path[-1] + velocity * dt_s)
    limits = joint_limits(-math.inf, math.inf, speed * 1.001, acceleration * 1.001)
    limits = JointLimits(
        limits.lower, limits.upper, limits.velocity * 1.001, limits.acceleration * 1.001
    )
    limiter = at_rest(limits, dt_s, 0.0)
    for previous, reference in pairwise(path):
        done = limiter.follow(np.array([previous]), np.array([reference]))
        assert limiter.positions[0] == pytest.approx(reference, abs=1e-9)
        assert not (done.position or done.velocity or done.acceleration)


@given(limits(1, brisk=True), control_dts_s, positions, positions, st.lists(positions, max_size=20))
def test_a_constant_target_is_reached_and_kept_from_any_motion(limits, dt_s, start, target, before):
    limiter = at_rest(limits, dt_s, start)
    run(limiter, np.array([[x] for x in [start, *before]]))
    goal = limiter.clip(np.array([target]))
    speed, acceleration = float(limits.velocity[0]), float(limits.acceleration[0])
    distance = abs(goal[0] - limiter.positions[0])
    now = abs(limiter.velocities[0])
    # Stop, come back over what that took and the distance, each half of the way speeding up.
    way = distance + now**2 / acceleration + 2 * now * dt_s
    bound_s = (
        2 * now / acceleration
        + way / speed
        + 3 * math.sqrt(way / acceleration)
        + speed_up(speed, acceleration)
    )
    for _ in range(math.ceil(bound_s / dt_s) + 10):
        there = limiter.positions == pytest.approx(goal, abs=1e-10)
        if there and limiter.velocities == pytest.approx(0.0, abs=1e-10):
            break
        limiter.follow(goal, goal)
    path = np.array([limiter.positions, *run(limiter, np.repeat(goal[None], 5, axis=0))])
    assert path == pytest.approx(np.repeat(goal[None], 6, axis=0), abs=1e-9)


def speed_up(speed: float, acceleration: float) -> float:
    """Time from rest to full speed; none where one of them is not limited."""
    return 0.0 if math.isinf(acceleration) or math.isinf(speed) else 2 * speed / acceleration


@given(limits(1), control_dts_s, positions, positions)
def test_from_rest_a_target_is_approached_monotonically(limits, dt_s, start, target):
    limiter = at_rest(limits, dt_s, start)
    begun, goal = limiter.positions, limiter.clip(np.array([target]))
    path = np.vstack([begun, run(limiter, np.repeat(goal[None], 200, axis=0))])
    steps = np.diff(path[:, 0]) * np.sign(goal[0] - begun[0])
    assert (steps >= -1e-12).all(), "turned back"
    assert ((path[:, 0] - goal[0]) * np.sign(goal[0] - begun[0]) <= 1e-12).all(), "overshot"


@given(st.floats(0.01, 3.0), st.floats(0.5, 3.0), st.floats(0.5, 30.0), control_dts_s)
def test_a_target_is_reached_in_the_shortest_time(distance, speed, acceleration, dt_s):
    limits = joint_limits(-10, 10, speed, acceleration)
    limiter = at_rest(limits, dt_s, 0.0)
    to_speed = speed**2 / acceleration
    if distance > to_speed:
        shortest_s = distance / speed + speed / acceleration
    else:
        shortest_s = 2 * math.sqrt(distance / acceleration)
    ticks = math.ceil(shortest_s / dt_s) + 2
    path = run(limiter, np.full((ticks, 1), distance))
    assert path[-1, 0] == pytest.approx(distance, abs=1e-6)


@given(
    st.floats(-0.9, 0.9), st.floats(-1.0, 1.0), st.floats(2.0, 30.0), st.sampled_from([0.01, 0.02])
)
def test_a_steadily_moving_reference_is_caught_and_kept(drift, offset, acceleration, dt_s):
    """Speed limit 2, reference at up to 0.9: caught within 1 / 1.1 s and the braking."""
    limits = joint_limits(-1e3, 1e3, 2.0, acceleration)
    limiter = at_rest(limits, dt_s, 0.0)
    ticks = math.ceil((2.0 + 8.0 / acceleration + 3 / math.sqrt(acceleration)) / dt_s)
    reference = offset + drift * dt_s * np.arange(ticks)
    error = run(limiter, reference[:, None])[:, 0] - reference
    assert error[-1] == pytest.approx(0.0, abs=1e-9)
    tail = np.abs(error[-5:])
    assert tail.max() < 1e-9, "hunts around the reference"


@given(control_dts_s, st.lists(positions, min_size=1, max_size=30))
def test_a_joint_without_speed_and_acceleration_limits_follows_directly(dt_s, references):
    limiter = at_rest(joint_limits(-1.0, 1.0, math.inf, math.inf), dt_s, 0.0)
    commands = run(limiter, np.array(references)[:, None])
    assert commands[:, 0] == pytest.approx(np.clip(references, -1.0, 1.0), abs=1e-12)


@given(limits(1), control_dts_s, positions, positions, st.integers(1, 30))
def test_braking_takes_the_shortest_way_and_then_stands(limits, dt_s, start, target, ticks):
    limiter = at_rest(limits, dt_s, start)
    run(limiter, np.full((ticks, 1), target))
    change = float(limits.acceleration[0]) * dt_s
    speed = abs(limiter.velocities[0])
    needed = 1 if math.isinf(change) else math.ceil(speed / change - 1e-6)
    for _ in range(needed):
        limiter.brake()
    assert limiter.velocities == pytest.approx(0.0, abs=1e-7)
    stood = limiter.positions
    limiter.brake()
    assert limiter.positions == pytest.approx(stood, abs=1e-9)


@given(
    limits(1, brisk=True),
    control_dts_s,
    positions,
    st.lists(st.tuples(positions, st.integers(1, 30)), min_size=1, max_size=8),
)
def test_a_reference_whose_range_is_known_is_not_overshot(limits, dt_s, start, corners):
    """Straight lines from corner to corner, however fast: the joint never goes beyond them."""
    limiter = at_rest(limits, dt_s, start)
    lines = [np.linspace(a[0], b[0], b[1] + 1)[1:] for a, b in pairwise([(start, 0), *corners])]
    path = limiter.clip(np.concatenate([[start], *lines]))[:, None]
    commands = []
    for k in range(len(path) + 100):
        now = min(k, len(path) - 1)
        rest = path[now:]
        limiter.follow(path[max(now - 1, 0)], path[now], rest.min(0), rest.max(0))
        commands.append(limiter.positions)
    assert path.min() - 1e-9 <= np.min(commands)
    assert np.max(commands) <= path.max() + 1e-9


def test_interventions_name_the_limit():
    limiter = at_rest(joint_limits(-1, 1, 1.0, 10.0), 0.01, 0.0)
    done = limiter.follow(np.array([0.0]), np.array([0.5]))
    assert done.acceleration and done.velocity and not done.position
    limiter = at_rest(joint_limits(-1, 1, 1.0, math.inf), 0.01, 0.0)
    done = limiter.follow(np.array([0.0]), np.array([0.5]))
    assert done.velocity and not done.acceleration


def test_the_edge_of_the_range_counts_as_a_position_intervention():
    limiter = at_rest(joint_limits(-1, 1, 5.0, 10.0), 0.01, 0.0)
    seen = False
    for k in range(200):  # a reference at 2/s that runs into the edge without braking
        done = limiter.follow(np.array([min(0.02 * k, 1.0)]), np.array([min(0.02 * (k + 1), 1.0)]))
        seen |= done.position
    assert seen
    assert limiter.positions[0] == pytest.approx(1.0, abs=1e-9)


def test_a_start_outside_comes_back_at_limited_speed_and_never_goes_farther_out():
    limits = joint_limits(-1, 1, 1, 10)
    limiter = JointLimiter(limits, 0.01)
    limiter.start(np.array([1.5]))
    farther = np.array([1.0])  # what a reference beyond the limit is clipped to
    path = [limiter.positions]
    for _ in range(200):
        limiter.follow(farther, farther)
        path.append(limiter.positions)
    assert_limits_kept(path[1:], path[0], joint_limits(-1, 1.5, 1, 10), 0.01)
    assert (np.diff(path, axis=0) <= 1e-12).all()
    assert limiter.positions[0] == pytest.approx(1.0, abs=1e-9)


def test_braking_on_the_way_back_from_outside_is_not_a_leap():
    limiter = JointLimiter(joint_limits(-1, 1, 1, 10), 0.01)
    limiter.start(np.array([1.5]))
    limiter.follow(np.array([1.0]), np.array([1.0]))
    before = limiter.positions
    limiter.brake()
    assert limiter.positions[0] == pytest.approx(before[0], abs=10 * 0.01**2)

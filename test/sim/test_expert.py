"""The scripted teacher."""

import numpy as np
import pytest
from support.tabletop import expert_answer, solve

from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.sim.expert import HORIZON, expert_chunk
from thor_policy_ros.sim.instructions import FOLLOW, HOLD_STILL, PICK_UP
from thor_policy_ros.sim.kinematics import joints_for_tip, tip_position
from thor_policy_ros.sim.scene import OBJECT_RADIUS_M

OBJECTS = np.array([[0.35, -0.15, 0.022], [0.45, 0.0, 0.022], [0.5, 0.2, 0.022]])
STILL = np.zeros((3, 2))


@pytest.fixture(scope="module")
def arm() -> TabletopArm:
    return TabletopArm(image_size=8)


def state_at(tip, holding=0.0) -> np.ndarray:
    return np.append(joints_for_tip(np.asarray(tip, float)), holding).astype(np.float32)


def answer(tip, verb, target=1, held=-1, velocities=STILL) -> np.ndarray:
    """f32[10,5] for one situation."""
    state = state_at(tip, float(held >= 0))
    return expert_chunk(
        state[None],
        np.array([held]),
        OBJECTS[None],
        velocities[None],
        np.array([target]),
        np.array([verb]),
    )[0]


@pytest.mark.parametrize("speed", [0.0, 0.12])
@pytest.mark.parametrize("seed", range(5))
def test_it_solves_episodes_when_asked_anew_every_tick(arm, seed, speed):
    arm.reset(seed, speed)
    assert solve(arm) == "success"


def test_a_batch_is_answered_like_each_alone(arm):
    rng = np.random.default_rng(0)
    count = 40
    tips = rng.uniform((0.25, -0.25, 0.03), (0.6, 0.25, 0.25), (count, 3))
    held = rng.integers(-1, 3, count)
    state = np.stack([state_at(t, float(h >= 0)) for t, h in zip(tips, held, strict=True)])
    objects = OBJECTS + rng.normal(0, 0.02, (count, 3, 3)) * (1, 1, 0)
    velocities = rng.normal(0, 0.05, (count, 3, 2))
    target, verb = rng.integers(0, 3, count), rng.integers(0, 3, count)
    together = expert_chunk(state, held, objects, velocities, target, verb)
    assert together.shape == (count, HORIZON, 5) and together.dtype == np.float32
    for i in range(count):
        one = slice(i, i + 1)
        alone = expert_chunk(
            state[one], held[one], objects[one], velocities[one], target[one], verb[one]
        )
        np.testing.assert_allclose(together[one], alone, atol=1e-6)


def test_speeds_stay_within_the_joint_limits(arm):
    for seed in range(5):
        arm.reset(seed, 0.12)
        speed = np.abs(np.diff(expert_answer(arm)[:, :4], axis=0)) / 0.1
        assert (speed < arm.limits.velocity[:4]).all()


def test_a_chunk_ends_over_a_followed_object_and_does_not_suck():
    chunk = answer((0.42, 0.02, 0.12), FOLLOW)
    x, y, z = tip_position(chunk[-1, :4])
    np.testing.assert_allclose((x, y), OBJECTS[1, :2], atol=2e-3)
    assert 0.02 < z - 2 * OBJECT_RADIUS_M < 0.06
    assert (chunk[:, 4] == 0).all()


def test_it_reckons_with_the_velocity_it_is_told():
    velocities = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.0]])
    ahead = tip_position(answer((0.45, 0.0, 0.09), FOLLOW, velocities=velocities)[-1, :4])
    assert ahead[0] - OBJECTS[1, 0] == pytest.approx(0.1 * 0.94, abs=0.015)


def test_a_chunk_that_picks_up_goes_down_sucks_and_lifts():
    chunk = answer((0.45, 0.0, 0.07), PICK_UP)
    heights = tip_position(chunk[:, :4])[:, 2]
    lowest = int(heights.argmin())
    assert heights[lowest] < 2 * OBJECT_RADIUS_M
    assert (chunk[lowest:, 4] == 1).all()
    assert heights[-1] > heights[lowest] + 0.05


def test_beside_an_object_it_goes_up_before_it_goes_across():
    x, y, _ = OBJECTS[1]
    path = tip_position(answer((x - 0.05, y, 0.03), PICK_UP)[:, :4])
    moved = np.linalg.norm(path[:, :2] - path[0, :2], axis=1)
    up = int((path[:, 2] > 2 * OBJECT_RADIUS_M).argmax())
    assert up > 0 and moved[up - 1] < 0.01
    assert moved[-1] == pytest.approx(0.05, abs=2e-3)


@pytest.mark.parametrize(("verb", "target"), [(PICK_UP, 0), (FOLLOW, 1)])
def test_it_lets_go_of_what_it_should_not_hold(verb, target):
    assert answer((0.45, 0.0, 0.044), verb, target=target, held=1)[0, 4] == 0.0


def test_it_keeps_and_lifts_what_it_should_hold():
    chunk = answer((0.45, 0.0, 0.05), PICK_UP, target=1, held=1)
    assert (chunk[:, 4] == 1).all()
    assert tip_position(chunk[-1, :4])[2] > 0.15


@pytest.mark.parametrize("held", [-1, 1])
def test_on_a_blank_instruction_it_holds_still(held):
    tip = (0.4, 0.1, 0.15)
    chunk = answer(tip, HOLD_STILL, held=held)
    np.testing.assert_array_equal(chunk, np.tile(state_at(tip, float(held >= 0)), (HORIZON, 1)))

"""What an episode holds, and the rules by which it is judged."""

import numpy as np
import pytest

from thor_policy_ros.sim.episode import FOLLOW_TICKS, LIFTED_TICKS, Judge, plan_episode
from thor_policy_ros.sim.instructions import COLOURS, HOLD_STILL, SHAPES, parse_instruction
from thor_policy_ros.sim.scene import OBJECT_RADIUS_M, TABLE_X_M, TABLE_Y_M

MAX_TICKS = 40
PLACES = np.array([[0.3, -0.2], [0.4, 0.0], [0.5, 0.2]])
FAR_TIP = np.array([0.4, 0.1, 0.25])


def episode(instruction=None, seed=0):
    return plan_episode(np.random.default_rng(seed), instruction)


def judge(verb: str):
    """A judge, and the index of the object that the instruction names."""
    planned = episode(f"{verb} the red object")
    return Judge(planned, MAX_TICKS), planned.target


def objects(lifted: int = -1, height: float = 0.0) -> np.ndarray:
    """f64[3,3]: centres of objects on the table, one of them raised."""
    centres = np.column_stack([PLACES, np.full(3, OBJECT_RADIUS_M)])
    if lifted >= 0:
        centres[lifted, 2] += height
    return centres


def over(target: int, aside: float = 0.0, clearance: float = 0.04) -> np.ndarray:
    x, y = PLACES[target]
    return np.array([x + aside, y, 2 * OBJECT_RADIUS_M + clearance])


class TestScene:
    @pytest.mark.parametrize("seed", range(20))
    def test_colours_differ_and_the_instruction_names_the_target(self, seed):
        planned = episode(seed=seed)
        assert len(set(planned.colours)) == 3
        task = parse_instruction(planned.instruction)
        assert task.colour == planned.colours[planned.target]
        assert task.noun in ("object", SHAPES[planned.shapes[planned.target]])
        assert task.verb == planned.verb

    @pytest.mark.parametrize("seed", range(20))
    def test_objects_begin_on_the_table_and_apart(self, seed):
        places = episode(seed=seed).positions
        low, high = np.array([TABLE_X_M, TABLE_Y_M]).T
        assert (places >= low).all() and (places <= high).all()
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
        assert gaps[np.triu_indices(3, 1)].min() > 0.1

    @pytest.mark.parametrize("seed", range(20))
    def test_a_given_instruction_is_made_possible(self, seed):
        planned = episode("follow the yellow cylinder", seed)
        assert COLOURS[planned.colours[planned.target]] == "yellow"
        assert SHAPES[planned.shapes[planned.target]] == "cylinder"
        assert len(set(planned.colours)) == 3

    def test_a_blank_instruction_has_no_target(self):
        planned = episode("")
        assert (planned.verb, planned.target) == (HOLD_STILL, -1)

    @pytest.mark.parametrize("seed", range(20))
    def test_the_other_instruction_names_another_object_with_the_same_verb(self, seed):
        planned = episode(seed=seed)
        other = parse_instruction(planned.other_instruction(np.random.default_rng(seed)))
        assert other.verb == planned.verb
        assert other.colour in planned.colours
        assert other.colour != planned.colours[planned.target]


class TestPickUp:
    def test_the_target_held_up_for_three_ticks_is_success(self):
        rules, target = judge("pick up")
        for _ in range(LIFTED_TICKS - 1):
            rules.tick(FAR_TIP, objects(target, 0.06), target)
            assert rules.outcome == "running"
        rules.tick(FAR_TIP, objects(target, 0.06), target)
        assert rules.outcome == "success"

    def test_a_lift_that_is_interrupted_counts_anew(self):
        rules, target = judge("pick up")
        for height in (0.06, 0.06, 0.04, 0.06, 0.06):
            rules.tick(FAR_TIP, objects(target, height), target)
        assert rules.outcome == "running"

    def test_lifting_another_object_ends_it(self):
        rules, target = judge("pick up")
        other = (target + 1) % 3
        for _ in range(LIFTED_TICKS):
            rules.tick(FAR_TIP, objects(other, 0.06), other)
        assert rules.outcome == "wrong_object"

    def test_hovering_is_not_enough(self):
        rules, target = judge("pick up")
        for _ in range(FOLLOW_TICKS + 1):
            rules.tick(over(target), objects(), -1)
        assert rules.outcome == "running"


class TestFollow:
    def test_staying_above_for_twenty_ticks_is_success(self):
        rules, target = judge("follow")
        for _ in range(FOLLOW_TICKS):
            assert rules.outcome == "running"
            rules.tick(over(target, aside=0.024), objects(), -1)
        assert rules.outcome == "success"

    @pytest.mark.parametrize(
        "slip", [{"aside": 0.026}, {"clearance": 0.0}, {"clearance": 0.11}], ids=str
    )
    def test_one_tick_too_far_or_touching_counts_anew(self, slip):
        rules, target = judge("follow")
        for tick in range(FOLLOW_TICKS + 10):
            tip = over(target, **slip) if tick == 15 else over(target)
            rules.tick(tip, objects(), -1)
        assert rules.outcome == "running"

    def test_following_another_object_does_not_count(self):
        rules, target = judge("follow")
        for _ in range(FOLLOW_TICKS + 1):
            rules.tick(over((target + 1) % 3), objects(), -1)
        assert rules.outcome == "running"

    def test_lifting_even_the_target_is_not_what_was_asked(self):
        rules, target = judge("follow")
        for _ in range(LIFTED_TICKS):
            rules.tick(over(target), objects(target, 0.06), target)
        assert rules.outcome == "wrong_object"


def test_nothing_done_is_a_timeout():
    rules, _ = judge("pick up")
    for _ in range(MAX_TICKS - 1):
        rules.tick(FAR_TIP, objects(), -1)
    assert rules.outcome == "running"
    rules.tick(FAR_TIP, objects(), -1)
    assert rules.outcome == "timeout"


def test_the_first_verdict_stays():
    rules, target = judge("pick up")
    for _ in range(MAX_TICKS):
        rules.tick(FAR_TIP, objects(), -1)
    for _ in range(LIFTED_TICKS):
        rules.tick(FAR_TIP, objects(target, 0.06), target)
    assert rules.outcome == "timeout"

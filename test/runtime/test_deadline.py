"""What a tick is worth when time is short: the best that is in time, and never nothing for long."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.deadline import (
    MAX_SKIPPED_TICKS,
    WAITING_REASONS,
    Costs,
    Frame,
    NoFrame,
    Situation,
    choose,
    step_counts,
)
from thor_policy_ros.runtime.reuse import Refill, Reuse

COSTS = Costs(rest_ms=5.0, prefix_ms=50.0, step_ms=4.0)  # full 95, 5 steps 75, reuse 45


def situation(budget_ms: float, left_ms: float = 800.0, skipped: int = 0) -> Situation:
    return Situation(budget_ms, left_ms, must_cover_ms=200.0, skipped_ticks=skipped)


@pytest.mark.parametrize(
    ("decision", "at", "expected"),
    [
        (Reuse(1), situation(100.0), Frame(Refill("in time"), 10)),
        (Reuse(1), situation(80.0), Frame(Refill("in time"), 5)),
        (Reuse(1), situation(64.0), Frame(Refill("in time"), 2)),
        (Reuse(1), situation(50.0), Frame(Reuse(1), 10)),
        (Reuse(1), situation(30.0), Frame(Reuse(1), 5)),
        (Reuse(1), situation(10.0), NoFrame("continue")),
        (Reuse(1), situation(10.0, left_ms=150.0), NoFrame("hold")),
        (Reuse(1), situation(10.0, skipped=2), Frame(Refill("overdue"), 2, late=True)),
        (Refill("age"), situation(80.0), Frame(Refill("age"), 5)),
        (Refill("age"), situation(50.0), NoFrame("continue")),
        (Refill("age"), situation(-20.0), NoFrame("continue")),
        (Refill("age"), situation(50.0, skipped=2), Frame(Refill("overdue"), 2, late=True)),
        (Refill("prompt changed"), situation(50.0), Frame(Refill("prompt changed"), 2, late=True)),
        (Refill("reset"), situation(50.0), Frame(Refill("reset"), 2, late=True)),
    ],
)
def test_by_example(decision, at, expected):
    assert choose(decision, COSTS, at, 10, 2) == expected


def test_what_was_never_measured_is_tried():
    assert choose(Refill("age"), Costs(), situation(100.0), 10, 2) == Frame(Refill("age"), 10)


@pytest.mark.parametrize(
    ("wanted", "least", "expected"),
    [(10, 1, [10, 5, 3, 2, 1]), (10, 4, [10, 5, 4]), (3, 3, [3]), (3, 9, [3]), (1, 1, [1])],
)
def test_step_counts_are_few(wanted, least, expected):
    assert step_counts(wanted, least) == expected


ms = st.floats(0.0, 300.0)
costs = st.builds(Costs, ms, ms, st.floats(0.0, 30.0))
reasons = st.sampled_from([*WAITING_REASONS, "prompt changed", "reset", "image changed: base"])
decisions = st.builds(Reuse, st.integers(0, 5)) | st.builds(Refill, reasons)
situations = st.builds(
    Situation, st.floats(-300.0, 300.0), st.floats(-500.0, 900.0), ms, st.integers(0, 6)
)
steps = st.integers(1, 20)


@given(decisions, costs, situations, steps, steps)
def test_what_is_not_late_is_expected_in_time_and_nothing_better_is(
    decision, known, at, num_steps, min_steps
):
    chosen = choose(decision, known, at, num_steps, min_steps)
    assert choose(decision, known, at, num_steps, min_steps) == chosen, "a pure function"
    full_ms = known.frame_ms(num_steps, refill=True)
    assert (full_ms <= at.budget_ms) == (
        isinstance(chosen, Frame)
        and isinstance(chosen.decision, Refill)
        and chosen.num_steps == num_steps
        and not chosen.late
    )
    if isinstance(chosen, Frame):
        refill = isinstance(chosen.decision, Refill)
        assert min(min_steps, num_steps) <= chosen.num_steps <= num_steps
        assert chosen.late or known.frame_ms(chosen.num_steps, refill) <= at.budget_ms


@given(decisions, costs, situations, steps)
def test_a_refill_that_is_due_is_never_reused_and_one_for_a_change_never_waits(
    decision, known, at, num_steps
):
    chosen = choose(decision, known, at, num_steps, 1)
    if isinstance(decision, Refill):
        assert not (isinstance(chosen, Frame) and isinstance(chosen.decision, Reuse))
        if decision.reason not in WAITING_REASONS:
            assert isinstance(chosen, Frame)


@given(costs, st.lists(st.tuples(decisions, situations), min_size=1, max_size=40), steps)
def test_nobody_starves(known, run, num_steps):
    """Whatever the costs say, a frame is computed at least every MAX_SKIPPED_TICKS + 1 ticks."""
    skipped = 0
    for decision, at in run:
        now = Situation(at.budget_ms, at.chunk_left_ms, at.must_cover_ms, skipped)
        skipped = (
            0 if isinstance(choose(decision, known, now, num_steps, 1), Frame) else skipped + 1
        )
        assert skipped <= MAX_SKIPPED_TICKS


@given(decisions, costs, steps)
def test_without_a_deadline_every_frame_is_full(decision, known, num_steps):
    at = Situation(math.inf, 0.0, math.inf, 0)
    chosen = choose(decision, known, at, num_steps, 1)
    assert isinstance(chosen, Frame) and isinstance(chosen.decision, Refill)
    assert chosen.num_steps == num_steps

"""What a chunk is to continue, from what was sent and taken up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.real_time_chunking import (
    DELAYS_KEPT,
    SCHEDULES,
    ChunkingFacts,
    ChunkingRules,
    RealTimeChunking,
    prefix_weights,
)
from thor_policy_ros.types import ActionChunk

DT_S = 0.1


def ramp(observed_s: float, rows: int = 10, slope: float = 1.0) -> ActionChunk:
    """Row k is at the time of row k, in s: whoever executes it is at `slope * time`."""
    times = observed_s + DT_S * np.arange(rows)
    return ActionChunk((slope * times[:, None]).astype(np.float32), DT_S, observed_s)


def going(delay_s: float = 0.2, chunks: int = 3, **rules) -> RealTimeChunking:
    """A chunk every 0.1 s from 0 on, each taken up `delay_s` after its inference began."""
    chunking = RealTimeChunking(ChunkingRules(enabled=True, **rules))
    for k in range(chunks):
        chunking.sent(k, ramp(k * DT_S), "go", k * DT_S, k * DT_S + 0.05)
        chunking.taken_up(k, k * DT_S + delay_s)
    return chunking


def test_nothing_is_known_before_the_first_chunk():
    chunking = RealTimeChunking()
    assert chunking.continuation(10, DT_S, 0.0, 0.0, "go") is None
    assert chunking.facts == ChunkingFacts(None, "", 0)
    chunking.sent(0, ramp(0.0), "go", 0.0, 0.05)
    assert chunking.continuation(10, DT_S, 0.1, 0.1, "go") is not None


def test_rows_repeat_what_will_have_been_executed():
    found = going(delay_s=0.2, execution_horizon=5).continuation(10, DT_S, 0.3, 0.3, "go")
    assert found.delay_s == pytest.approx(0.2)
    assert found.known_rows == 3  # at 0.3, 0.4 and, when it takes over, 0.5
    assert (found.weights[:3] == 1.0).all() and 0 < found.weights[3] < 1
    reached = found.weights > 0
    assert found.actions[reached, 0] == pytest.approx((0.3 + DT_S * np.arange(10))[reached])


def test_a_chunk_of_another_grid_is_read_between_its_rows():
    found = going().continuation(8, 0.05, 0.33, 0.33, "go")
    assert found.actions[:5, 0] == pytest.approx(0.33 + 0.05 * np.arange(5), abs=1e-5)


def test_the_executors_own_answer_counts_and_the_longest_of_them():
    chunking = going(delay_s=0.1)
    chunking.sent(9, ramp(0.4), "go", 0.4, 0.41)
    chunking.taken_up(9, 0.75)
    facts = chunking.facts
    assert (facts.source, facts.delay_s, facts.chunks) == ("executor", pytest.approx(0.35), 4)
    for k in range(DELAYS_KEPT):
        chunking.sent(20 + k, ramp(1.0), "go", 1.0 + k, 1.05 + k)
        chunking.taken_up(20 + k, 1.1 + k)
    assert chunking.facts.delay_s == pytest.approx(0.1)  # the long one is forgotten


def test_publication_counts_until_the_executor_answers():
    chunking = RealTimeChunking()
    chunking.sent(0, ramp(0.0), "go", 0.0, 0.07)
    assert chunking.facts == ChunkingFacts(pytest.approx(0.07), "published", 0)
    chunking.taken_up(0, 0.25)
    assert chunking.facts == ChunkingFacts(pytest.approx(0.25), "executor", 1)


def test_each_time_is_of_the_chunk_in_charge_then():
    """Chunk 1 is taken up at 0.35: until then the robot follows chunk 0."""
    chunking = RealTimeChunking(ChunkingRules(True))
    chunking.sent(0, ramp(0.0, slope=1.0), "go", 0.0, 0.0)
    chunking.taken_up(0, 0.25)
    chunking.sent(1, ramp(0.1, slope=-1.0), "go", 0.1, 0.1)  # not heard of: 0.1 + 0.25
    found = chunking.continuation(10, DT_S, 0.2, 0.2, "go")
    assert found.actions[:4, 0] == pytest.approx([0.2, 0.3, -0.4, -0.5], abs=1e-6)


def test_a_refused_chunk_is_not_continued():
    chunking = going(chunks=1)
    chunking.sent(1, ramp(0.1, slope=-1.0), "go", 0.1, 0.1)
    chunking.refused(1)
    assert (chunking.continuation(10, DT_S, 0.2, 0.2, "go").actions[:, 0] >= 0).all()


def test_other_words_free_all_that_is_not_yet_executed():
    found = going().continuation(10, DT_S, 0.3, 0.3, "stop")
    assert found.weights.tolist() == [1.0] * 3 + [0.0] * 7


def test_rows_beyond_the_chunk_before_are_free():
    chunking = RealTimeChunking(ChunkingRules(True, execution_horizon=10, schedule="ones"))
    chunking.sent(0, ramp(0.0, rows=4), "go", 0.0, 0.0)
    chunking.taken_up(0, 0.0)
    found = chunking.continuation(10, DT_S, 0.1, 0.1, "go")
    assert found.weights.tolist() == [1.0] * 3 + [0.0] * 7


def test_what_is_held_at_the_end_of_a_chunk_will_have_been_executed_too():
    chunking = RealTimeChunking(ChunkingRules(True))
    chunking.sent(0, ramp(0.0, rows=4), "go", 0.0, 0.0)
    chunking.taken_up(0, 0.5)
    found = chunking.continuation(10, DT_S, 0.2, 0.2, "go")
    assert found.known_rows == 6 and (found.weights[:6] == 1.0).all()
    assert found.actions[:6, 0] == pytest.approx([0.2] + [0.3] * 5)


def test_a_reused_prefix_has_rows_that_are_past_already():
    """Observed at 0.1, inferred anew at 0.3: its first rows are history, and known as well."""
    found = going(delay_s=0.1).continuation(10, DT_S, 0.1, 0.3, "go")
    assert found.known_rows == 4
    assert found.actions[:4, 0] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-6)


def test_reset_forgets_and_a_jump_of_the_clock_is_no_delay():
    chunking = going()
    chunking.reset()
    assert chunking.continuation(10, DT_S, 0.3, 0.3, "go") is None
    chunking.sent(5, ramp(0.0), "go", 0.0, 0.0)
    chunking.taken_up(5, 3600.0)
    assert chunking.facts.source == "published"
    chunking.sent(6, ramp(5.0), "go", 5.0, 5.0)
    chunking.taken_up(6, 5.1)
    # The clock goes back: nothing that began later than now is of this time.
    assert chunking.continuation(10, DT_S, -9.0, -9.0, "go") is None


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(known=st.integers(0, 12), horizon=st.integers(0, 15), rows=st.integers(1, 12))
def test_weights_never_rise(schedule, known, horizon, rows):
    weights = prefix_weights(known, horizon, rows, schedule)
    assert weights.shape == (rows,) and weights.dtype == np.float32
    assert (weights[:known] == 1.0).all()
    assert (np.diff(weights) <= 0).all() and (weights >= 0).all()
    assert (weights[max(known, horizon) :] == 0.0).all()


def test_exponential_decay_as_published():
    c = np.array([3, 2, 1]) / 4
    wanted = c * np.expm1(c) / math.expm1(1)
    assert prefix_weights(2, 5, 7, "exp")[2:5] == pytest.approx(wanted)
    assert prefix_weights(2, 5, 7, "linear")[2:5] == pytest.approx(c)


@given(
    delay_s=st.floats(0.0, 1.2),
    lead_s=st.floats(0.0, 0.5),
    rows=st.integers(2, 20),
    horizon=st.integers(0, 20),
)
def test_what_is_continued_is_finite_and_on_the_chunks(delay_s, lead_s, rows, horizon):
    chunking = going(delay_s, execution_horizon=horizon)
    found = chunking.continuation(rows, DT_S, 0.3 - lead_s, 0.3, "go")
    if found is None:
        return
    assert np.isfinite(found.actions).all() and ((found.weights >= 0) & (found.weights <= 1)).all()
    assert found.actions.shape == (rows, 1) and found.weights.shape == (rows,)
    assert found.actions.min() >= 0.0 and found.actions.max() <= 1.2


@pytest.mark.parametrize(
    "rules",
    [{"schedule": "steep"}, {"mode": "magic"}, {"execution_horizon": -1}, {"max_weight": math.inf}],
)
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(ValueError, match="rtc"):
        ChunkingRules(**rules)

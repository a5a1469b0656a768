"""When a prefix may be used again: never too old, never across a change."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.reuse import (
    ADAPTIVE_THRESHOLD,
    MAX_LATE_TICKS,
    MODES,
    Gone,
    HeldPrefix,
    Late,
    Moment,
    PrefixKey,
    Refill,
    Reuse,
    ReuseRules,
    decide,
    decide_pipelined,
)

KEY = PrefixKey("pick up the red cube", frozenset({"base", "wrist"}), b"12", "demo/pytorch")
HELD = HeldPrefix(KEY, tick=100, observed_at_s=10.0)
NONE = Gone("reset")

keys = st.builds(
    PrefixKey,
    st.sampled_from(["red", "blue"]),
    st.sampled_from([frozenset({"base"}), frozenset({"base", "wrist"})]),
    st.sampled_from([b"", b"1"]),
    st.sampled_from(["demo/pytorch", "demo/fp8"]),
)
ticks = st.integers(-5, 20)
times_s = st.floats(-1.0, 1.0) | st.sampled_from([math.nan, math.inf, -math.inf])
moments = st.builds(Moment, keys, ticks, times_s, times_s)
helds = st.just(NONE) | st.builds(HeldPrefix, keys, ticks, times_s)
every = st.integers(1, 6)
max_ages_ms = st.sampled_from([0.0, 50.0, 500.0])
cameras = st.sets(st.sampled_from(["base", "wrist"]))


def moment(tick: int, observed_at_s: float, now_s: float | None = None, **key: object) -> Moment:
    now_s = observed_at_s if now_s is None else now_s
    return Moment(replace(KEY, **key), tick, observed_at_s, now_s)


@pytest.mark.parametrize(
    ("held", "at", "reuse_every", "expected"),
    [
        (NONE, moment(0, 10.0), 4, Refill("reset")),
        (HELD, moment(101, 10.1), 4, Reuse(1)),
        (HELD, moment(103, 10.3), 4, Reuse(3)),
        (HELD, moment(104, 10.4), 4, Refill("age")),
        (HELD, moment(100, 10.0), 4, Reuse(0)),
        (HELD, moment(101, 10.1), 1, Refill("age")),
        (HELD, moment(100, 10.0), 1, Refill("age")),
        (HELD, moment(101, 10.1, prompt="blue"), 4, Refill("prompt changed")),
        (HELD, moment(101, 10.1, cameras=frozenset({"base"})), 4, Refill("cameras changed")),
        (HELD, moment(101, 10.1, tokens=b"13"), 4, Refill("state changed")),
        (HELD, moment(101, 10.1, policy="demo/fp8"), 4, Refill("policy changed")),
        (HELD, moment(99, 10.1), 4, Refill("time went back")),
        (HELD, moment(101, 9.9), 4, Refill("time went back")),
        (HELD, moment(101, math.nan), 4, Refill("time unknown")),
        (HELD, moment(101, 10.1, math.inf), 4, Refill("time unknown")),
        (replace(HELD, observed_at_s=math.nan), moment(101, 10.1), 4, Refill("time unknown")),
    ],
)
def test_by_example(held, at, reuse_every, expected):
    assert decide(held, at, reuse_every) == expected


@pytest.mark.parametrize(
    ("now_s", "max_age_ms", "expected"),
    [(10.3, 0.0, Reuse(1)), (10.3, 300.1, Reuse(1)), (10.3, 250.0, Refill("age in ms"))],
)
def test_age_in_ms_counts_from_the_observation_to_now(now_s, max_age_ms, expected):
    assert decide(HELD, moment(101, 10.1, now_s), 9, max_age_ms) == expected


def test_a_changed_image_refills_and_is_named():
    assert decide(HELD, moment(101, 10.1), 9, changed={"wrist", "base"}) == Refill(
        "image changed: base, wrist"
    )


@given(helds, moments, every, max_ages_ms, cameras)
def test_a_reused_prefix_is_younger_than_allowed_and_of_the_same_key(
    held, at, reuse_every, max_age_ms, changed
):
    decision = decide(held, at, reuse_every, max_age_ms, changed)
    if isinstance(decision, Reuse):
        assert isinstance(held, HeldPrefix)
        assert held.key == at.key
        assert 0 <= at.tick - held.tick == decision.age_ticks < reuse_every
        assert at.observed_at_s >= held.observed_at_s
        assert all(map(math.isfinite, (at.observed_at_s, at.now_s, held.observed_at_s)))
        assert not max_age_ms or (at.now_s - held.observed_at_s) * 1e3 <= max_age_ms
        assert reuse_every > 1 and not changed
    else:
        assert decision.reason


@given(helds, moments, every, max_ages_ms, cameras)
def test_the_same_inputs_give_the_same_decision(held, at, reuse_every, max_age_ms, changed):
    first = decide(held, at, reuse_every, max_age_ms, changed)
    assert decide(held, at, reuse_every, max_age_ms, changed) == first


@given(every, st.lists(st.integers(1, 4), max_size=60))
def test_over_any_run_with_missed_ticks_no_prefix_outlives_its_time(reuse_every, steps):
    """And none is thrown away before, when nothing changes."""
    held, tick = NONE, 0
    for step in steps:
        tick += step
        decision = decide(held, moment(tick, float(tick)), reuse_every)
        if isinstance(decision, Refill):
            assert held is NONE or tick - held.tick >= reuse_every
            held = HeldPrefix(KEY, tick, float(tick))
        assert tick - held.tick < reuse_every


@given(helds, moments)
def test_a_pipelined_prefix_is_late_by_a_few_ticks_at_most_and_of_the_same_key(held, at):
    decision = decide_pipelined(held, at)
    if isinstance(decision, Late):
        assert isinstance(held, HeldPrefix) and held.key == at.key
        assert 0 <= at.tick - held.tick == decision.age_ticks <= MAX_LATE_TICKS
        assert math.isfinite(at.observed_at_s)


@pytest.mark.parametrize("reuse_every", [0, -1])
def test_reuse_every_wants_at_least_1(reuse_every):
    with pytest.raises(ValueError, match="reuse_every wants 1"):
        decide(NONE, moment(0, 0.0), reuse_every)


class TestRules:
    def test_images_are_compared_only_where_wanted(self):
        assert ReuseRules().threshold == 0.0
        assert ReuseRules(refresh_threshold=0.1).threshold == 0.1
        assert ReuseRules(mode="adaptive").threshold == ADAPTIVE_THRESHOLD
        assert ReuseRules(mode="adaptive", refresh_threshold=0.1).threshold == 0.1

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"mode": "clever"}, f"'clever'; choose one of: {', '.join(MODES)}"),
            ({"max_age_ms": -1.0}, "max_age_ms and refresh_threshold of at least 0"),
            ({"max_age_ms": math.nan}, "max_age_ms and refresh_threshold of at least 0"),
            ({"deadline_ms": 0.0}, "positive deadline_ms"),
            ({"min_steps": 0}, "at least 1 min_steps"),
        ],
    )
    def test_mistakes_are_told(self, wrong, said):
        with pytest.raises(ValueError, match=said):
            ReuseRules(**wrong)

"""When a prefix may be used again: never too old, never across a change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.reuse import HeldPrefix, PrefixKey, Refill, Reuse, decide

KEY = PrefixKey("pick up the red cube", frozenset({"base", "wrist"}), b"12")
HELD = HeldPrefix(KEY, tick=100, observed_at_s=10.0)

keys = st.builds(
    PrefixKey,
    st.sampled_from(["red", "blue"]),
    st.sampled_from([frozenset({"base"}), frozenset({"base", "wrist"})]),
    st.sampled_from([b"", b"1"]),
)
ticks = st.integers(-5, 20)
times_s = st.floats(-1.0, 1.0)
held_or_none = st.none() | st.builds(HeldPrefix, keys, ticks, times_s)
every = st.integers(1, 6)


@pytest.mark.parametrize(
    ("held", "key", "tick", "observed_at_s", "reuse_every", "expected"),
    [
        (None, KEY, 0, 10.0, 4, Refill("no prefix")),
        (HELD, KEY, 101, 10.1, 4, Reuse(1)),
        (HELD, KEY, 103, 10.3, 4, Reuse(3)),
        (HELD, KEY, 104, 10.4, 4, Refill("age")),
        (HELD, KEY, 100, 10.0, 4, Reuse(0)),
        (HELD, KEY, 101, 10.1, 1, Refill("age")),
        (HELD, KEY, 100, 10.0, 1, Refill("age")),
        (HELD, PrefixKey("blue", KEY.cameras, b"12"), 101, 10.1, 4, Refill("prompt changed")),
        (
            HELD,
            PrefixKey(KEY.prompt, frozenset({"base"}), b"12"),
            101,
            10.1,
            4,
            Refill("cameras changed"),
        ),
        (HELD, PrefixKey(KEY.prompt, KEY.cameras, b"13"), 101, 10.1, 4, Refill("state changed")),
        (HELD, KEY, 99, 10.1, 4, Refill("time went back")),
        (HELD, KEY, 101, 9.9, 4, Refill("time went back")),
    ],
)
def test_by_example(held, key, tick, observed_at_s, reuse_every, expected):
    assert decide(held, key, tick, observed_at_s, reuse_every) == expected


@given(held_or_none, keys, ticks, times_s, every)
def test_a_reused_prefix_is_younger_than_allowed_and_of_the_same_key(
    held, key, tick, observed_at_s, reuse_every
):
    decision = decide(held, key, tick, observed_at_s, reuse_every)
    if isinstance(decision, Reuse):
        assert held is not None
        assert held.key == key
        assert 0 <= tick - held.tick == decision.age_ticks < reuse_every
        assert observed_at_s >= held.observed_at_s
        assert reuse_every > 1


@given(held_or_none, keys, ticks, times_s, every)
def test_the_same_inputs_give_the_same_decision(held, key, tick, observed_at_s, reuse_every):
    first = decide(held, key, tick, observed_at_s, reuse_every)
    assert decide(held, key, tick, observed_at_s, reuse_every) == first


@given(every, st.lists(st.integers(1, 4), max_size=60))
def test_over_any_run_with_missed_ticks_no_prefix_outlives_its_time(reuse_every, steps):
    """And none is thrown away before, when nothing changes."""
    held, tick = None, 0
    for step in steps:
        tick += step
        decision = decide(held, KEY, tick, float(tick), reuse_every)
        if isinstance(decision, Refill):
            assert held is None or tick - held.tick >= reuse_every
            held = HeldPrefix(KEY, tick, float(tick))
        assert tick - held.tick < reuse_every


@pytest.mark.parametrize("reuse_every", [0, -1])
def test_reuse_every_wants_at_least_1(reuse_every):
    with pytest.raises(ValueError, match="reuse_every wants 1"):
        decide(None, KEY, 0, 0.0, reuse_every)

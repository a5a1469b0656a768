"""Quantiles over a window, and rates on the caller's clock."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.latency import LatencyWindow, RateMeter


def test_quantiles_are_of_the_nearest_rank():
    window = LatencyWindow(100)
    for value in range(100, 0, -1):
        window.add({"denoise": float(value)})
    got = window.quantiles()["denoise"]
    assert (got.p50, got.p95, got.p99, got.count) == (50.0, 95.0, 99.0, 100)


def test_only_the_last_values_count():
    window = LatencyWindow(2)
    for value in (900.0, 1.0, 2.0):
        window.add({"total": value})
    got = window.quantiles()["total"]
    assert (got.p50, got.p99, got.count) == (1.0, 2.0, 2)


def test_each_stage_has_its_own_window():
    window = LatencyWindow(10)
    window.add({"prefill": 5.0, "denoise": 1.0})
    window.add({"denoise": 3.0})
    got = window.quantiles()
    assert {name: q.count for name, q in got.items()} == {"prefill": 1, "denoise": 2}


def test_an_empty_window_has_no_quantiles():
    window = LatencyWindow(10)
    assert window.quantiles() == {}
    window.add({"total": 1.0})
    window.clear()
    assert window.quantiles() == {}


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=80), st.integers(1, 50))
def test_a_quantile_is_a_measured_value_with_that_share_at_or_below(values, size):
    window = LatencyWindow(size)
    for value in values:
        window.add({"total": value})
    kept = np.array(values[-size:])
    got = window.quantiles()["total"]
    assert got.count == len(kept)
    for share, quantile in ((0.5, got.p50), (0.95, got.p95), (0.99, got.p99)):
        assert quantile in kept
        assert (kept <= quantile).sum() >= math.ceil(share * len(kept))
        assert (kept < quantile).sum() < math.ceil(share * len(kept))


def test_a_window_wants_a_size():
    with pytest.raises(ValueError, match="size of at least 1, got 0"):
        LatencyWindow(0)


class TestRate:
    def test_is_the_count_of_the_window_per_second(self):
        meter = RateMeter(window_s=2.0)
        for k in range(51):
            meter.tick(100.0 + 0.125 * k)
        assert meter.rate_hz(100.0 + 0.125 * 50) == pytest.approx(8.0)

    def test_before_anything_happened_it_is_0(self):
        assert RateMeter(1.0).rate_hz(5.0) == 0.0

    def test_falls_to_0_when_nothing_happens_any_more(self):
        meter = RateMeter(1.0)
        for k in range(9):
            meter.tick(0.125 * k)
        assert meter.rate_hz(1.5) == pytest.approx(4.0)
        assert meter.rate_hz(10.0) == 0.0

    def test_in_a_window_not_yet_full_counts_the_time_since_the_first(self):
        meter = RateMeter(window_s=10.0)
        for k in range(11):
            meter.tick(0.1 * k)
        assert meter.rate_hz(1.0) == pytest.approx(10.0)

    def test_a_clock_that_went_back_starts_anew(self):
        meter = RateMeter(1.0)
        meter.tick(100.0)
        meter.tick(1.0)
        assert meter.rate_hz(1.5) == pytest.approx(0.0)
        meter.tick(2.0)
        assert meter.rate_hz(2.0) == pytest.approx(1.0)

    def test_wants_a_window(self):
        with pytest.raises(ValueError, match="positive window"):
            RateMeter(0.0)

    @given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=200), st.floats(0.1, 3.0))
    def test_is_the_count_of_recent_events(self, gaps, window_s):
        meter, now_s = RateMeter(window_s), 0.0
        stamps = []
        for gap in gaps:
            now_s += gap
            stamps.append(now_s)
            meter.tick(now_s)
        recent = [s for s in stamps[1:] if s > now_s - window_s]
        seen_s = min(window_s, now_s - stamps[0])
        assert meter.rate_hz(now_s) * seen_s == pytest.approx(len(recent))

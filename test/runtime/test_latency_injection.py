"""Latency added on purpose: what is asked for comes out."""

from __future__ import annotations

import numpy as np
import pytest

from thor_policy_ros.runtime.latency_injection import DISTRIBUTIONS, InjectedLatency


def drawn(latency: InjectedLatency, count: int = 20_000) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.array([latency.draw_s(random) for _ in range(count)])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_mean_is_the_one_asked_for(distribution):
    seconds = drawn(InjectedLatency(80.0, distribution))
    assert seconds.mean() == pytest.approx(0.080, rel=0.03) and seconds.min() >= 0.0


def test_the_shapes_differ():
    spread = {name: drawn(InjectedLatency(80.0, name)).std() for name in DISTRIBUTIONS}
    assert spread["constant"] == pytest.approx(0.0, abs=1e-12)
    assert spread["normal"] == pytest.approx(0.020, rel=0.05)
    assert spread["uniform"] == pytest.approx(0.080 / 3**0.5, rel=0.05)
    assert spread["exponential"] == pytest.approx(0.080, rel=0.05)


def test_spikes_come_on_top_as_often_as_asked():
    seconds = drawn(InjectedLatency(10.0, spike_ms=200.0, spike_ratio=0.05))
    assert set(np.round(seconds, 6)) == {0.01, 0.21}
    assert (seconds > 0.1).mean() == pytest.approx(0.05, rel=0.1)


def test_the_same_seed_draws_the_same():
    latency = InjectedLatency(50.0, "exponential", 100.0, 0.1)
    assert np.array_equal(drawn(latency, 50), drawn(latency, 50))


def test_active_means_that_something_is_added():
    assert not InjectedLatency().active and not InjectedLatency(spike_ms=9.0).active
    assert InjectedLatency(1.0).active and InjectedLatency(spike_ms=9.0, spike_ratio=0.1).active
    assert "200 ms" in str(InjectedLatency(200.0)) and "5.0%" in str(
        InjectedLatency(1.0, spike_ms=9.0, spike_ratio=0.05)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean_ms": -1.0},
        {"mean_ms": float("nan")},
        {"distribution": "flat"},
        {"spike_ratio": 1.5},
        {"spike_ms": 1e9},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="latency"):
        InjectedLatency(**wrong)

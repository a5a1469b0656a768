"""What frames cost lately."""

import pytest

from thor_policy_ros.runtime.deadline import Costs
from thor_policy_ros.runtime.frame_costs import WARM_UP_FRAMES, WINDOW_FRAMES, FrameCosts
from thor_policy_ros.types import FrameTiming


def refill(prefix_ms: float = 50.0, denoise_ms: float = 40.0, rest_ms: float = 5.0) -> FrameTiming:
    total_ms = prefix_ms + denoise_ms + rest_ms
    return FrameTiming(
        vision_ms=20.0, prefill_ms=prefix_ms - 20.0, denoise_ms=denoise_ms, total_ms=total_ms
    )


def reuse(denoise_ms: float = 40.0, rest_ms: float = 5.0) -> FrameTiming:
    return FrameTiming(denoise_ms=denoise_ms, total_ms=denoise_ms + rest_ms)


def warm(*kinds: tuple[int, bool]) -> FrameCosts:
    costs = FrameCosts()
    for steps, refilled in kinds:
        for _ in range(WARM_UP_FRAMES):
            costs.add(refill(5000.0, 9000.0), steps, refilled)
    return costs


def test_warm_up_does_not_count():
    costs = warm((10, True))
    assert costs.costs() == Costs()
    costs.add(refill(), 10, True)
    assert costs.costs() == Costs(rest_ms=5.0, prefix_ms=50.0, step_ms=4.0)


def test_each_step_count_warms_up_by_itself():
    costs = warm((10, True), (5, True))
    costs.add(refill(denoise_ms=40.0), 10, True)
    costs.add(refill(denoise_ms=20.0), 5, True)
    assert costs.costs().step_ms == pytest.approx(4.0)


def test_a_reuse_says_nothing_of_the_prefix():
    costs = warm((10, True), (10, False))
    costs.add(refill(prefix_ms=50.0), 10, True)
    for _ in range(30):
        costs.add(reuse(denoise_ms=60.0), 10, False)
    assert costs.costs() == Costs(rest_ms=5.0, prefix_ms=50.0, step_ms=6.0)


def test_a_pair_of_spikes_does_not_count_and_a_slow_phase_passes():
    costs = warm((10, True))
    for k in range(WINDOW_FRAMES):
        costs.add(refill(prefix_ms=500.0 if k in (7, 8) else 50.0), 10, True)
    assert costs.costs().prefix_ms == 50.0
    for _ in range(3):
        costs.add(refill(prefix_ms=500.0), 10, True)
    assert costs.costs().prefix_ms == 500.0
    for _ in range(WINDOW_FRAMES):
        costs.add(refill(), 10, True)
    assert costs.costs().prefix_ms == 50.0


def test_stages_that_overlap_leave_no_negative_rest():
    costs = warm((10, True))
    costs.add(FrameTiming(vision_ms=20, prefill_ms=30, denoise_ms=40, total_ms=60), 10, True)
    assert costs.costs().rest_ms == 0.0


def test_another_engine_is_measured_anew():
    costs = warm((10, True))
    costs.add(refill(), 10, True)
    costs.clear()
    costs.add(refill(), 10, True)
    assert costs.costs() == Costs()

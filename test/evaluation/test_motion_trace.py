"""Jerk and jumps of a motion."""

from __future__ import annotations

import numpy as np
import pytest

from thor_policy_ros.evaluation.motion_trace import MotionTrace, pooled, position_at
from thor_policy_ros.types import ActionChunk

ARM = np.array([True, True, False])


def chunk(rows: np.ndarray, observed_at_s: float) -> ActionChunk:
    return ActionChunk(rows.astype(np.float32), 0.1, observed_at_s)


def test_a_cubic_has_its_constant_jerk_and_the_valve_does_not_count() -> None:
    trace = MotionTrace(0.01, ARM)
    for k in range(50):
        t = k * 0.01
        trace.command(np.array([t**3, 2 * t, float(k % 2)]))
    assert trace.jerk.shape == (47, 2)
    assert trace.jerk[:, 0] == pytest.approx(6.0)
    assert trace.jerk[:, 1] == pytest.approx(0.0, abs=1e-6)
    assert pooled([trace.sums()])["jerk_rms"] == pytest.approx((36 / 2) ** 0.5)
    assert pooled([trace.sums()])["motion_s"] == pytest.approx(0.5)


def test_a_jump_is_between_two_chunks_at_the_same_time() -> None:
    line = np.linspace(0, 0.9, 10)[:, None] * np.ones(3)
    trace = MotionTrace(0.01, ARM)
    trace.joined(chunk(line, 0.0), 0.0)
    trace.joined(chunk(line + 0.2, 0.2), 0.25)  # 0.05 + 0.2 where the old one is at 0.25
    trace.joined(chunk(line + np.array([0.2, 0.5, 9.0]), 0.2), 0.30)
    assert trace.jumps == pytest.approx([0.0, 0.3], abs=1e-6)
    figures = pooled([trace.sums()])
    assert figures["jump_mean"] == pytest.approx(0.15)
    assert figures["jump_worst"] == pytest.approx(0.3)


def test_a_chunk_after_the_last_one_ran_out_is_no_jump() -> None:
    trace = MotionTrace(0.01, ARM)
    trace.joined(chunk(np.zeros((10, 3)), 0.0), 0.0)
    trace.joined(chunk(np.ones((10, 3)), 2.0), 2.0)
    assert len(trace.jumps) == 0
    assert pooled([])["jump_worst"] == 0.0


def test_positions_are_read_as_the_executor_does() -> None:
    rows = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    assert position_at(chunk(rows, 5.0), 5.05)[0] == pytest.approx(0.5)
    assert position_at(chunk(rows, 5.0), 9.0)[0] == pytest.approx(1.0)

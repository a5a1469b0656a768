"""Limits for hypothesis, and what it means that a series of commands keeps them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from thor_policy_ros.types import JointLimits

# Of differences of positions of a few units in float64, divided by dt^2 of a few ms.
ROUNDING = 1e-6

positions = st.floats(-4.0, 4.0)
control_dts_s = st.sampled_from([0.002, 0.005, 0.01, 0.02, 0.05])
_speeds = st.floats(0.05, 5.0) | st.just(math.inf)
_accelerations = st.floats(0.1, 100.0) | st.just(math.inf)
_edges = st.floats(-3.0, 3.0) | st.just(math.inf)


def joint_limits(
    lower: Sequence[float] | float,
    upper: Sequence[float] | float,
    velocity: Sequence[float] | float,
    acceleration: Sequence[float] | float,
    joints: int = 1,
) -> JointLimits:
    """Limits from numbers; a single number holds for all `joints`."""
    return JointLimits(
        *(
            np.broadcast_to(np.asarray(x, np.float32), (joints,)).copy()
            for x in (lower, upper, velocity, acceleration)
        )
    )


@st.composite
def limits(draw: st.DrawFn, joints: int = 2, brisk: bool = False) -> JointLimits:
    """Any limits, some absent, some leaving no room at all. brisk: none so slow as to bore."""
    edges = [sorted((draw(_edges), draw(_edges))) for _ in range(joints)]
    lower = [-math.inf if a == math.inf else a for a, _ in edges]
    upper = [b for _, b in edges]
    speeds = [draw(_speeds.filter(lambda x: not brisk or x >= 1)) for _ in range(joints)]
    accelerations = [
        draw(_accelerations.filter(lambda x: not brisk or x >= 2)) for _ in range(joints)
    ]
    return joint_limits(lower, upper, speeds, accelerations, joints)


def assert_limits_kept(
    commands: npt.ArrayLike, start: npt.ArrayLike, limits: JointLimits, dt_s: float
) -> None:
    """commands: f64[N,A], one a tick; before them the joints stood still at `start`, f64[A]."""
    path = np.vstack([start, start, np.reshape(commands, (-1, limits.lower.size))])
    velocity = np.diff(path, axis=0) / dt_s
    acceleration = np.diff(velocity, axis=0) / dt_s
    assert (path >= limits.lower).all(), f"{path.min(0)} below {limits.lower}"
    assert (path <= limits.upper).all(), f"{path.max(0)} above {limits.upper}"
    assert (np.abs(velocity) <= limits.velocity + ROUNDING).all(), np.abs(velocity).max(0)
    worst = np.abs(acceleration).max(0)
    assert (worst <= limits.acceleration + ROUNDING / dt_s).all(), (worst, limits.acceleration)

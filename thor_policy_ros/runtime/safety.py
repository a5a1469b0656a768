"""Whether a chunk may leave the policy. The executor limits motion; this refuses nonsense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import F32, JointLimits


@dataclass(frozen=True)
class Tolerance:
    """How far beyond the limits a chunk may go; the executor clamps what is within.

    position: robot units beyond `lower` and `upper`.
    slew: multiple of the velocity limit between two rows; inf does not check it.
    """

    position: float = 0.05
    slew: float = 2.0

    def __post_init__(self) -> None:
        if not (self.position >= 0 and self.slew > 0):
            raise ValueError(
                f"tolerance wants position >= 0 and slew > 0, got {self.position}, {self.slew}"
            )


def check_chunk(
    actions: F32,
    dt_s: float,
    limits: JointLimits | None,
    *,
    previous: F32 | None = None,
    joint_names: Sequence[str] = (),
    tolerance: Tolerance = Tolerance(),
) -> str:
    """'' if the chunk is sane, else the joint, row, value and bound at fault.

    actions: f32[H,A], robot units. limits: f32[A] each, or None to check only that the values
    are finite. previous: f32[A], where the joints are one `dt_s` before row 0, or None.
    joint_names: for the reason; columns are numbered without.
    """
    if actions.ndim != 2 or actions.shape[0] < 1:
        return f"chunk wants actions [H,A], got {list(actions.shape)}"
    names = tuple(joint_names) or tuple(f"#{i}" for i in range(actions.shape[1]))
    finite = np.isfinite(actions)
    if not finite.all():
        row, joint = _first(~finite)
        return f"joint {names[joint]} row {row}: {actions[row, joint]} is not finite"
    if limits is None:
        return ""
    if limits.lower.shape != actions.shape[1:]:
        return f"chunk has {actions.shape[1]} action dimensions, limits {limits.lower.shape[0]}"
    return _beyond_position(actions, limits, names, tolerance.position) or _beyond_slew(
        actions, dt_s, limits, names, previous, tolerance.slew
    )


def _beyond_position(
    actions: F32, limits: JointLimits, names: tuple[str, ...], tolerance: float
) -> str:
    outside = np.maximum(limits.lower - actions, actions - limits.upper)
    if not (outside > tolerance).any():
        return ""
    row, joint = _worst(outside)
    return (
        f"joint {names[joint]} row {row}: {actions[row, joint]:.4g} is outside "
        f"[{limits.lower[joint]:.4g}, {limits.upper[joint]:.4g}] by more than {tolerance:g}"
    )


def _beyond_slew(
    actions: F32,
    dt_s: float,
    limits: JointLimits,
    names: tuple[str, ...],
    previous: F32 | None,
    tolerance: float,
) -> str:
    rows = actions.astype(np.float64)  # a difference of float32 may overflow
    before = rows[:1] if previous is None else previous[None]
    speed = np.abs(np.diff(rows, axis=0, prepend=before)) / dt_s
    excess = speed / limits.velocity
    if not (excess > tolerance).any():
        return ""
    row, joint = _worst(excess)
    return (
        f"joint {names[joint]} row {row}: slews at {speed[row, joint]:.4g}/s, more than "
        f"{tolerance:g} times its limit of {limits.velocity[joint]:.4g}/s"
    )


def _first(mask: npt.NDArray[np.bool_]) -> tuple[int, int]:
    row, joint = np.argwhere(mask)[0]
    return int(row), int(joint)


def _worst(values: npt.NDArray[np.floating[Any]]) -> tuple[int, int]:
    row, joint = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(joint)

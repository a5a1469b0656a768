"""Forward and inverse kinematics of the palletiser arm: NumPy, any leading batch axes.

Joint order: base_yaw, shoulder, elbow, wrist (rad). Zero: every link points straight up,
yaw looks along +x; positive angles lean forward and down. `wrist = pi - shoulder - elbow`
keeps the tool vertical, so the tip has three free coordinates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHOULDER_HEIGHT_M = 0.26
UPPER_ARM_M = 0.36
FOREARM_M = 0.38
TOOL_M = 0.14

Array = npt.NDArray[np.floating]
F64 = npt.NDArray[np.float64]


def tip_position(joints: Array) -> F64:
    """Position of the suction lip in the base frame, m.

    joints: float[...,4], rad. Returns float[...,3].
    """
    yaw, shoulder, elbow, wrist = np.moveaxis(joints.astype(np.float64), -1, 0)
    forearm = shoulder + elbow
    tool = forearm + wrist
    reach = UPPER_ARM_M * np.sin(shoulder) + FOREARM_M * np.sin(forearm) + TOOL_M * np.sin(tool)
    height = UPPER_ARM_M * np.cos(shoulder) + FOREARM_M * np.cos(forearm) + TOOL_M * np.cos(tool)
    return np.stack([reach * np.cos(yaw), reach * np.sin(yaw), SHOULDER_HEIGHT_M + height], axis=-1)


def joints_for_tip(tip: Array) -> F64:
    """Joint positions, rad, that put the lip at `tip` with the tool vertical and the elbow up.

    tip: float[...,3], m. A point out of reach gives the straight or fully folded arm
    in its direction. Returns float[...,4].
    """
    x, y, z = np.moveaxis(tip.astype(np.float64), -1, 0)
    reach, height = np.hypot(x, y), z + TOOL_M - SHOULDER_HEIGHT_M
    distance = np.hypot(reach, height)
    elbow = _angle_from_sides(distance)
    inner = np.arctan2(FOREARM_M * np.sin(elbow), UPPER_ARM_M + FOREARM_M * np.cos(elbow))
    shoulder = np.arctan2(reach, height) - inner
    return np.stack([np.arctan2(y, x), shoulder, elbow, np.pi - shoulder - elbow], axis=-1)


def _angle_from_sides(distance: F64) -> F64:
    """Elbow bend for a shoulder-to-wrist distance (law of cosines), clipped to what exists."""
    cosine = (distance**2 - UPPER_ARM_M**2 - FOREARM_M**2) / (2 * UPPER_ARM_M * FOREARM_M)
    return np.arccos(np.clip(cosine, -1.0, 1.0))

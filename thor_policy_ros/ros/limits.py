"""Joint limits from the `limits.` parameters of a node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.types import JointLimits

BOUNDS = ("lower", "upper", "velocity", "acceleration")


def limits_of(parameters: NodeParameters, joints: Sequence[str]) -> JointLimits | None:
    """Limits of `joints` from the `limits.` parameters, None when none is set.

    A bound that is not set is inf. Raises ValueError for a wrong length or lower above upper.
    """
    given = {
        name: parameters[f"limits.{name}"] for name in BOUNDS if f"limits.{name}" in parameters
    }
    if not any(given.values()):
        return None
    for name, values in given.items():
        if values and len(values) != len(joints):
            raise ValueError(
                f"limits.{name} has {len(values)} values for {len(joints)} joints "
                f"({', '.join(joints)})"
            )
    unbounded = np.full(len(joints), np.inf, np.float32)
    bounds = {
        name: np.asarray(given[name], np.float32) if given.get(name) else unbounded
        for name in ("upper", "velocity", "acceleration")
    }
    lower = np.asarray(given["lower"], np.float32) if given["lower"] else -unbounded
    return JointLimits(lower=lower, **bounds)

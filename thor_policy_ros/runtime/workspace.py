"""A box that the tool stays in: no step is made from which braking would leave it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thor_policy_ros.runtime.urdf import F64, Chain

# Rounding of the braking path; no robot is built to a micrometre.
ROUNDING_M = 1e-6
AXES = "xyz"


@dataclass(frozen=True)
class WorkspaceBox:
    """lower, upper: f64[3], m, in the root link of `chain`; inf is no bound."""

    chain: Chain
    lower: F64
    upper: F64

    def __post_init__(self) -> None:
        if self.lower.shape != (3,) or self.upper.shape != (3,):
            raise ValueError("the workspace box wants x, y, z in workspace.lower and .upper")
        if not (self.lower < self.upper).all():
            raise ValueError(
                f"the workspace box wants lower below upper, got {self.lower.tolist()} and "
                f"{self.upper.tolist()}"
            )

    def outside_m(self, joints: F64) -> float:
        """How far the farthest of the positions f64[N,A] is outside; 0 inside."""
        at = self.chain.positions(joints)
        excess = np.maximum(self.lower - at, at - self.upper)
        return max(0.0, float(excess.max()))

    def refusal(self, joints: F64, tolerance_m: float) -> str:
        """Why the robot does not start at f64[A], or ''."""
        at = self.chain.positions(joints[None])[0]
        excess = np.maximum(self.lower - at, at - self.upper)
        worst = int(excess.argmax())
        if excess[worst] <= tolerance_m:
            return ""
        return (
            f"{self.chain.link} is at {AXES[worst]} = {at[worst]:.3f} m, outside the workspace "
            f"[{self.lower[worst]:g}, {self.upper[worst]:g}]; move it inside or correct the box"
        )


class WorkspaceWatch:
    """Follows one motion. Its promise: the way to rest from here never leads farther out than
    the robot already was, so braking is always a way to keep it.
    """

    def __init__(self, box: WorkspaceBox) -> None:
        self.box = box
        self._outside_m = 0.0

    def start(self, joints: F64) -> None:
        """Begin at f64[A]."""
        self._outside_m = self.box.outside_m(joints[None])

    def allows(self, way_to_rest: F64) -> bool:
        """Whether a step may be made after which braking takes the way f64[N,A]."""
        outside_m = self.box.outside_m(way_to_rest)
        if outside_m > self._outside_m + ROUNDING_M:
            return False
        self._outside_m = min(self._outside_m, outside_m)
        return True

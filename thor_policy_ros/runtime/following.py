"""Whether the robot is known to be where it was commanded. Pure functions.

A controller that was stopped, taken over or never started leaves the commands running away
from the robot; the moment it listens again the robot would leap after them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def age_fault(age_s: float, max_age_s: float) -> str:
    """Why joints measured `age_s` ago (inf: never) are no measurement of now, or ''."""
    if age_s <= max_age_s:
        return ""
    when = f"{age_s:.3f} s old" if np.isfinite(age_s) else "missing"
    return f"the measured joints are {when}; check the joint state topic"


def lag_fault(
    measured: F64, commanded: F64, velocity: F64, max_lag_s: float, joint_names: tuple[str, ...]
) -> str:
    """Why the joints do not follow their commands, or ''.

    velocity: f64[A], the limits; a joint may be as far from its command as it moves at full
    speed in `max_lag_s`. Joints without a velocity limit are not judged: a gripper that holds
    something never gets where it is commanded.
    """
    allowed = np.where(np.isinf(velocity), np.inf, velocity * max_lag_s)
    distance = np.abs(measured - commanded)
    excess = distance - allowed
    worst = int(excess.argmax())
    if excess[worst] <= 0.0:
        return ""
    return (
        f"joint {joint_names[worst]!r} is {distance[worst]:.4f} from its command, more than "
        f"{allowed[worst]:.4f}, its way in max_lag_s = {max_lag_s:g} s; see to the controller, "
        "then reset"
    )


def distance_fault(
    measured: F64, wanted: F64, velocity: F64, max_start_s: float, joint_names: tuple[str, ...]
) -> str:
    """Why a motion must not begin at `measured`, or ''. The arguments are as of `lag_fault`.

    Commands begin at the measured joints anyway; a chunk that is far from them is of other joints,
    of other units or of another moment.
    """
    allowed = np.where(np.isinf(velocity), np.inf, velocity * max_start_s)
    distance = np.abs(measured - wanted)
    excess = distance - allowed
    worst = int(excess.argmax())
    if excess[worst] <= 0.0:
        return ""
    return (
        f"the chunk wants joint {joint_names[worst]!r} at {wanted[worst]:.4f}, which is "
        f"{distance[worst]:.4f} from where it is, more than its way in max_start_s = "
        f"{max_start_s:g} s; compare joint names and units with the policy's"
    )

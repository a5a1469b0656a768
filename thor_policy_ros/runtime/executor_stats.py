"""What the chunk executor counts, and what it wants of its joints."""

from __future__ import annotations

from dataclasses import dataclass

from thor_policy_ros.types import JointLimits


@dataclass(frozen=True)
class ExecutorStats:
    """Counters since the start or the last reset.

    clamped_*: ticks in which that limit changed the command of at least one joint.
    """

    accepted: int = 0
    refused: int = 0
    clock_jumps: int = 0
    clamped_position: int = 0
    clamped_velocity: int = 0
    clamped_acceleration: int = 0
    last_refusal: str = ""


def check_joints(joint_names: tuple[str, ...], limits: JointLimits) -> None:
    """ValueError unless the limits are those of the joints."""
    if not joint_names or len(set(joint_names)) != len(joint_names):
        raise ValueError(f"executor wants joint names, each once; got {joint_names}")
    if limits.lower.shape != (len(joint_names),):
        raise ValueError(
            f"executor wants limits of {len(joint_names)} joints, one per name; "
            f"got {limits.lower.shape[0]}"
        )

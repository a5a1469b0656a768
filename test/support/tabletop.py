"""Driving the simulated arm in tests: the expert as a policy, straight lines of setpoints."""

import numpy as np

from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.sim.expert import expert_chunk
from thor_policy_ros.sim.kinematics import joints_for_tip


def expert_answer(arm: TabletopArm) -> np.ndarray:
    """f32[10,5]: what the expert would do now for the episode's own task."""
    return expert_chunk(
        arm.state()[None],
        np.array([arm.held]),
        arm.objects()[None],
        arm.velocities()[None],
        np.array([arm.episode.target]),
        np.array([arm.episode.verb]),
    )[0]


def solve(arm: TabletopArm) -> str:
    """Let the expert act until there is an outcome, a new chunk every 0.1 s; return it."""
    while arm.outcome() == "running":
        chunk = expert_answer(arm)
        for step in range(5):
            part = step / 5
            arm.command(chunk[0] * (1 - part) + chunk[1] * part)
            arm.advance(0.02)
    return arm.outcome()


def move_tip(
    arm: TabletopArm, target: tuple[float, float, float], suction: float, seconds: float
) -> None:
    """Take the lip to `target` in a straight line in `seconds`, and stay for 0.2 s."""
    start, steps = arm.tip(), round(seconds / 0.02)
    for step in range(1, steps + 11):
        tip = start + (np.asarray(target) - start) * min(step / steps, 1.0)
        arm.command(np.append(joints_for_tip(tip), suction))
        arm.advance(0.02)

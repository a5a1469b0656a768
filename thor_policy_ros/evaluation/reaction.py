"""How long the arm takes to react to a target that is moved under it.

The arm follows a target at rest. Once it stays above it, the target is put elsewhere at once,
at a time that falls anywhere between two refills. Then two times are taken: until the tip has
moved towards the new place, and until it is above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thor_policy_ros.evaluation.closed_loop import CONTROL_DT_S, Conditions, ControlLoop, Takes
from thor_policy_ros.evaluation.motion_trace import F64, MotionTrace
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.sim.arm_env import TICK_S, TabletopArm
from thor_policy_ros.sim.episode import FOLLOW_RADIUS_M
from thor_policy_ros.sim.instructions import FOLLOW, SHAPES, instruction_text
from thor_policy_ros.sim.scene import TABLE_X_M, TABLE_Y_M

SETTLED_S = 0.5
MOVED_BY_M = 0.08
REACTED_M = 0.01
_GAP_M = 0.09
_PATIENCE_S = 6.0
_WATCHED_S = 4.0


@dataclass(frozen=True)
class Reaction:
    """reacted_s: until the tip had moved REACTED_M towards the new place; arrived_s: until it
    was above it. None where it never was, both also where the arm never settled."""

    seed: int
    settled: bool
    reacted_s: float | None
    arrived_s: float | None


def measure_reaction(
    env: TabletopArm,
    runner: PolicyRunner,
    conditions: Conditions,
    seed: int,
    period_ticks: int,
    trace: MotionTrace | None = None,
    takes_s: Takes | None = None,
) -> Reaction:
    """Play one such episode. period_ticks: of the refills, in which the move falls anywhere."""
    env.reset(seed, 0.0)
    target = env.episode.target
    shape = SHAPES[env.episode.shapes[target]]
    told = instruction_text(FOLLOW, env.episode.colours[target], shape)
    random = np.random.default_rng(seed)
    env.reset(seed, 0.0, told)
    target = env.episode.target
    runner.reset()
    loop = ControlLoop(env, runner, conditions, told, seed, trace, takes_s)
    if not _settle(env, loop, target):
        return Reaction(seed, False, None, None)
    for _ in range(round(random.uniform(0.0, period_ticks * TICK_S) / CONTROL_DT_S)):
        loop.advance()
    return _watch(env, loop, seed, target, random)


def _settle(env: TabletopArm, loop: ControlLoop, target: int) -> bool:
    above_s = 0.0
    while env.time_s < _PATIENCE_S and above_s < SETTLED_S:
        loop.advance()
        above_s = above_s + CONTROL_DT_S if _distance(env, target) < FOLLOW_RADIUS_M else 0.0
    return above_s >= SETTLED_S


def _watch(
    env: TabletopArm, loop: ControlLoop, seed: int, target: int, random: np.random.Generator
) -> Reaction:
    before = env.objects()[target, :2]
    place = _elsewhere(env, target, random)
    env.move_object(target, place)
    towards = (place - before) / np.linalg.norm(place - before)
    start, moved_at_s = env.tip()[:2], env.time_s
    reacted_s = None
    while env.time_s - moved_at_s < _WATCHED_S:
        loop.advance()
        if reacted_s is None and float((env.tip()[:2] - start) @ towards) >= REACTED_M:
            reacted_s = env.time_s - moved_at_s
        if _distance(env, target) < FOLLOW_RADIUS_M:
            return Reaction(seed, True, reacted_s, env.time_s - moved_at_s)
    return Reaction(seed, True, reacted_s, None)


def _distance(env: TabletopArm, target: int) -> float:
    return float(np.linalg.norm(env.tip()[:2] - env.objects()[target, :2]))


def _elsewhere(env: TabletopArm, target: int, random: np.random.Generator) -> F64:
    """A place MOVED_BY_M away, on the table and clear of the other objects."""
    others = np.delete(env.objects()[:, :2], target, 0)
    here = env.objects()[target, :2]
    low, high = np.array([TABLE_X_M, TABLE_Y_M]).T
    while True:
        angle = random.uniform(-np.pi, np.pi)
        place: F64 = here + MOVED_BY_M * np.array([np.cos(angle), np.sin(angle)])
        clear = np.linalg.norm(others - place, axis=1).min() > _GAP_M
        if clear and (place >= low).all() and (place <= high).all():
            return place

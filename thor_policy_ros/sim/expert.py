"""The scripted teacher: where the arm should go from what it measures now.

Memoryless: the answer depends on the present joints, the holding sensor, the objects' places
and velocities and the task alone, so it can label any frame for any task. All of that can be
read off one pair of pictures: an object's lamp tells its velocity. Turns and bounces to come
are not known to the expert either, so its answer has no luck in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thor_policy_ros.sim.instructions import FOLLOW, HOLD_STILL, PICK_UP
from thor_policy_ros.sim.kinematics import joints_for_tip, tip_position
from thor_policy_ros.sim.scene import OBJECT_RADIUS_M, TABLE_X_M, TABLE_Y_M
from thor_policy_ros.types import F32

HORIZON = 10
ROW_DT_S = 0.1
_STEPS_PER_ROW = 5
_STEP_S = ROW_DT_S / _STEPS_PER_ROW
_LEAD_STEPS = 2
"""Commands run 40 ms ahead of the motion: the servos' lag of 30 ms and some slack. From 0 to
60 ms the expert solves as many episodes; without a lead it takes 2.5 ticks longer."""

_SPEED_M_S = 0.42
_CLIMB_M_S = 0.26
_GAIN_HZ = 14.0
_BRAKE_M_S2 = 2.5
_ALIGNED_M = 0.016
"""Within this distance of the object's axis the tip goes all the way down."""
_APPROACH_M = 0.040
"""At this distance it must be up at the approach height."""
_APPROACH_CLEARANCE_M = 0.055
_FOLLOW_CLEARANCE_M = 0.045
_PRESS_M = 0.004
_LIFTED_TIP_M = 0.20
_SUCTION_RADIUS_M = 0.024
_SUCTION_CLEARANCE_M = 0.025
_HOLD_DEPTH_M = 0.003
_HOLD_RADIUS_M = 0.018

F64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Scene:
    """What one step of the plan depends on. target: f64[B,3]; velocity: f64[B,2] of the target;
    the rest bool[B]."""

    target: F64
    velocity: F64
    pick_up: Bools
    still: Bools
    burdened: Bools


def expert_chunk(
    state: F32, held: Ints, objects: Floats, velocities: Floats, target: Ints, verb: Ints
) -> F32:
    """The commands that the expert would give from now on, for a batch of situations.

    state: f32[B,5] as measured; held: int[B], index of the held object or -1;
    objects: float[B,3,3], centres now, m; velocities: float[B,3,2], m/s, zeros for an expert
    that takes everything to stand still; target: int[B], ignored on HOLD_STILL; verb: int[B].
    Returns f32[B,10,5], absolute: row k is the command for now + k * 0.1 s, a little
    ahead of the wanted motion, since the servos trail their setpoints.
    """
    rows = np.arange(len(state))
    scene = _Scene(
        target=objects[rows, np.maximum(target, 0)].astype(np.float64),
        velocity=velocities[rows, np.maximum(target, 0)].astype(np.float64),
        pick_up=verb == PICK_UP,
        still=verb == HOLD_STILL,
        burdened=(held >= 0) & ((held != target) | (verb == FOLLOW)),
    )
    carrying = (held >= 0) & (held == target) & scene.pick_up
    tips, suction = _plan(tip_position(state[:, :4]), carrying, scene)
    actions = np.empty((len(state), HORIZON, 5), np.float32)
    actions[..., :4] = joints_for_tip(tips)
    actions[..., 4] = suction
    actions[scene.still] = np.concatenate([state[:, :4], (held >= 0)[:, None]], axis=1)[
        scene.still, None
    ]
    return actions


def _plan(tip: F64, carrying: Bools, scene: _Scene) -> tuple[F64, F64]:
    """Follow the rule for a horizon: lip positions f64[B,10,3], suction f64[B,10]."""
    count = (HORIZON - 1) * _STEPS_PER_ROW + _LEAD_STEPS + 1
    path = np.empty((count, *tip.shape))
    valve = np.empty((count, len(tip)))
    for step in range(count):
        path[step] = tip
        target = _moved(scene, step * _STEP_S)
        velocity, suction = _rule(tip, carrying, target, scene)
        valve[step] = suction
        carrying = carrying | (suction & _touches(tip, target))
        tip = tip + velocity * _STEP_S
    chosen = np.arange(HORIZON) * _STEPS_PER_ROW
    return np.moveaxis(path[chosen + _LEAD_STEPS], 0, 1), np.moveaxis(valve[chosen], 0, 1)


def _moved(scene: _Scene, time_s: float) -> F64:
    """Where the target will be, f64[B,3], if it goes straight on and stays on the table."""
    moved = scene.target.copy()
    ahead = moved[:, :2] + scene.velocity * time_s
    moved[:, :2] = np.clip(ahead, *np.array([TABLE_X_M, TABLE_Y_M]).T)
    return moved


def _rule(tip: F64, carrying: Bools, target: F64, scene: _Scene) -> tuple[F64, Bools]:
    """Velocity of the lip, f64[B,3] m/s, and whether to suck, bool[B], at one instant."""
    error = target[:, :2] - tip[:, :2]
    distance = np.linalg.norm(error, axis=1)
    top = target[:, 2] + OBJECT_RADIUS_M
    near = np.clip((distance - _ALIGNED_M) / (_APPROACH_M - _ALIGNED_M), 0.0, 1.0)
    descend = top - _PRESS_M + near * (_APPROACH_CLEARANCE_M + _PRESS_M)
    wanted = np.where(scene.pick_up, descend, top + _FOLLOW_CLEARANCE_M)
    wanted = np.where(carrying, _LIFTED_TIP_M, wanted)
    climb = np.clip(_speed(wanted - tip[:, 2]), -_CLIMB_M_S, _CLIMB_M_S)
    sideways = np.clip(_speed(distance), 0.0, _SPEED_M_S)
    low = np.clip((wanted - tip[:, 2]) / 0.03, 0.0, 1.0)
    free = np.where(carrying | scene.burdened, 0.0, 1.0 - low)
    velocity = np.empty_like(tip)
    velocity[:, :2] = error * (sideways / np.maximum(distance, 1e-6))[:, None] + scene.velocity
    velocity[:, :2] *= free[:, None]
    velocity[:, 2] = climb
    clearance = tip[:, 2] - top
    ready = (distance < _SUCTION_RADIUS_M) & (clearance < _SUCTION_CLEARANCE_M)
    suction = carrying | (scene.pick_up & ready & ~scene.burdened)
    return velocity, suction


def _speed(error: F64) -> F64:
    """Signed approach speed: proportional when near, what braking allows when far."""
    size = np.abs(error)
    return np.sign(error) * np.minimum(_GAIN_HZ * size, np.sqrt(2 * _BRAKE_M_S2 * size))


def _touches(tip: F64, target: F64) -> Bools:
    offset = tip - target
    near = np.hypot(offset[:, 0], offset[:, 1]) < _HOLD_RADIUS_M
    return near & (offset[:, 2] - OBJECT_RADIUS_M < -_PRESS_M + _HOLD_DEPTH_M)

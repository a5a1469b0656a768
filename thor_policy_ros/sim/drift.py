"""How the objects wander over the table: a gentle drive at constant speed, with turns.

The drive is a force, so that a touch of the arm, a push or a fall goes as physics has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thor_policy_ros.sim.scene import (
    NUM_OBJECTS,
    OBJECT_MASS_KG,
    PHYSICS_DT_S,
    TABLE_X_M,
    TABLE_Y_M,
)

_DRIVE_S = 0.04
"""Time constant with which an object takes up its drift speed."""
_STEER_HZ = 12.0
_STEER_NM = 0.0006
_BOUNCE_DISTANCE_M = 0.075
_ON_TABLE_M = 0.002
_TURN_EVERY_S = 4.0
_TURN_RAD_S = 2.5
_MAX_TURN_RAD = 1.9
_PAIRS = ((0, 1), (0, 2), (1, 2))

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Turn:
    """From `time_s` on object `index` bends its way by `angle_rad`, at `_TURN_RAD_S`."""

    time_s: float
    index: int
    angle_rad: float


def plan_turns(rng: np.random.Generator, duration_s: float) -> list[Turn]:
    """All turns of an episode, in order of time; drawn at once so that nothing the arm does
    changes them."""
    turns = []
    for index in range(NUM_OBJECTS):
        time_s = rng.exponential(_TURN_EVERY_S)
        while time_s < duration_s:
            turns.append(Turn(time_s, index, rng.uniform(-_MAX_TURN_RAD, _MAX_TURN_RAD)))
            time_s += rng.exponential(_TURN_EVERY_S)
    return sorted(turns, key=lambda turn: turn.time_s)


class Drift:
    """Wanted velocities of the objects, and the forces that keep them up."""

    def __init__(self, headings_rad: F64, speed_m_s: float, turns: list[Turn]) -> None:
        self._velocity = [
            [speed_m_s * math.cos(a), speed_m_s * math.sin(a)] for a in headings_rad.tolist()
        ]
        self._turns = list(reversed(turns))
        self._left_to_turn = [0.0] * NUM_OBJECTS
        self._moving = speed_m_s > 0

    @property
    def velocity(self) -> F64:
        """f64[3,2], m/s: where the drive wants each object to go."""
        return np.array(self._velocity)

    def forces(self, pose: F64, rate: F64, held: int, time_s: float) -> F64:
        """f64[3,4] at this instant: N in x and y, 0 in z, N m about the vertical.

        pose, rate: f64[3,4] joint positions and velocities (x, y, z, yaw) of the objects.
        held: index of the object that the arm carries, -1 for none.
        """
        self._turn(time_s)
        positions = pose.tolist()
        self._bounce_off_edges(positions)
        self._bounce_off_each_other(positions, held)
        force = np.zeros((NUM_OBJECTS, 4))
        force[:, :2] = (self.velocity - rate[:, :2]) * (OBJECT_MASS_KG / _DRIVE_S)
        for index, position in enumerate(positions):
            if index == held or position[2] > _ON_TABLE_M:
                force[index] = 0.0
            elif self._moving:
                force[index, 3] = self._steer(index, position[3], float(rate[index, 3]))
        return force

    def _steer(self, index: int, yaw: float, rate: float) -> float:
        """Torque that turns the nose into the direction of travel."""
        x, y = self._velocity[index]
        error = math.remainder(math.atan2(y, x) - yaw, math.tau)
        return _STEER_NM * (_STEER_HZ * error - rate)

    def _turn(self, time_s: float) -> None:
        """Bend the ways that are due to bend, by one physics step."""
        while self._turns and self._turns[-1].time_s <= time_s:
            turn = self._turns.pop()
            self._left_to_turn[turn.index] = turn.angle_rad
        for index, left in enumerate(self._left_to_turn):
            if left:
                angle = math.copysign(min(abs(left), _TURN_RAD_S * PHYSICS_DT_S), left)
                self._left_to_turn[index] = left - angle
                x, y = self._velocity[index]
                cos, sin = math.cos(angle), math.sin(angle)
                self._velocity[index] = [x * cos - y * sin, x * sin + y * cos]

    def _bounce_off_edges(self, positions: list[list[float]]) -> None:
        for position, velocity in zip(positions, self._velocity, strict=True):
            for axis, (low, high) in enumerate((TABLE_X_M, TABLE_Y_M)):
                outward = position[axis] < low and velocity[axis] < 0
                if outward or (position[axis] > high and velocity[axis] > 0):
                    velocity[axis] = -velocity[axis]

    def _bounce_off_each_other(self, positions: list[list[float]], held: int) -> None:
        for a, b in _PAIRS:
            x, y = positions[b][0] - positions[a][0], positions[b][1] - positions[a][1]
            distance = math.hypot(x, y)
            if held in (a, b) or distance > _BOUNCE_DISTANCE_M or distance < 1e-9:
                continue
            self._reflect(a, -x / distance, -y / distance)
            self._reflect(b, x / distance, y / distance)

    def _reflect(self, index: int, x: float, y: float) -> None:
        """Mirror a velocity so that it points along the unit vector (x, y), not against it."""
        velocity = self._velocity[index]
        along = velocity[0] * x + velocity[1] * y
        if along < 0:
            velocity[0] -= 2 * along * x
            velocity[1] -= 2 * along * y

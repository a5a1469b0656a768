"""Commands that a joint can follow: position, velocity and acceleration limits, every tick.

Discrete time: one call is one control tick of `control_dt_s`, whatever the wall clock did.
A tick's velocity is the step it makes divided by `control_dt_s`; its acceleration is the
change of that velocity from the tick before, divided by `control_dt_s`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import JointLimits

F64 = npt.NDArray[np.float64]

# Farther than any robot reaches: stands for an absent position limit where inf would give NaN.
FAR_AWAY = 1e9
# Below these a difference is rounding, not an intervention.
RELATIVE_ROUNDING = 1e-9
ABSOLUTE_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interventions:
    """Which limits changed this tick's command of at least one joint; resume: the lower speed
    after a stop.
    """

    position: bool
    velocity: bool
    acceleration: bool
    resume: bool = False


class JointLimiter:
    """Follows a reference as closely as the limits allow.

    A reference that respects the limits, met at its position and velocity, is reproduced
    exactly. Any other is caught up with along the fastest approach that does not overshoot a
    reference of steady velocity; where the reference will stop or turn is told by its range.
    The state is always one from which the joint can still brake before its position limits,
    which is why there is always an allowed next step. A joint that starts outside them comes
    back at limited speed, and never goes farther out.
    """

    def __init__(self, limits: JointLimits, control_dt_s: float) -> None:
        self._dt = control_dt_s
        self.lower = np.maximum(limits.lower.astype(np.float64), -FAR_AWAY)
        self.upper = np.minimum(limits.upper.astype(np.float64), FAR_AWAY)
        self._nowhere = np.full_like(self.lower, 10 * FAR_AWAY)
        self._max_speed = limits.velocity.astype(np.float64)
        self._max_change = limits.acceleration.astype(np.float64) * control_dt_s
        unlimited = np.isinf(self._max_change)
        change = np.where(unlimited, 1.0, self._max_change)
        # With these two at 0 the braking formula reduces to 'stop within one tick'.
        self._half_change = np.where(unlimited, 0.0, change / 2)
        self._eight_over_step = np.where(unlimited, 0.0, 8 / (change * control_dt_s))
        self._speed_seen = self._max_speed * (1 + RELATIVE_ROUNDING) + ABSOLUTE_ROUNDING
        self._change_seen = self._max_change * (1 + RELATIVE_ROUNDING) + ABSOLUTE_ROUNDING
        self.positions: F64 = np.zeros_like(self.lower)
        self.velocities: F64 = np.zeros_like(self.lower)

    def start(self, positions: F64) -> None:
        """Stand still at `positions`, f64[A]."""
        self.positions = positions.copy()
        self.velocities = np.zeros_like(self.positions)

    def clip(self, positions: F64) -> F64:
        """The nearest positions inside the position limits."""
        return np.minimum(np.maximum(positions, self.lower), self.upper)

    def follow(
        self,
        previous: F64,
        reference: F64,
        low: F64 | None = None,
        high: F64 | None = None,
        speed_share: float = 1.0,
    ) -> Interventions:
        """One tick towards `reference`, which was at `previous` one tick ago.

        Both f64[A] inside the position limits. In the frame that moves with the reference the
        joint is `previous - positions` away from it, and approaches no faster than it can
        brake. low, high: f64[A], the range that the reference will not leave from now on, if
        known; the joint brakes in time to stay inside, if it can. speed_share: of the velocity
        limit, in (0, 1].
        """
        high = self._nowhere if high is None else high
        low = -self._nowhere if low is None else low
        at, error = self.positions, previous - self.positions
        approach, up, down, soft_up, soft_down = self._speed_to_stop_within(
            np.stack((np.abs(error), self.upper - at, at - self.lower, high - at, at - low))
        )
        wanted = (reference - previous) / self._dt + np.copysign(approach, error)
        braked = np.minimum(np.maximum(wanted, -soft_down), soft_up)
        done = self._move(braked, up, down, speed_share)
        if (np.abs(braked - wanted) > ABSOLUTE_ROUNDING).any():
            return replace(done, acceleration=True)
        return done

    def brake(self) -> None:
        """One tick of the strongest allowed deceleration towards rest."""
        up, down = self._speed_to_stop_within(
            np.stack((self.upper - self.positions, self.positions - self.lower))
        )
        self._move(np.zeros_like(self.positions), up, down)

    def way_to_rest(self) -> F64:
        """f64[N,A]: the positions of now and of each tick of braking from here, N >= 2."""
        speed = np.abs(self.velocities)
        ticks = int(np.ceil((speed / self._max_change).max()))
        count = np.arange(1, max(ticks, 1) + 1)[:, None]
        steps = np.maximum(speed - count * self._max_change, 0.0) * np.sign(self.velocities)
        way = self.positions + np.cumsum(steps, axis=0) * self._dt
        return np.concatenate((self.positions[None], way))

    def _move(self, wanted: F64, up: F64, down: F64, speed_share: float = 1.0) -> Interventions:
        """Step at `wanted` velocity, limited; `up` and `down` are the speeds that can brake."""
        before = self.velocities
        max_speed = self._max_speed * speed_share
        by_speed = np.minimum(np.maximum(wanted, -max_speed), max_speed)
        by_change = np.minimum(
            np.maximum(by_speed, before - self._max_change), before + self._max_change
        )
        allowed = np.minimum(np.maximum(by_change, -down), up)
        lowest = np.minimum(self.lower, self.positions)
        highest = np.maximum(self.upper, self.positions)
        positions = np.minimum(np.maximum(self.positions + allowed * self._dt, lowest), highest)
        self.velocities = (positions - self.positions) / self._dt
        self.positions = positions
        return Interventions(
            position=bool((np.abs(by_change - allowed) > ABSOLUTE_ROUNDING).any()),
            velocity=bool((np.abs(wanted) > self._speed_seen).any()),
            acceleration=bool((np.abs(by_speed - before) > self._change_seen).any()),
            resume=speed_share < 1.0 and bool((np.abs(wanted) > max_speed).any()),
        )

    def _speed_to_stop_within(self, distance: F64) -> F64:
        """Largest speed of the next step from which braking ends within `distance`.

        n steps of speeds v, v-q, v-2q, ... (q: the largest change a tick) cover
        (n v - q n(n-1)/2) dt; solved for v with the n whose last step is the last positive one.
        """
        distance = np.maximum(distance, 0.0)
        steps = np.ceil((np.sqrt(1 + distance * self._eight_over_step) - 1) / 2)
        steps = np.maximum(steps, 1.0)
        return distance / (steps * self._dt) + self._half_change * (steps - 1)

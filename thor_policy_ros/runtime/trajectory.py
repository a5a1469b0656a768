"""Where the joints are wanted at a time: chunks as trajectories, and the fade between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trajectory:
    """Rows of commands in time, linear in between, constant before the first and at the end.

    rows: f64[H,A], row k at `starts_at_s + k * dt_s`. `ends_at_s` may cut off the last rows.
    """

    rows: F64
    starts_at_s: float
    dt_s: float
    ends_at_s: float

    def sample(self, time_s: float) -> F64:
        """f64[A] at `time_s`."""
        position = (min(time_s, self.ends_at_s) - self.starts_at_s) / self.dt_s
        position = min(max(position, 0.0), len(self.rows) - 1.0)
        row = min(int(position), len(self.rows) - 2)
        if row < 0:
            return self.rows[0]
        return self.rows[row] + (position - row) * (self.rows[row + 1] - self.rows[row])


def constant(positions: F64) -> Trajectory:
    """Stay at `positions`, f64[A]."""
    return Trajectory(positions[None], starts_at_s=0.0, dt_s=1.0, ends_at_s=0.0)


@dataclass(frozen=True)
class _Layer:
    trajectory: Trajectory
    fades_in_at_s: float
    fade_s: float

    def weight(self, time_s: float) -> float:
        """0 to 1, without a corner at either end: a corner would be a jump of velocity."""
        if self.fade_s <= 0.0:
            return 1.0
        x = min(max((time_s - self.fades_in_at_s) / self.fade_s, 0.0), 1.0)
        return x * x * (3.0 - 2.0 * x)


class Crossfade:
    """The newest trajectory, faded in over the ones before it.

    A trajectory may arrive while an earlier one is still being faded in: then all of them
    count, each by its own weight, so that no arrival makes the blend jump. Layers fully
    covered are forgotten. A `fade_s` of 0 switches at once.
    """

    def __init__(self, base: Trajectory) -> None:
        self._layers = [_Layer(base, fades_in_at_s=-np.inf, fade_s=0.0)]
        self._sampled_at_s = -np.inf

    @property
    def newest(self) -> Trajectory:
        return self._layers[-1].trajectory

    def add(self, trajectory: Trajectory, now_s: float, fade_s: float) -> None:
        """Fade to `trajectory` from `now_s` on, within `fade_s`."""
        if len(self._layers) > 1 and self._layers[-1].fades_in_at_s > self._sampled_at_s:
            self._layers.pop()  # never sampled, so nobody followed it
        self._layers.append(_Layer(trajectory, now_s, fade_s))

    def sample(self, time_s: float) -> F64:
        """f64[A] at `time_s`."""
        self._sampled_at_s = time_s
        result = self._layers[0].trajectory.sample(time_s)
        for layer in self._layers[1:]:
            weight = layer.weight(time_s)
            result = result + weight * (layer.trajectory.sample(time_s) - result)
        return result

    def forget_covered(self, now_s: float) -> None:
        """Drop the layers that no longer count from `now_s` on."""
        while len(self._layers) > 1 and self._layers[1].weight(now_s) >= 1.0:
            del self._layers[0]

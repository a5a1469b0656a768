"""Where the joints are wanted at a time: chunks as trajectories, and the fade between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Preview:
    """A reference at one time, and the range that it will not leave from then on; f64[A] each."""

    at: F64
    low: F64
    high: F64

    def faded(self, newer: Preview, weight: float) -> Preview:
        """A share of `weight` of `newer`, growing from now on.

        The range holds for every later weight: between the range of now and that of `newer`.
        """
        return Preview(
            self.at + weight * (newer.at - self.at),
            np.minimum(newer.low, self.low + weight * (newer.low - self.low)),
            np.maximum(newer.high, self.high + weight * (newer.high - self.high)),
        )


class Reference(Protocol):
    """Where the joints are wanted, until it ends and its last place is held."""

    @property
    def ends_at_s(self) -> float: ...

    def preview(self, time_s: float) -> Preview:
        """The place at `time_s` and the range from then on; never asked for an earlier time
        than before."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """Rows of commands in time, linear in between, constant before the first and at the end.

    rows: f64[H,A], row k at `starts_at_s + k * dt_s`. `ends_at_s` may cut off the last rows.
    """

    rows: F64
    starts_at_s: float
    dt_s: float
    ends_at_s: float

    def preview(self, time_s: float) -> Preview:
        """The trajectory at `time_s` and its range from then on."""
        at, row = self.at(time_s), int(self._place(time_s))
        if time_s >= self.ends_at_s or row == len(self.rows) - 1:
            return Preview(at, at, at)
        low, high = self._ranges
        return Preview(at, np.minimum(at, low[row + 1]), np.maximum(at, high[row + 1]))

    def at(self, time_s: float) -> F64:
        """f64[A]: where the joints are wanted at `time_s`."""
        place = self._place(time_s)
        row = int(place)
        if row == len(self.rows) - 1:
            return self.rows[row]
        return np.asarray(self.rows[row] + (place - row) * (self.rows[row + 1] - self.rows[row]))

    def _place(self, time_s: float) -> float:
        """The row, with a fraction, that `time_s` falls on."""
        rows = (min(time_s, self.ends_at_s) - self.starts_at_s) / self.dt_s
        return min(max(rows, 0.0), len(self.rows) - 1.0)

    @cached_property
    def _ranges(self) -> tuple[F64, F64]:
        """Lowest and highest value of each joint from each row on, as far as it is reached."""
        reached = self.rows[: math.ceil(self._place(self.ends_at_s)) + 1][::-1]
        return np.minimum.accumulate(reached)[::-1], np.maximum.accumulate(reached)[::-1]


def constant(positions: F64) -> Trajectory:
    """Stay at `positions`, f64[A]."""
    return Trajectory(positions[None], starts_at_s=0.0, dt_s=1.0, ends_at_s=0.0)


@dataclass(frozen=True)
class _Layer:
    trajectory: Reference
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

    def __init__(self, base: Reference) -> None:
        self._layers = [_Layer(base, fades_in_at_s=-math.inf, fade_s=0.0)]
        self._followed_at_s = -math.inf

    @property
    def newest(self) -> Reference:
        return self._layers[-1].trajectory

    def add(self, trajectory: Reference, now_s: float, fade_s: float) -> None:
        """Fade to `trajectory` from `now_s` on, within `fade_s`."""
        if len(self._layers) > 1 and self._layers[-1].fades_in_at_s > self._followed_at_s:
            self._layers.pop()  # came and went between two ticks: nobody followed it
        self._layers.append(_Layer(trajectory, now_s, fade_s))

    def follow(self, now_s: float) -> Preview:
        """The blend at `now_s`, which must not be before the last call's."""
        self._followed_at_s = now_s
        while len(self._layers) > 1 and self._layers[1].weight(now_s) >= 1.0:
            del self._layers[0]
        blend = self._layers[0].trajectory.preview(now_s)
        for layer in self._layers[1:]:
            blend = blend.faded(layer.trajectory.preview(now_s), layer.weight(now_s))
        return blend

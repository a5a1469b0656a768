"""Levels of figures against thresholds, with hysteresis: near a threshold none flickers."""

from __future__ import annotations

import math

FINE, WARN, ERROR = 0, 1, 2


class Alarms:
    """Remembers the level of every named figure. One thread.

    A level rises at once; it falls when the figure is `hysteresis`, a share of the threshold,
    back on the good side. A figure that is NaN keeps its level.
    """

    def __init__(self, hysteresis: float = 0.0) -> None:
        if not 0.0 <= hysteresis < 1.0:
            raise ValueError(f"alarms want a hysteresis from 0 to below 1, got {hysteresis}")
        self.hysteresis = hysteresis
        self._levels: dict[str, int] = {}

    def above(self, name: str, value: float, warn: float, error: float = math.inf) -> int:
        """Level of a figure that should be at most `warn`, and never above `error`."""
        return self._next(name, value, {WARN: warn, ERROR: error}, 1.0)

    def below(self, name: str, value: float, warn: float, error: float = -math.inf) -> int:
        """Level of a figure that should be at least `warn`, and never below `error`."""
        return self._next(name, value, {WARN: warn, ERROR: error}, -1.0)

    def forget(self) -> None:
        self._levels.clear()

    def _next(self, name: str, value: float, thresholds: dict[int, float], sign: float) -> int:
        before = self._levels.get(name, FINE)
        if math.isnan(value):
            return before
        level = FINE
        for one, threshold in thresholds.items():
            slack = self.hysteresis * abs(threshold) if one <= before else 0.0
            if math.isinf(threshold):
                slack = 0.0
            if sign * value > sign * threshold - slack:
                level = one
        self._levels[name] = level
        return level

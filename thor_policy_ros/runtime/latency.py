"""Quantiles and rates over the recent past, at O(1) per frame."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantiles:
    """Nearest-rank quantiles: of n sorted values the ceil(q n)-th, so always one measured."""

    p50: float
    p95: float
    p99: float
    count: int


class LatencyWindow:
    """The last `size` values of every named stage."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"latency window wants a size of at least 1, got {size}")
        self._size = size
        self._values: dict[str, deque[float]] = {}

    def add(self, stages: Mapping[str, float]) -> None:
        """One frame: stage name -> ms. Stages may differ from frame to frame."""
        for name, value in stages.items():
            if name not in self._values:
                self._values[name] = deque(maxlen=self._size)
            self._values[name].append(float(value))

    def quantiles(self) -> dict[str, Quantiles]:
        """By stage name; O(size log size), for a report once a second."""
        return {name: _quantiles(sorted(values)) for name, values in self._values.items()}

    def clear(self) -> None:
        self._values.clear()


class RateMeter:
    """Events per second over the last `window_s` of the caller's clock."""

    def __init__(self, window_s: float) -> None:
        if not window_s > 0:
            raise ValueError(f"rate meter wants a positive window in s, got {window_s}")
        self._window_s = window_s
        self._stamps: deque[float] = deque()
        self._since_s: float | None = None
        self._latest_s = -math.inf

    def tick(self, now_s: float) -> None:
        """One event now. The first one starts the measurement and is not counted."""
        self._forget(now_s)
        self._latest_s = now_s
        if self._since_s is None:
            self._since_s = now_s
        else:
            self._stamps.append(now_s)

    def rate_hz(self, now_s: float) -> float:
        """Events per second of the window, or of the time since the first if that is shorter."""
        self._forget(now_s)
        if self._since_s is None:
            return 0.0
        seen_s = min(self._window_s, now_s - self._since_s)
        return len(self._stamps) / seen_s if seen_s > 0 else 0.0

    def _forget(self, now_s: float) -> None:
        """Drop what left the window, and everything if the clock went back."""
        if now_s < self._latest_s:
            self._stamps.clear()
            self._since_s, self._latest_s = None, -math.inf
        while self._stamps and self._stamps[0] <= now_s - self._window_s:
            self._stamps.popleft()


def _quantiles(values: list[float]) -> Quantiles:
    def rank(q: float) -> float:
        return values[max(math.ceil(q * len(values)), 1) - 1]

    return Quantiles(rank(0.50), rank(0.95), rank(0.99), len(values))

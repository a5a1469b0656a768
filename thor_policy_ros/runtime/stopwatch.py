"""Durations of the named stages of a step."""

from __future__ import annotations

from collections.abc import Callable


class Stopwatch:
    """Durations of named stages, in ms, one after the other; laps of one name add up."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun_s = self._lap_s = clock()
        self._stages: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        """From the beginning to the last lap."""
        return self._lap_s - self._begun_s

    def lap(self, stage: str) -> None:
        now_s = self._clock()
        self._stages[stage] = self.ms(stage) + (now_s - self._lap_s) * 1e3
        self._lap_s = now_s

    def ms(self, stage: str) -> float:
        """0 for a stage that did not run."""
        return self._stages.get(stage, 0.0)

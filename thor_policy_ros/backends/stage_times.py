"""How long the stages of a frame took: by a clock on the CPU, by events on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch

STAGES = ("vision", "prefill", "denoise")


class StageTimes(Protocol):
    """Durations of the last run of each stage."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]: ...

    def read_ms(self) -> Mapping[str, float]: ...


class ClockTimes:
    """Wall time of stages that block, such as those on a CPU. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ms = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = self._clock()
        yield
        self._ms[name] = (self._clock() - begun) * 1e3

    def read_ms(self) -> Mapping[str, float]:
        return dict(self._ms)


class CudaTimes:
    """Time on the device between events; reading waits for the last stage to finish."""

    def __init__(self) -> None:
        self._events = {
            name: (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for name in STAGES
        }
        self._recorded: set[str] = set()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin, end = self._events[name]
        begin.record()
        yield
        end.record()
        self._recorded.add(name)

    def read_ms(self) -> Mapping[str, float]:
        return {name: self._elapsed(name) for name in STAGES}

    def _elapsed(self, name: str) -> float:
        if name not in self._recorded:
            return 0.0
        begin, end = self._events[name]
        end.synchronize()
        return begin.elapsed_time(end)

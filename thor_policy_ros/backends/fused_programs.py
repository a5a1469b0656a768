"""Sequences of operations on fixed memory, called as they are or replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from thor_policy_ros.backends import lent_streams

Work = Callable[[], None]
Prepare = Callable[[Work], Work]
"""Turns work into something faster that does the same."""

WARM_UPS = 2
INSTANTIATIONS = 3
TIMED_REPLAYS = 3


class Programs:
    """Each program is prepared once, under its key, and run as often as wanted.

    prepare: None runs the work itself. Work must be repeatable: preparing runs it.
    """

    def __init__(self, prepare: Prepare | None) -> None:
        self._prepare = prepare
        self._made: dict[Hashable, Work] = {}
        self._complete = False

    def __len__(self) -> int:
        return len(self._made)

    @property
    def spread_ms(self) -> tuple[tuple[float, float], ...]:
        """Of each graph the fastest and the slowest instantiation; () where there are none."""
        return tuple(getattr(self._prepare, "spread_ms", ()))

    def complete(self) -> None:
        """From here on a program that is not there is a defect: nothing is prepared any more."""
        self._complete = True

    def run(self, key: Hashable, work: Work) -> None:
        """Run `work`, which must be the same for the same key."""
        if self._prepare is None:
            work()
            return
        if key not in self._made:
            if self._complete:
                raise RuntimeError(f"program {key} was not prepared at warm-up")
            self._made[key] = self._prepare(work)
        self._made[key]()

    def clear(self) -> None:
        """Drop all programs and their memory."""
        self._made.clear()


class CudaGraphs:
    """Captures work in the current device's graphs, a few times, and keeps the fastest: how the
    driver lays a graph out varies from one to the next.

    All graphs of one object share memory, so two of them must never run at the same time.
    spread_ms: fastest and slowest instantiation of each graph, in the order of capture.
    """

    def __init__(self, instantiations: int = INSTANTIATIONS) -> None:
        self._instantiations = instantiations
        self._pool: Any = torch.cuda.graph_pool_handle()
        self.spread_ms: list[tuple[float, float]] = []

    def __call__(self, work: Work) -> Work:
        """Warm-ups choose and compile the kernels, outside of any capture."""
        current = torch.cuda.current_stream()
        side = lent_streams.lend(current.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(side)
        lent_streams.give_back(side)
        timed = [self._timed_capture(work) for _ in range(self._instantiations)]
        timed.sort(key=lambda pair: pair[0])
        self.spread_ms.append((timed[0][0], timed[-1][0]))
        replay: Work = timed[0][1].replay
        return replay

    def _timed_capture(self, work: Work) -> tuple[float, torch.cuda.CUDAGraph]:
        """A graph, and the least of a few replays in ms."""
        graph = torch.cuda.CUDAGraph()
        # Another thread may be running the live backend: only this one must keep still.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        graph.replay()
        return min(_replay_ms(graph) for _ in range(TIMED_REPLAYS)), graph


def _replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))

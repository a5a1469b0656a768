"""Streams that only wait for what they must, and launches captured once to be replayed.

On a CPU, where engines are tested, there is one order of work and nothing to capture.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

Launch = Callable[[], None]


class OwnStream:
    """A stream whose work comes after what the current stream holds by now, and before what it
    gets later: to a caller it is work in the current stream, never in the default one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Makes it the current stream."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


class Recorder(Protocol):
    """Turns a launch into something that repeats it exactly: same memory, same sizes."""

    def record(self, launch: Launch, capturable: Callable[[], bool]) -> Launch | None:
        """None where it cannot be captured."""
        ...


class CudaGraphs:
    """Captures launches as CUDA graphs, in the current stream, which must not be the default."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, launch: Launch, capturable: Callable[[], bool]) -> Launch | None:
        """The graph's replay.

        The launch runs once before: libraries settle what they put off until then. Threads that
        load something else meanwhile may allocate.
        """
        launch()
        torch.cuda.current_stream().synchronize()
        if not capturable():
            return None
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
        replay: Launch = graph.replay
        return replay


class NoGraphs:
    """Repeats a launch by calling it."""

    def record(self, launch: Launch, capturable: Callable[[], bool]) -> Launch:
        return launch


class Replays:
    """Launches by what they are and what they work on, recorded at their first run.

    uncaptured: names of those that run without a graph.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._recorded: dict[tuple[str, Hashable], Launch] = {}
        self.uncaptured: set[str] = set()

    def run(self, name: str, key: Hashable, launch: Launch, capturable: Callable[[], bool]) -> None:
        """Run `launch` as it was recorded under `name` and `key`, which say all that it does."""
        if (name, key) not in self._recorded:
            replay = self._recorder.record(launch, capturable)
            if replay is None:
                self.uncaptured.add(name)
            self._recorded[name, key] = replay or launch
        self._recorded[name, key]()

    def clear(self) -> None:
        """Drop what was recorded, and with it the memory that graphs hold."""
        self._recorded.clear()


def recorder_for(device: torch.device) -> Recorder:
    """CUDA graphs on a GPU."""
    return CudaGraphs() if device.type == "cuda" else NoGraphs()

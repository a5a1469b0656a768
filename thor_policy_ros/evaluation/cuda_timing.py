"""Time of short pieces of GPU work, without and with the host's launches in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]
WARM_UPS = 3


class TimedCalls:
    """A sequence of calls as one CUDA graph and as plain launches; needs a CUDA device.

    The calls should read different memory of more than the L2 cache in all: a layer of a real
    model finds its weights in device memory, never in the cache.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._run()

    def graph_ms(self) -> float:
        """Of one call, as the device alone takes it."""
        return _elapsed_ms(self._graph.replay) / len(self._calls)

    def eager_ms(self) -> float:
        """Of one call launched by the host, which may be what takes the time."""
        return _elapsed_ms(self._run) / len(self._calls)

    def _run(self) -> None:
        for call in self._calls:
            call()


def _elapsed_ms(work: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))

"""The one thread that touches the backend: it loads, runs on ticks, and closes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from thor_policy_ros.runtime.gpu_errors import forget_frames


@dataclass(frozen=True)
class Tick:
    """One tick to serve.

    number: since `run_on_ticks`, from 1. missed: ticks before it that were never served.
    at_s: when it came, on the clock of the caller of `InferenceThread.tick`, or when it was due.
    """

    number: int
    missed: int
    at_s: float


OnTick = Callable[[Tick], None]


class InferenceThread:
    """Runs jobs in the order they were given, and between them the newest tick.

    A tick that comes while a frame is computed is served at once afterwards, with the inputs of
    that moment; ticks that were overtaken count as missed. Ticks come by `tick`, or by themselves
    (`pace`). All methods return at once; they may be called from any thread.
    """

    def __init__(self, name: str, on_failure: Callable[[BaseException], None]) -> None:
        """on_failure: called in this thread when serving a tick raises; ticks then stop."""
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._on_tick: OnTick | None = None
        self._ticks = 0
        self._served = 0
        self._ticked_at_s = 0.0
        self._period_s: float | None = None
        self._due_s = 0.0
        self._ended = False
        self.serving_since_s: float | None = None
        """When the frame now computed was begun, by `time.perf_counter`; None between frames."""
        # A daemon: a library that compiles for minutes must not hold up Ctrl-C.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], Any]) -> Future[Any]:
        """Runs `job` in the thread, after the frame now computed and the jobs given before."""
        future: Future[Any] = Future()
        with self._changed:
            if self._ended:
                raise RuntimeError("the inference thread has ended; make a new one")
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    def tick(self, now_s: float) -> None:
        """It is time for a frame."""
        with self._changed:
            self._ticks += 1
            self._ticked_at_s = now_s
            self._changed.notify()

    def pace(self, period_s: float | None) -> None:
        """Ticks come by themselves from now on, one each period of `time.perf_counter`, the first
        after one; None: no more but by `tick`."""
        with self._changed:
            self._period_s = period_s
            self._due_s = time.perf_counter() + (period_s or 0.0)
            self._changed.notify()

    def run_on_ticks(self, on_tick: OnTick) -> Future[None]:
        """From now on ticks are served by `on_tick`, counted from 1."""
        return self.call(lambda: self._serve_with(on_tick))

    def stop_ticks(self) -> Future[None]:
        """Done when the frame now computed is finished and none will follow."""
        return self.call(lambda: self._serve_with(None))

    def end(self) -> None:
        """The thread ends after the jobs given so far."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        """True when the thread has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _serve_with(self, on_tick: OnTick | None) -> None:
        with self._changed:
            self._on_tick = on_tick
            self._ticks = self._served = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    self._changed.wait(self._until_due_s())
                if self._jobs:
                    work = partial(_run_job, *self._jobs.popleft())
                elif self._ended:
                    return
                else:
                    work = partial(self._serve, self._take_tick())
            work()
            del work  # with its future's result or error, which may hold a model

    def _has_work(self) -> bool:
        self._count_due()
        ticking = self._on_tick is not None and self._ticks > self._served
        return bool(self._jobs) or self._ended or ticking

    def _count_due(self) -> None:
        """The ticks that came by themselves; the newest is the one to serve."""
        if self._period_s is None:
            return
        late_s = time.perf_counter() - self._due_s
        if late_s >= 0:
            before = int(late_s / self._period_s)
            self._ticks += 1 + before
            self._ticked_at_s = self._due_s + before * self._period_s
            self._due_s = self._ticked_at_s + self._period_s

    def _until_due_s(self) -> float | None:
        if self._period_s is None or self._on_tick is None:
            return None
        return max(0.0, self._due_s - time.perf_counter())

    def _take_tick(self) -> Tick:
        missed = self._ticks - self._served - 1
        self._served = self._ticks
        return Tick(self._ticks, missed, self._ticked_at_s)

    def _serve(self, tick: Tick) -> None:
        assert self._on_tick is not None
        self.serving_since_s = time.perf_counter()
        try:
            self._on_tick(tick)
        except Exception as error:  # noqa: BLE001 - handed to the owner, who goes to the error state
            with self._changed:
                self._on_tick = None
            forget_frames(error)
            self._on_failure(error)
        finally:
            self.serving_since_s = None


def _run_job(job: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
        future.set_exception(error)

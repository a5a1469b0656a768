"""The one thread that touches a served policy, and the requests that wait for it.

A client has one request here at a time (its next is read when this one is answered), so that
oldest first is also fair: nobody is served twice while somebody else waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from thor_policy_ros.serving.served_policy import Request, ServedPolicy
from thor_policy_ros.types import ActionChunk


class BusyError(RuntimeError):
    """As many requests wait as may; the client should try again."""


@dataclass(frozen=True)
class Answer:
    """A chunk, how long the request waited and was computed, and with how many others (1: none)."""

    chunk: ActionChunk
    queue_ms: float
    infer_ms: float
    batch: int


@dataclass(frozen=True)
class _Waiting:
    request: Request
    since_s: float
    future: Future[Answer]


class InferenceWorker:
    """Opens, calls and closes the policy in its own thread.

    open_policy: called in the thread. max_waiting: requests that may wait. clock: seconds.
    `fault` says why the policy itself failed the last time it was called, '' if it did not.
    """

    def __init__(
        self, open_policy: Callable[[], ServedPolicy], max_waiting: int, clock: Callable[[], float]
    ) -> None:
        self._open = open_policy
        self._max_waiting = max_waiting
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._ending = False
        self.fault = ""
        self.opened: Future[ServedPolicy] = Future()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Answer]:
        """The answer to come; what is wrong with the request is raised by the future. A future
        that is cancelled while it waits costs nothing. BusyError when too many wait."""
        future: Future[Answer] = Future()
        with self._changed:
            if self._ending:
                raise BusyError("the server is shutting down")
            if len(self._waiting) >= self._max_waiting:
                raise BusyError(f"{len(self._waiting)} requests wait already; try again")
            self._waiting.append(_Waiting(request, self._clock(), future))
            self._changed.notify()
        return future

    def end(self, timeout_s: float) -> bool:
        """Finish the call under way, drop who waits, close the policy. True when that is done."""
        with self._changed:
            self._ending = True
            for left in self._waiting:
                left.future.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            policy = self._open()
        except BaseException as error:  # noqa: BLE001 - raised where `opened` is awaited
            self.opened.set_exception(error)
            return
        self.opened.set_result(policy)
        try:
            while batch := self._next(policy.max_batch):
                self._serve(policy, batch)
        finally:
            policy.close()

    def _next(self, most: int) -> list[_Waiting]:
        """The oldest requests whose clients are still there, at least one; [] at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if self._ending:
                    return []
                taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            wanted = [one for one in taken if one.future.set_running_or_notify_cancel()]
            if wanted:
                return wanted

    def _serve(self, policy: ServedPolicy, batch: list[_Waiting]) -> None:
        begun_s = self._clock()
        try:
            results = policy.infer([one.request for one in batch])
        except Exception as error:  # noqa: BLE001 - the clients are told, and the next request tried
            self.fault = f"{type(error).__name__}: {error}"
            for one in batch:
                one.future.set_exception(error)
            return
        self.fault = ""
        infer_ms = (self._clock() - begun_s) * 1e3
        for one, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                one.future.set_exception(result)
            else:
                queue_ms = (begun_s - one.since_s) * 1e3
                one.future.set_result(Answer(result, queue_ms, infer_ms, len(batch)))

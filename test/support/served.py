"""A policy server in a thread of the test, and policies to serve that need no network."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from support.toy_checkpoint import TINY

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.serving.inference_worker import InferenceWorker
from thor_policy_ros.serving.observation_keys import keys_of
from thor_policy_ros.serving.policy_server import PolicyServer, ServerSettings
from thor_policy_ros.serving.requests import RequestForm
from thor_policy_ros.serving.served_policy import Request
from thor_policy_ros.types import ActionChunk


class CountingPolicy:
    """Answers with actions that are all equal to the first number of the state.

    hold: while it is cleared, an inference waits. calls: the requests of each call.
    answer: replaces what it does with one request.
    """

    def __init__(
        self,
        config: PolicyConfig = TINY,
        max_batch: int = 1,
        answer: Callable[[Request], ActionChunk | Exception] | None = None,
    ) -> None:
        self.config = config
        self.max_batch = max_batch
        self.hold = threading.Event()
        self.hold.set()
        self.calls: list[list[Request]] = []
        self.closed_in = ""
        self._answer = answer or self._chunk

    def facts(self) -> Mapping[str, Any]:
        return {"config": self.config.name}

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk | Exception]:
        self.calls.append(list(requests))
        assert self.hold.wait(20)
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        self.closed_in = threading.current_thread().name

    def _chunk(self, request: Request) -> ActionChunk:
        shape = (self.config.model.action_horizon, self.config.action_dim)
        actions = np.full(shape, request.observation.state[0], np.float32)
        return ActionChunk(actions, self.config.action_dt_s, request.observation.stamp_s)


@dataclass
class Served:
    """A running server. told: what it said, line by line. ended: filled when it has stopped."""

    worker: InferenceWorker
    port: int = 0
    told: list[str] = field(default_factory=list)
    seconds_to_stop: float = -1.0
    _stop: Callable[[], None] = lambda: None
    _thread: threading.Thread | None = None

    def stop(self) -> None:
        """As SIGTERM would; returns when the server has ended. Twice is once."""
        begun_s = time.perf_counter()
        self._stop()
        assert self._thread is not None
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.worker.end(5.0)
        if self.seconds_to_stop < 0:
            self.seconds_to_stop = time.perf_counter() - begun_s


@contextmanager
def serving(
    policy: Any = None, form: RequestForm | None = None, *, max_waiting: int = 16, **settings: Any
) -> Iterator[Served]:
    """On a free port of loopback, unless `settings` say otherwise."""
    policy = policy or CountingPolicy()
    form = form or RequestForm(policy.config, keys_of(policy.config))
    worker = InferenceWorker(lambda: policy, max_waiting, time.perf_counter)
    served = Served(worker)
    server = PolicyServer(
        worker,
        form,
        {**policy.facts(), **form.facts()},
        ServerSettings(**{"port": 0, **settings}),
        served.told.append,
    )
    ready = threading.Event()

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()

        def on_ready(port: int) -> None:
            served.port = port
            ready.set()

        def request_stop() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stop.set)

        served._stop = request_stop
        await server.run(stop, on_ready)

    served._thread = threading.Thread(target=lambda: asyncio.run(run()), name="server")
    served._thread.start()
    try:
        assert ready.wait(10), "the server did not start"
        yield served
    finally:
        policy_hold = getattr(policy, "hold", None)
        if policy_hold is not None:
            policy_hold.set()
        served.stop()


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Fails the test when it does not become true."""
    end_s = time.perf_counter() + timeout_s
    while not true():
        assert time.perf_counter() < end_s, "it did not happen in time"
        time.sleep(0.005)

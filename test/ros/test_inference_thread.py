"""One thread: jobs in order, the newest tick between them, missed ones counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from thor_policy_ros.ros.inference_thread import InferenceThread, Tick

PATIENCE_S = 20.0


class Served:
    """Ticks that were served; `gate` holds the serving thread while closed."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.began = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def __call__(self, tick: Tick) -> None:
        self.ticks.append(tick)
        self.began.release()
        assert self.gate.acquire(timeout=PATIENCE_S)

    def wait_begun(self) -> None:
        assert self.began.acquire(timeout=PATIENCE_S)


@pytest.fixture
def failures() -> list[BaseException]:
    return []


@pytest.fixture
def thread(failures: list[BaseException]) -> Iterator[InferenceThread]:
    thread = InferenceThread("test", failures.append)
    yield thread
    thread.end()
    assert thread.join(PATIENCE_S)


def test_jobs_run_in_one_thread_in_order(thread: InferenceThread) -> None:
    seen: list[object] = []
    futures = [
        thread.call(lambda i=i: seen.append((i, threading.current_thread().name)))  # type: ignore[misc]
        for i in range(20)
    ]
    for future in futures:
        future.result(PATIENCE_S)
    assert seen == [(i, "test") for i in range(20)]


def test_a_job_that_raises_raises_where_it_is_awaited(thread: InferenceThread) -> None:
    def broken() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        thread.call(broken).result(PATIENCE_S)
    assert thread.call(lambda: 7).result(PATIENCE_S) == 7


def test_ticks_during_a_frame_are_overtaken_by_the_newest(thread: InferenceThread) -> None:
    served = Served()
    thread.run_on_ticks(served).result(PATIENCE_S)
    thread.tick(1.0)
    served.wait_begun()
    for at_s in (2.0, 3.0, 4.0):
        thread.tick(at_s)
    served.gate.release()
    served.wait_begun()
    served.gate.release()
    thread.stop_ticks().result(PATIENCE_S)
    assert served.ticks == [Tick(1, 0, 1.0), Tick(4, 2, 4.0)]


def test_no_tick_is_served_before_or_after(thread: InferenceThread) -> None:
    served = Served()
    thread.tick(0.0)
    thread.run_on_ticks(served).result(PATIENCE_S)
    thread.stop_ticks().result(PATIENCE_S)
    thread.tick(1.0)
    thread.call(lambda: None).result(PATIENCE_S)
    assert served.ticks == []


def test_stop_waits_for_the_frame_and_counting_begins_anew(thread: InferenceThread) -> None:
    served = Served()
    thread.run_on_ticks(served).result(PATIENCE_S)
    thread.tick(1.0)
    served.wait_begun()
    stopped = thread.stop_ticks()
    assert not stopped.done()
    served.gate.release()
    stopped.result(PATIENCE_S)
    thread.run_on_ticks(served).result(PATIENCE_S)
    served.gate.release()
    thread.tick(9.0)
    served.wait_begun()
    assert served.ticks == [Tick(1, 0, 1.0), Tick(1, 0, 9.0)]


def test_a_tick_that_raises_is_reported_and_ends_the_ticks(
    thread: InferenceThread, failures: list[BaseException]
) -> None:
    served: list[Tick] = []

    def broken(tick: Tick) -> None:
        served.append(tick)
        raise RuntimeError("device lost")

    thread.run_on_ticks(broken).result(PATIENCE_S)
    for at_s in range(100):
        thread.tick(float(at_s))
        thread.call(lambda: None).result(PATIENCE_S)
    assert [str(error) for error in failures] == ["device lost"]
    assert len(served) == 1, "ticks went on after a failure"


def test_an_ended_thread_takes_no_job() -> None:
    thread = InferenceThread("test", lambda error: None)
    done = thread.call(lambda: 1)
    thread.end()
    assert thread.join(PATIENCE_S) and done.result(0) == 1
    with pytest.raises(RuntimeError, match="make a new one"):
        thread.call(lambda: 2)


def test_paced_it_ticks_by_itself_and_counts_what_a_frame_overtook(thread: InferenceThread) -> None:
    """Due times lie on a grid; a frame of 3.5 periods makes 3 of them missed."""
    served = Served()
    thread.run_on_ticks(served).result(PATIENCE_S)
    period_s, begun_s = 0.05, time.perf_counter()
    thread.pace(period_s)
    served.wait_begun()
    first = served.ticks[0]
    assert (first.number, first.missed) == (1, 0)
    assert 0.0 <= first.at_s - begun_s - period_s < 0.02
    late_s = first.at_s + 3.5 * period_s - time.perf_counter()
    time.sleep(max(late_s, 0.0))
    served.gate.release()
    served.wait_begun()
    second = served.ticks[1]
    assert second.missed >= 2 and second.number == second.missed + 2
    assert second.at_s == pytest.approx(first.at_s + (second.number - 1) * period_s, abs=1e-9)
    thread.pace(None)
    served.gate.release()
    time.sleep(3 * period_s)
    assert len(served.ticks) == 2, "none comes by itself any more"
    thread.stop_ticks().result(PATIENCE_S)


def test_paced_without_anyone_to_serve_it_counts_from_when_there_is(
    thread: InferenceThread,
) -> None:
    thread.pace(0.01)
    time.sleep(0.05)
    served = Served()
    thread.run_on_ticks(served).result(PATIENCE_S)
    served.wait_begun()
    assert served.ticks[0].number - served.ticks[0].missed == 1
    thread.pace(None)
    served.gate.release()
    thread.stop_ticks().result(PATIENCE_S)

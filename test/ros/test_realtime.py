"""Real-time scheduling: had where it is permitted, and otherwise said what to change."""

from __future__ import annotations

import ctypes
import errno
import os
import threading

import pytest

from thor_policy_ros.ros import realtime
from thor_policy_ros.ros.realtime import RealtimeState, enter_realtime


class Libc:
    """mlockall that gives an error, or none."""

    def __init__(self, code: int) -> None:
        self.code, self.flags = code, 0

    def mlockall(self, flags: int) -> int:
        self.flags = flags
        ctypes.set_errno(self.code)
        return -1 if self.code else 0


def test_nothing_is_asked_for_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: pytest.fail("called"))
    monkeypatch.setattr(realtime.ctypes, "CDLL", lambda *_, **__: pytest.fail("called"))
    assert enter_realtime(0, False) == RealtimeState("ordinary", False, ())


def test_what_is_permitted_is_had(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, libc = [], Libc(0)
    monkeypatch.setattr(
        os, "sched_setscheduler", lambda pid, policy, param: asked.append((pid, policy, param))
    )
    monkeypatch.setattr(realtime.ctypes, "CDLL", lambda *_, **__: libc)
    assert enter_realtime(40, True) == RealtimeState("SCHED_FIFO 40", True, ())
    ((pid, policy, param),) = asked
    wanted = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    assert (pid, policy, param.sched_priority) == (0, wanted, 40)
    assert libc.flags == 3, "what there is and what will be"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOMEM])
def test_what_is_not_permitted_is_said_with_what_to_change(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(realtime.ctypes, "CDLL", lambda *_, **__: Libc(code))
    state = enter_realtime(40, True)
    assert (state.scheduler, state.memory_locked) == ("ordinary", False)
    fifo, memory = state.refusals
    assert "realtime_priority 40 is not permitted" in fifo and "rtprio 40" in fifo
    assert "lock_memory is not permitted" in memory and "memlock unlimited" in memory


def test_the_system_itself_is_asked_and_answers_one_way_or_the_other() -> None:
    """In a thread of its own, which ends with its scheduler; what it starts is ordinary."""
    found: list[tuple[RealtimeState, int]] = []
    started: list[int] = []

    def ask() -> None:
        state = enter_realtime(1, False)
        child = threading.Thread(target=lambda: started.append(os.sched_getscheduler(0)))
        child.start()
        child.join()
        found.append((state, os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    ((state, policy),) = found
    permitted = not state.refusals
    assert permitted == (state.scheduler == "SCHED_FIFO 1") == (policy == os.SCHED_FIFO)
    assert started == [os.SCHED_OTHER]

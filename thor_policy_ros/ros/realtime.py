"""Real-time scheduling of a control thread, where the system permits it.

Nothing here is done unless a parameter asks for it, and what is not permitted is said with what
to change: a robot that was meant to run in real time must not silently run without.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass

MCL_CURRENT, MCL_FUTURE = 1, 2
"""As in Linux's mman.h on x86-64 and ARM."""


@dataclass(frozen=True)
class RealtimeState:
    """What was asked for and what came: `refusals` is empty where all of it did.

    scheduler: as it now is, in words. memory_locked: whether mlockall holds.
    """

    scheduler: str = "ordinary"
    memory_locked: bool = False
    refusals: tuple[str, ...] = ()


def enter_realtime(priority: int, lock_memory: bool) -> RealtimeState:
    """Put the calling thread under SCHED_FIFO and the process's memory in RAM, as asked.

    priority: 1 to 99, 0 for the ordinary scheduler. Threads and processes that are started
    later are ordinary ones. Never raises: the robot is as safe without, and diagnostics say so.
    """
    refusals = []
    scheduler, locked = "ordinary", False
    if priority:
        refused = _set_fifo(priority)
        scheduler = "ordinary" if refused else f"SCHED_FIFO {priority}"
        refusals += [refused] if refused else []
    if lock_memory:
        refused = _lock_memory()
        locked = not refused
        refusals += [refused] if refused else []
    return RealtimeState(scheduler, locked, tuple(refusals))


def _set_fifo(priority: int) -> str:
    if not hasattr(os, "sched_setscheduler"):
        return "realtime_priority wants Linux: this system has no SCHED_FIFO"
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except PermissionError:
        return (
            f"realtime_priority {priority} is not permitted: allow it with `rtprio {priority}` for "
            "this user in /etc/security/limits.conf, LimitRTPRIO= of a systemd service, "
            "`--ulimit rtprio=99 --cap-add SYS_NICE` of a container, or set it to 0"
        )
    except OSError as error:
        return f"realtime_priority {priority} failed: {error.strerror}"
    return ""


def _lock_memory() -> str:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0
    except (OSError, AttributeError):
        return "lock_memory wants a C library with mlockall; this system's has none"
    if not failed:
        return ""
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.ENOMEM, errno.EAGAIN):
        return (
            "lock_memory is not permitted: allow it with `memlock unlimited` for this user in "
            "/etc/security/limits.conf, LimitMEMLOCK=infinity of a systemd service, "
            "`--ulimit memlock=-1` of a container, or set it to false"
        )
    return f"lock_memory failed: {os.strerror(code)}"

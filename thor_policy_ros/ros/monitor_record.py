"""What the monitor has heard: frames, decisions, health, faults. No ROS and no terminal here."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from thor_policy_ros.ros.decision_record import kind_of
from thor_policy_ros.runtime.latency import LatencyWindow, RateMeter

FRAMES = 600
SPARK = 240
FAULTS = 50
RATE_WINDOW_S = 5.0
OK, WARN, ERROR, STALE = 0, 1, 2, 3


@dataclass(frozen=True)
class Frame:
    """One FrameLatency message. stages_ms: by stage, `total` among them. hops_ms: between the
    hosts, NaN where not known."""

    backend: str
    stages_ms: Mapping[str, float]
    decision: str
    deadline_ms: float
    deadline_missed: bool
    dropped_frames: int
    missed_ticks: int
    hops_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """One status of /diagnostics. level: as diagnostic_msgs has it."""

    level: int
    message: str
    values: Mapping[str, str]
    heard_s: float


@dataclass(frozen=True)
class Fault:
    """A status that became worse than OK, or well again (level OK)."""

    at_s: float
    task: str
    level: int
    message: str


@dataclass
class MonitorRecord:
    """Since the monitor was started; times are seconds of the monitor's own clock.

    statuses: by name. faults: the newest last. frame: the newest, None before the first.
    """

    statuses: dict[str, Status] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=lambda: deque(maxlen=FAULTS))
    totals_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SPARK))
    decisions: Counter[str] = field(default_factory=Counter)
    frame: Frame | None = None
    frames: int = 0
    missed_deadlines: int = 0
    frame_at_s: float | None = None
    chunk_at_s: float | None = None
    chunks: int = 0

    def __post_init__(self) -> None:
        self.latency = LatencyWindow(FRAMES)
        self.hops = LatencyWindow(FRAMES)
        self.frame_rate = RateMeter(RATE_WINDOW_S)
        self.chunk_rate = RateMeter(RATE_WINDOW_S)

    @property
    def heard(self) -> bool:
        return bool(self.statuses) or self.frame is not None

    def add_frame(self, frame: Frame, now_s: float) -> None:
        self.frame, self.frame_at_s = frame, now_s
        self.frames += 1
        self.missed_deadlines += frame.deadline_missed
        self.decisions[kind_of(frame.decision)] += 1
        self.latency.add(frame.stages_ms)
        self.hops.add({hop: ms for hop, ms in frame.hops_ms.items() if math.isfinite(ms)})
        self.totals_ms.append(frame.stages_ms["total"])
        self.frame_rate.tick(now_s)

    def add_chunk(self, now_s: float) -> None:
        self.chunks += 1
        self.chunk_at_s = now_s
        self.chunk_rate.tick(now_s)

    def add_status(self, name: str, status: Status) -> None:
        """Notes a fault where the level changed; the first word of a status only if not OK."""
        before = self.statuses.get(name)
        self.statuses[name] = status
        if status.level != (before.level if before is not None else OK):
            fault = Fault(status.heard_s, name, status.level, status.message)
            self.faults.append(fault)

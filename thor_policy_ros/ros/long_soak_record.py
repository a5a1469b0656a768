"""What a long soak with random changes has seen. No ROS, no clock."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thor_policy_ros.ros.fault_record import CommandLog, Judgement, judge
from thor_policy_ros.ros.soak_record import quantiles

MB = 1e6
GROWTH_LIMIT, LEAST_MB = 0.05, 8.0
"""Of each process, from the first to the last fifth after warming up; less than LEAST_MB is the
allocator's own."""
COMMAND_GAP_LIMIT_S = 0.5
REST_S = 1.5
"""After an episode's end the executor has come to rest, and is silent, by then."""
JUDGED_AT_ONCE_S, LATE_WORD_S = 20.0, 5.0
DT_S = 0.01
# Of config/demo.yaml.
VELOCITY = np.array([2.0, 2.0, 2.0, 2.0, np.inf])
ACCELERATION = np.array([10.0, 10.0, 10.0, 10.0, np.inf])


@dataclass
class Memory:
    """Resident bytes of one process against seconds since the soak began."""

    at_s: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)

    def figures(self, warm_s: float) -> dict[str, Any]:
        """The slope is of a straight line through all samples after `warm_s`."""
        at_s, mb = np.array(self.at_s), np.array(self.rss, float) / MB
        after = at_s >= warm_s
        at_s, mb = at_s[after], mb[after]
        if len(mb) < 10:
            return {"samples": len(mb)}
        fifth = len(mb) // 5
        first, last = float(np.median(mb[:fifth])), float(np.median(mb[-fifth:]))
        step = max(1, len(mb) // 30)
        return {
            "samples": len(mb),
            "first_fifth_mb": round(first, 1),
            "last_fifth_mb": round(last, 1),
            "max_mb": round(float(mb.max()), 1),
            "growth": round(last / first - 1.0, 4),
            "slope_mb_per_hour": round(float(np.polyfit(at_s / 3600.0, mb, 1)[0]), 2),
            "course_mb": [round(float(x), 1) for x in mb[::step]],
        }


@dataclass
class Motion:
    """Commands by the executor's own stamps, judged some seconds after they came: word of an
    episode's end, after which the robot is moved by hand, may come after the next motion's first.
    """

    log: CommandLog = field(default_factory=lambda: CommandLog(settled_s=REST_S))
    found: Judgement = field(default_factory=Judgement)
    commands: int = 0

    def add(self, now_s: float, positions: Sequence[float], velocities: Sequence[float]) -> None:
        self.commands += 1
        self.log.add(now_s, positions, velocities)
        if now_s - self.log.times_s[0] > JUDGED_AT_ONCE_S:
            self._judge(now_s - LATE_WORD_S)

    def reset(self, at_s: float) -> None:
        """An episode has ended then."""
        self.log.breaks_s.append(at_s)

    def finish(self) -> None:
        """All that came is judged."""
        self._judge(np.inf)

    def _judge(self, until_s: float) -> None:
        part = self.log.split(bisect.bisect_right(self.log.times_s, until_s))
        new, found = judge(part, 0.0, 0.0, DT_S, VELOCITY, ACCELERATION), self.found
        for name in ("peak_velocity", "peak_acceleration", "longest_gap_s", "longest_reset_gap_s"):
            setattr(found, name, max(getattr(found, name), getattr(new, name)))
        found.begun_anew += new.begun_anew
        found.lost += new.lost
        found.failures += [
            f"{failure} (before {part.times_s[-1]:.1f} s)" for failure in new.failures
        ]


@dataclass
class Phase:
    """The quiet parts of the soak, or those with changes. failed: what is known of each episode
    that was not solved.
    """

    episodes: int = 0
    solved: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    late_frames: int = 0
    chunks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failed: list[dict[str, Any]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "episodes": self.episodes,
            "solved": self.solved,
            "outcomes": dict(self.outcomes),
            "frames": self.frames,
            "failed": self.failed,
            "late_frames": self.late_frames,
            "chunks": dict(sorted(self.chunks.items())),
        }


@dataclass
class LongSoakRecord:
    """Facts of a whole run. refusals: by parameter. said: statuses that were not in order, with
    their numbers taken out. interventions: of the safety layer, during the changes.
    """

    quiet: Phase = field(default_factory=Phase)
    changing: Phase = field(default_factory=Phase)
    made: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    unverified_chunks: int = 0
    switch_s: list[float] = field(default_factory=list)
    set_calls_ms: list[float] = field(default_factory=list)
    memory: dict[str, Memory] = field(default_factory=dict)
    motion: Motion = field(default_factory=Motion)
    said: Counter[str] = field(default_factory=Counter)
    executor_said: Counter[str] = field(default_factory=Counter)
    interventions: Counter[str] = field(default_factory=Counter)
    watchdog_tripped_s: float | None = None
    watchdog_recovered_s: float | None = None
    load: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add_memory(self, process: str, at_s: float, rss: int) -> None:
        memory = self.memory.setdefault(process, Memory())
        memory.at_s.append(at_s)
        memory.rss.append(rss)

    def faults(self, warm_s: float) -> list[str]:
        """What is not good enough, but for the success, which is judged by its statistics."""
        motion, trips = self.motion.found, self.interventions
        found = [*self.failures, *self.surprises, *motion.failures]
        if self.unverified_chunks:
            found.append(f"{self.unverified_chunks} chunks were not verified")
        if trips["heartbeat"]:
            found.append(f"the heartbeat was missed {trips['heartbeat']} times")
        if trips["stop"]:
            found.append(f"the executor stopped the robot {trips['stop']} times")
        if motion.longest_gap_s > COMMAND_GAP_LIMIT_S:
            found.append(f"no command for {motion.longest_gap_s:.3f} s")
        for process, memory in self.memory.items():
            figures = memory.figures(warm_s)
            growth = figures.get("growth", 0.0)
            if growth > GROWTH_LIMIT and growth * figures["first_fifth_mb"] > LEAST_MB:
                found.append(f"memory of {process} grew by {growth:.1%}")
        return found

    def summary(self, warm_s: float) -> dict[str, Any]:
        motion = self.motion.found
        return {
            "changes": {
                "made": sum(self.made.values()),
                "made_by_name": dict(self.made.most_common()),
                "refused_as_they_must": sum(self.refused.values()),
                "refused_by_name": dict(self.refused.most_common()),
                "surprises": self.surprises,
            },
            "quiet": self.quiet.figures(),
            "changing": self.changing.figures(),
            "load_average": quantiles(self.load),
            "unverified_chunks": self.unverified_chunks,
            "switch_s": quantiles(self.switch_s),
            "set_call_ms": quantiles(self.set_calls_ms),
            "memory": {name: m.figures(warm_s) for name, m in self.memory.items()},
            "motion": {
                "commands": self.motion.commands,
                "begun_anew": motion.begun_anew,
                "lost_on_the_way": motion.lost,
                "longest_gap_s": round(motion.longest_gap_s, 4),
                "longest_reset_gap_s": round(motion.longest_reset_gap_s, 4),
                "peak_velocity": round(motion.peak_velocity, 4),
                "peak_acceleration": round(motion.peak_acceleration, 4),
                "limits": {"velocity": 2.0, "acceleration": 10.0},
            },
            "interventions": dict(self.interventions),
            "executor_said": dict(self.executor_said.most_common(20)),
            "said": dict(self.said.most_common(30)),
            "watchdog": {
                "tripped_after_s": self.watchdog_tripped_s,
                "recovered_after_s": self.watchdog_recovered_s,
            },
            "faults": self.faults(warm_s),
        }

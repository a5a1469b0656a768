"""What a soak of backend switches has seen, and whether it is good enough. No ROS, no clock."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from thor_policy_ros.ros.soak_memory import GpuMemory

SETTLING_S = 2.0
"""After an episode's end the robot is reset: gaps are its own."""
GROWTH_LIMIT = 0.05
SET_CALL_LIMIT_MS = 50.0
COMMAND_GAP_LIMIT_S = 0.5
"""Between two commands as they arrive; the listener's own delays are in it."""
MISSED_TICKS_LIMIT = 0.01
"""Share of the executor's control ticks, above the share before the first switch."""


@dataclass
class SoakRecord:
    """Times in seconds on one clock; RSS in bytes, one value a switch.

    verified: backend -> when its first good verification was reported. ticks: (when, control
    ticks so far) as the executor counts them; ticks_before: before the first switch.
    """

    verified: dict[str, float] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)
    unverified_chunks: int = 0
    hold_s: list[float] = field(default_factory=list)
    command_gaps_s: list[float] = field(default_factory=list)
    commands: int = 0
    set_calls_ms: list[float] = field(default_factory=list)
    switch_s: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    gpu: GpuMemory = field(default_factory=GpuMemory)
    ticks_before: list[tuple[float, int]] = field(default_factory=list)
    ticks: list[tuple[float, int]] = field(default_factory=list)
    control_rate_hz: float = 100.0
    failures: list[str] = field(default_factory=list)
    _chunk_ends_s: float | None = None
    _command_at_s: float | None = None
    _episode_at_s: float = -np.inf

    def add_chunk(self, backend: str, now_s: float, ends_at_s: float) -> None:
        """ends_at_s: time of the chunk's last command, after which the executor holds."""
        self.chunks[backend] = self.chunks.get(backend, 0) + 1
        if not self.verified.get(backend, np.inf) <= now_s:
            self.unverified_chunks += 1
        if self._chunk_ends_s is not None and not self._settling(now_s):
            self.hold_s.append(max(0.0, now_s - self._chunk_ends_s))
        self._chunk_ends_s = ends_at_s

    def add_command(self, now_s: float) -> None:
        self.commands += 1
        if self._command_at_s is not None and not self._settling(now_s):
            self.command_gaps_s.append(now_s - self._command_at_s)
        self._command_at_s = now_s

    def episode_ended(self, now_s: float) -> None:
        self._episode_at_s = now_s

    @property
    def set_call_p99_ms(self) -> float:
        return float(np.percentile(self.set_calls_ms, 99)) if self.set_calls_ms else 0.0

    @property
    def growth(self) -> float:
        """Of the RSS, from the second fifth of the switches (all engines seen) to the last."""
        fifth = max(len(self.rss) // 5, 1)
        early, late = self.rss[fifth : 2 * fifth], self.rss[-fifth:]
        return median(late) / median(early) - 1.0 if early and late else 0.0

    def missed_share(self, ticks: list[tuple[float, int]]) -> float:
        """Of the control ticks that were due, where the count went on (not in a new process)."""
        pairs = [(one, two) for one, two in itertools.pairwise(ticks) if two[1] > one[1]]
        came = sum(two[1] - one[1] for one, two in pairs)
        due = sum(two[0] - one[0] for one, two in pairs) * self.control_rate_hz
        return 1.0 - came / due if due else 0.0

    def faults(self, long_hold_s: float) -> list[str]:
        """What is not good enough; long_hold_s: the hold that is allowed for."""
        limits: list[tuple[bool, str]] = [
            (bool(self.failures), f"switches failed: {self.failures}"),
            (bool(self.unverified_chunks), f"{self.unverified_chunks} chunks were not verified"),
            (
                max(self.hold_s, default=0.0) > long_hold_s,
                f"the executor held for {max(self.hold_s, default=0.0):.2f} s",
            ),
            (
                max(self.command_gaps_s, default=0.0) > COMMAND_GAP_LIMIT_S,
                f"no command for {max(self.command_gaps_s, default=0.0):.3f} s",
            ),
            (
                self.missed_share(self.ticks) - self.missed_share(self.ticks_before)
                > MISSED_TICKS_LIMIT,
                f"the executor missed {self.missed_share(self.ticks):.1%} of its ticks",
            ),
            (self.growth > GROWTH_LIMIT, f"memory grew by {self.growth:.1%}"),
            (
                self.set_call_p99_ms > SET_CALL_LIMIT_MS,
                f"a set call took {self.set_call_p99_ms:.0f} ms (p99)",
            ),
        ]
        return [text for wrong, text in limits if wrong] + self.gpu.faults()

    def summary(self) -> dict[str, Any]:
        return {
            "switches": len(self.switch_s),
            "chunks": dict(sorted(self.chunks.items())),
            "unverified_chunks": self.unverified_chunks,
            "failures": self.failures,
            "hold_s": {"max": max(self.hold_s, default=0.0), "count": sum(map(bool, self.hold_s))},
            "commands": self.commands,
            "command_gap_ms": quantiles([gap * 1e3 for gap in self.command_gaps_s]),
            "executor_ticks_missed": {
                "before_switching": round(self.missed_share(self.ticks_before), 4),
                "while_switching": round(self.missed_share(self.ticks), 4),
            },
            "set_call_ms": quantiles(self.set_calls_ms),
            "switch_s": quantiles(self.switch_s),
            "rss_mb": {
                "first": _mb(self.rss[:1]),
                "last": _mb(self.rss[-1:]),
                "max": _mb([max(self.rss, default=0)]),
                "growth": round(self.growth, 4),
            },
            "gpu_mb": self.gpu.summary(),
        }

    def _settling(self, now_s: float) -> bool:
        return now_s - self._episode_at_s < SETTLING_S


def quantiles(values: Sequence[float]) -> Mapping[str, float]:
    """p50, p95, p99 and max; empty for no values."""
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    found = {"p50": p50, "p95": p95, "p99": p99, "max": max(values)}
    return {name: round(float(value), 4) for name, value in found.items()}


def _mb(values: list[int]) -> float:
    return round(values[0] / 1e6, 1) if values else 0.0

"""What a robot did and what its operator saw around one fault. Pure arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

GAP_S = 0.045
"""A pause of the commands this long, around a reset, is another motion."""
ROUNDING = 1.01


@dataclass
class FaultResult:
    """One row of the table. Times in s after the fault began (or ended: recovered_s)."""

    name: str
    group: str
    peak_velocity: float = 0.0
    peak_acceleration: float = 0.0
    moved: float = 0.0
    saw: str = ""
    saw_s: float | None = None
    recovered_s: float | None = None
    commands: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class CommandLog:
    """Commands as they came: time of arrival, f64[A]. breaks: when a reset was about."""

    times_s: list[float] = field(default_factory=list)
    positions: list[Any] = field(default_factory=list)
    breaks_s: list[float] = field(default_factory=list)

    def add(self, now_s: float, positions: Any) -> None:
        self.times_s.append(now_s)
        self.positions.append(np.array(positions, np.float64))

    def clear(self) -> None:
        self.times_s, self.positions, self.breaks_s = [], [], self.breaks_s[-3:]

    def motions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Uninterrupted motions as times f64[N] and positions f64[N,A]."""
        times = np.array(self.times_s)
        if len(times) < 2:
            return []
        cuts = [
            k + 1
            for k in np.flatnonzero(np.diff(times) > GAP_S)
            if any(-0.5 < times[k + 1] - at < 6.0 for at in self.breaks_s)
        ]
        path = np.array(self.positions)
        return [
            (t, p)
            for t, p in zip(np.split(times, cuts), np.split(path, cuts), strict=True)
            if len(t) > 2
        ]


def judge(
    log: CommandLog,
    fault_s: float,
    end_s: float,
    dt_s: float,
    velocity: np.ndarray,
    acceleration: np.ndarray,
) -> tuple[float, float, float, list[str]]:
    """Peak velocity and acceleration and the distance moved, of the limited joints, and why the
    commands were not in order.

    Every command is one tick of `dt_s`; where one was lost on the way, the two steps count as two.
    """
    limited = np.isfinite(velocity)
    speed_peak = change_peak = moved = 0.0
    failures: list[str] = []
    if any(not np.isfinite(p).all() for p in log.positions):
        failures.append("a command is not finite")
    for times, path in log.motions():
        steps = np.diff(path[:, limited], axis=0)
        ticks = np.maximum(1, np.round(np.diff(times) / dt_s))[:, None]
        speed = np.abs(steps) / dt_s
        lost = speed > velocity[limited] * ROUNDING
        speeds = np.where(lost, steps / (ticks * dt_s), steps / dt_s)
        change = np.abs(np.diff(speeds, axis=0)) / dt_s
        whole = ~(lost[1:] | lost[:-1])
        speed_peak = max(speed_peak, float(np.abs(speeds).max()))
        change_peak = max(change_peak, float(np.where(whole, change, 0.0).max()))
        inside = (times[1:] >= fault_s) & (times[1:] <= end_s)
        moved = max(moved, float(np.abs(steps[inside]).sum(0).max(initial=0.0)))
        if (np.abs(speeds) > velocity[limited] * ROUNDING).any():
            failures.append(f"velocity {np.abs(speeds).max():.3f} exceeds its limit")
        if (np.where(whole, change, 0.0) > acceleration[limited] * ROUNDING + 0.01).any():
            failures.append(f"acceleration {change_peak:.2f} exceeds its limit")
    return speed_peak, change_peak, moved, failures


def without_numbers(message: str) -> str:
    """The message without its numbers, which change every time."""
    return re.sub(r"[0-9.]+", "#", message)


HEADER = (
    "| fault | peak velocity | peak acceleration | moved during it | the operator saw | after | "
    "recovered in |\n|---|---|---|---|---|---|---|\n"
)


def table(results: list[dict[str, Any]], not_run: Mapping[str, str] | None = None) -> str:
    """A run as markdown. not_run: by name, why a fault was left out."""
    rows = []
    for found in results:
        saw_s, recovered_s = found["saw_s"], found["recovered_s"]
        saw = found["saw"].replace("|", "/").replace("\n", " ")
        cells = (
            found["name"].replace("_", " "),
            f"{found['peak_velocity']:.2f} rad/s",
            f"{found['peak_acceleration']:.1f} rad/s²",
            f"{found['moved']:.2f} rad",
            (saw[:140] + "…" if len(saw) > 140 else saw) or "nothing",
            "" if saw_s is None else f"{saw_s:.1f} s",
            "not" if recovered_s is None else f"{recovered_s:.1f} s",
        )
        rows.append("| " + " | ".join(cells) + " |")
    for name, reason in (not_run or {}).items():
        rows.append(f"| {name.replace('_', ' ')} | | | | not run: {reason} | | |")
    return HEADER + "\n".join(rows) + "\n"

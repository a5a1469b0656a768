"""What a robot did and what its operator saw around one fault. Pure arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SAME = 1e-6
"""A step that differs by less from the velocity that the executor says is that step, rad."""
SILENT_S = 0.5
"""After so long without a command the next one begins a motion: a process that was started anew
begins at rest where the one before was killed."""
DISORDER_S = 0.5
"""Word of a break may be earlier than the commands before it, by the clock of arrival."""
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
    """Commands as `~/commanded_state` says them: when, f64[A] positions, f64[A] velocities of the
    steps that lead there. breaks: when the robot was moved by something else; each may begin one
    new motion elsewhere, from `settled_s` after it at the latest.
    """

    times_s: list[float] = field(default_factory=list)
    positions: list[Any] = field(default_factory=list)
    velocities: list[Any] = field(default_factory=list)
    breaks_s: list[float] = field(default_factory=list)
    settled_s: float = 6.0

    def add(self, now_s: float, positions: Any, velocities: Any) -> None:
        self.times_s.append(now_s)
        self.positions.append(np.array(positions, np.float64))
        self.velocities.append(np.array(velocities, np.float64))

    def clear(self) -> None:
        self.times_s, self.positions, self.velocities = [], [], []
        self.breaks_s = self.breaks_s[-3:]

    def split(self, end: int) -> CommandLog:
        """Takes the first `end` out; the last of them stays too, for the step that follows: one
        change of velocity in a whole part is not judged.
        """
        taken = CommandLog(
            self.times_s[:end], self.positions[:end], self.velocities[:end], self.breaks_s,
            self.settled_s,
        )  # fmt: skip
        kept = max(0, end - 1)
        del self.times_s[:kept], self.positions[:kept], self.velocities[:kept]
        return taken

    def take_break(self, begin_s: float, end_s: float) -> bool:
        """Whether a motion that ended at `begin_s` may go on elsewhere at `end_s`."""
        for at_s in self.breaks_s:
            if begin_s - self.settled_s < at_s < end_s + DISORDER_S:
                self.breaks_s.remove(at_s)
                return True
        return False


@dataclass
class Judgement:
    """Peaks and distance of the limited joints, gaps between commands in s, motions begun anew,
    commands that were lost on the way here, and what was not in order."""

    peak_velocity: float = 0.0
    peak_acceleration: float = 0.0
    moved: float = 0.0
    longest_gap_s: float = 0.0
    longest_reset_gap_s: float = 0.0
    begun_anew: int = 0
    lost: int = 0
    failures: list[str] = field(default_factory=list)


def judge(
    log: CommandLog,
    fault_s: float,
    end_s: float,
    dt_s: float,
    velocity: np.ndarray,
    acceleration: np.ndarray,
) -> Judgement:
    """velocity, acceleration: f64[A], inf for a joint that follows directly.

    Every command is one tick of `dt_s` whenever it came, so a step is judged by itself: where it
    is the velocity that the executor says, it is one tick; where not, the robot was moved by
    something else meanwhile, or commands were lost on the way here.
    """
    found = Judgement()
    if any(not np.isfinite(p).all() for p in log.positions):
        found.failures.append("a command is not finite")
    if len(log.times_s) < 2:
        return found
    limited = np.isfinite(velocity)
    fastest, hardest = velocity[limited] * ROUNDING, acceleration[limited] * ROUNDING + 0.01
    times = np.array(log.times_s)
    gaps = np.diff(times)
    steps = np.diff(np.array(log.positions)[:, limited], axis=0)
    said = np.array(log.velocities)[1:, limited]
    same = np.all(np.abs(steps - said * dt_s) <= SAME, axis=1)
    joined: np.ndarray = same & (gaps < SILENT_S)
    anew = np.zeros(len(steps), bool)
    for k in np.flatnonzero(~joined):
        if log.take_break(times[k], times[k + 1]):
            anew[k] = True
            continue
        ticks = max(1, round(gaps[k] / dt_s))
        found.lost += ticks - 1
        if ticks == 1 or (np.abs(steps[k]) > fastest * ticks * dt_s).any():
            leap = np.abs(steps[k]).max()
            found.failures.append(f"a leap of {leap:.3f} rad in {gaps[k]:.3f} s")
    speeds = np.where(joined[:, None], steps / dt_s, 0.0)
    changes = np.abs(np.diff(speeds, axis=0)) / dt_s
    changes[~(joined[1:] & joined[:-1])] = 0.0
    found.begun_anew = int(anew.sum())
    found.longest_gap_s = float(gaps[~anew].max(initial=0.0))
    found.longest_reset_gap_s = float(gaps[anew].max(initial=0.0))
    found.peak_velocity = float(np.abs(speeds).max(initial=0.0))
    found.peak_acceleration = float(changes.max(initial=0.0))
    inside = (times[1:] >= fault_s) & (times[1:] <= end_s) & ~anew
    found.moved = float(np.abs(steps[inside]).sum(0).max(initial=0.0))
    if (np.abs(speeds) > fastest).any():
        found.failures.append(f"velocity {found.peak_velocity:.3f} exceeds its limit")
    if (changes > hardest).any():
        found.failures.append(f"acceleration {found.peak_acceleration:.2f} exceeds its limit")
    return found


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

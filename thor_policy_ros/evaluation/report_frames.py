"""What the frames of a recording say: latencies, misses, decisions over time. Arithmetic only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from thor_policy_ros.evaluation.bag import RecordedFrame

STAGES = ("preprocess", "vision", "prefill", "denoise", "postprocess", "total")
KINDS = ("refill", "reuse", "pipelined", "continue", "hold", "refused")
COMPUTED = ("refill", "reuse", "pipelined", "refused")
"""Kinds of frames in which the policy computed something; the others wanted no chunk."""
WIDTHS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
WINDOWS = 60
Floats = npt.NDArray[np.float64]


def kind_of(decision: str) -> str:
    """'refill' of 'refill: age (5 steps)'."""
    return decision.partition(":")[0].partition(" (")[0]


@dataclass(frozen=True)
class Change:
    """at_s: since the recording began."""

    at_s: float
    text: str


@dataclass(frozen=True)
class Frames:
    """rows: in the order of time, with their latencies. start_s, duration_s: of the recording."""

    rows: Sequence[RecordedFrame]
    start_s: float
    duration_s: float

    @cached_property
    def times_s(self) -> Floats:
        """f64[N], since the recording began."""
        return np.array([row.at_s - self.start_s for row in self.rows], np.float64)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind_of(row.decision) for row in self.rows)

    @cached_property
    def computed(self) -> npt.NDArray[np.bool_]:
        """bool[N]: the policy ran, and its latencies are known."""
        flags = [k in COMPUTED and bool(r.latency) for k, r in zip(self.kinds, self.rows)]  # noqa: B905
        return np.array(flags, bool)

    @property
    def chunks(self) -> int:
        return sum(kind in COMPUTED[:-1] for kind in self.kinds)

    @property
    def refused(self) -> int:
        return self.kinds.count("refused")

    def figure(self, name: str) -> Floats:
        """f64[N] of a field of FrameLatency, NaN where the bag has none."""
        values = [float(row.latency.get(name, np.nan)) for row in self.rows]
        return np.array(values, np.float64)

    def stage_ms(self, stage: str) -> Floats:
        """Of the computed frames; where vision or prefill did not run, it is left out."""
        values = self.figure(f"{stage}_ms")[self.computed]
        return values[values > 0] if stage in ("vision", "prefill", "denoise") else values

    @property
    def deadline_ms(self) -> float:
        """The last one that was in force; NaN where the bag has none."""
        known = self.figure("deadline_ms")
        known = known[np.isfinite(known)]
        return float(known[-1]) if len(known) else float("nan")

    @property
    def deadline_misses(self) -> int:
        return int(np.nansum(self.figure("deadline_missed")[self.computed]))

    @property
    def miss_ratio(self) -> float:
        return self.deadline_misses / max(int(self.computed.sum()), 1)

    @cached_property
    def new_missed_ticks(self) -> Floats:
        """f64[N]: control ticks without a frame before each one; the node's counter begins anew
        at every reset."""
        return _increments(self.figure("missed_ticks"))

    @cached_property
    def new_drops(self) -> Floats:
        """f64[N]: camera frames that a newer one replaced unread, before each frame."""
        return _increments(self.figure("dropped_frames"))

    @property
    def window_s(self) -> float:
        """Of the figures over time: WINDOWS of them at most, in round seconds."""
        fitting = (width for width in WIDTHS_S if self.duration_s <= width * WINDOWS)
        return next(fitting, self.duration_s / WINDOWS)

    @cached_property
    def starts_s(self) -> Floats:
        count = max(1, int(np.ceil(self.duration_s / self.window_s)))
        return np.arange(count, dtype=np.float64) * self.window_s

    def by_window(self, flags: npt.NDArray[np.bool_] | Floats) -> Floats:
        """Sum in every window of one number a frame."""
        found = np.zeros(len(self.starts_s))
        np.add.at(found, self._windows, np.nan_to_num(np.asarray(flags, np.float64)))
        return found

    def percentile_by_window(self, values: Floats, percent: float) -> Floats:
        """Of the computed frames of every window; NaN where there are none."""
        found = np.full(len(self.starts_s), np.nan)
        for window in np.unique(self._windows[self.computed]):
            inside = values[self.computed & (self._windows == window)]
            found[window] = np.nanpercentile(inside, percent)
        return found

    @property
    def _windows(self) -> npt.NDArray[np.int_]:
        return np.clip((self.times_s / self.window_s).astype(int), 0, len(self.starts_s) - 1)

    def reasons(self) -> Counter[str]:
        """How often each decision was taken, in its own words without numbers of a case."""
        return Counter(row.decision.partition(" (")[0] for row in self.rows)

    def backend_changes(self) -> list[Change]:
        """The backend of the first frame, and every one that took over."""
        found: list[Change] = []
        for at_s, row in zip(self.times_s, self.rows, strict=True):
            name = str(row.latency.get("backend", ""))
            if name and (not found or found[-1].text != name):
                found.append(Change(float(at_s), name))
        return found

    def longest_silence(self) -> tuple[float, float]:
        """Begin and length, in s, of the longest time without a frame that gave a chunk, or that
        wanted none."""
        served = [t for t, kind in zip(self.times_s, self.kinds, strict=True) if kind != "refused"]
        edges = np.array([0.0, *served, self.duration_s])
        gaps = np.diff(edges)
        longest = int(np.argmax(gaps))
        return float(edges[longest]), max(float(gaps[longest]), 0.0)


def _increments(counter: Floats) -> Floats:
    """Of a counter that may begin anew; what it stood at when the recording began is not counted.

    NaN (no news) counts nothing.
    """
    found, last = np.zeros(len(counter)), np.nan
    for k, value in enumerate(counter):
        if np.isnan(value):
            continue
        if not np.isnan(last):
            found[k] = value - last if value >= last else value
        last = value
    return found

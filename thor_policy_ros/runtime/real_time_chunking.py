"""Real-time chunking: what will already have been executed when the next chunk takes over.

While a chunk is inferred the robot goes on with the ones before. Rows of the new chunk whose time
is past when it takes over must repeat them, and the rows after should go on from there: the
denoising is guided that way (`types.Guidance`).

Nothing is guessed of the delay: it is the longest of those last measured, from the begin of an
inference to the executor's first command from its chunk, or to its publication as long as no
executor has answered. All times are those of the caller's clock.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from thor_policy_ros.runtime.trajectory import F64, Trajectory
from thor_policy_ros.types import F32, ActionChunk

SCHEDULES = ("exp", "linear", "ones", "zeros")
"""How the weight falls from the rows that will have been executed to the execution horizon."""
MODES = ("guided", "trained")
"""guided: the flow is pulled there. trained: the rows are given to a checkpoint trained for it."""
DELAYS_KEPT = 8
CHUNKS_KEPT = 16
LONGEST_DELAY_S = 10.0  # beyond it a clock has jumped
ROUNDING_S = 1e-6


@dataclass(frozen=True)
class ChunkingRules:
    """What may change between two frames.

    enabled: off, every chunk is inferred as if it were the first.
    execution_horizon: rows of a chunk, from its observation's time, up to which it is pulled
    towards the one before; the rows that will have been executed are, however many they are.
    max_weight: see `Guidance`. mode: one of MODES. schedule: one of SCHEDULES.
    """

    enabled: bool = False
    execution_horizon: int = 3
    max_weight: float = 1.0
    schedule: str = "exp"
    mode: str = "guided"

    def __post_init__(self) -> None:
        for name, choices in (("schedule", SCHEDULES), ("mode", MODES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"unknown rtc {name} {getattr(self, name)!r}; choose one of: "
                    + ", ".join(choices)
                )
        if self.execution_horizon < 0:
            raise ValueError(
                f"rtc wants an execution horizon of 0 rows or more, got {self.execution_horizon}"
            )
        if not (math.isfinite(self.max_weight) and self.max_weight >= 0):
            raise ValueError(f"rtc wants a finite max_weight >= 0, got {self.max_weight}")


@dataclass(frozen=True)
class Continuation:
    """What a new chunk is to continue.

    actions: f32[H,A], robot units, on the rows of the new chunk. weights: f32[H] in [0,1].
    known_rows: leading rows that will have been executed. delay_s: that they come from.
    """

    actions: F32
    weights: F32
    known_rows: int
    delay_s: float


@dataclass(frozen=True)
class ChunkingFacts:
    """For diagnostics. delay_s: None before the first measurement. source: 'executor',
    'published' as long as no executor has answered, or ''. chunks: followed by the executor.
    """

    delay_s: float | None
    source: str
    chunks: int


@dataclass(frozen=True)
class _Sent:
    """taken_up_s: when the executor first commanded from it; None until it says so."""

    sequence: int
    path: Trajectory
    prompt: str
    began_s: float
    taken_up_s: float | None = None


@dataclass
class _Delays:
    """Measured last, in s. Publication counts until the executor answers."""

    executor: deque[float] = field(default_factory=lambda: deque(maxlen=DELAYS_KEPT))
    published: deque[float] = field(default_factory=lambda: deque(maxlen=DELAYS_KEPT))
    taken_up: int = 0

    def longest(self) -> tuple[float | None, str]:
        """The delay to count with, and who measured it."""
        if self.executor:
            return max(self.executor), "executor"
        if self.published:
            return max(self.published), "published"
        return None, ""


class RealTimeChunking:
    """Knows the chunks that were sent and when each was taken up. May be called by any thread.

    `rules` may be replaced at any time. One object serves a robot for good: backends and
    checkpoints may change meanwhile, what the robot executes does not.
    """

    def __init__(self, rules: ChunkingRules = ChunkingRules()) -> None:
        self.rules = rules
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """The robot stands still, or was moved by something else."""
        with self._lock:
            self._sent: deque[_Sent] = deque(maxlen=CHUNKS_KEPT)
            self._delays = _Delays()

    @property
    def facts(self) -> ChunkingFacts:
        with self._lock:
            return ChunkingFacts(*self._delays.longest(), self._delays.taken_up)

    def sent(
        self, sequence: int, chunk: ActionChunk, prompt: str, began_s: float, now_s: float
    ) -> None:
        """`chunk` was published at `now_s`; its inference began at `began_s`."""
        with self._lock:
            self._sent.append(_Sent(sequence, _path(chunk), prompt, began_s))
            _note(self._delays.published, now_s - began_s)

    def taken_up(self, sequence: int, now_s: float) -> None:
        """The executor's first command from that chunk was at `now_s`."""
        with self._lock:
            for place, sent in enumerate(self._sent):
                if sent.sequence == sequence and sent.taken_up_s is None:
                    self._sent[place] = replace(sent, taken_up_s=now_s)
                    self._delays.taken_up += 1
                    _note(self._delays.executor, now_s - sent.began_s)

    def refused(self, sequence: int) -> None:
        """The executor will never command from that chunk."""
        with self._lock:
            kept = [sent for sent in self._sent if sent.sequence != sequence]
            self._sent = deque(kept, maxlen=CHUNKS_KEPT)

    def continuation(
        self, rows: int, dt_s: float, observed_at_s: float, now_s: float, prompt: str
    ) -> Continuation | None:
        """What a chunk inferred from now on is to continue; None where nothing is known.

        rows, dt_s, observed_at_s: of the new chunk, with the time of the observation that its
        prefix was made from. A chunk that follows other words is free after the rows that will
        have been executed.
        """
        with self._lock:
            delay_s, _ = self._delays.longest()
            sent = [s for s in self._sent if s.began_s <= now_s]
        if not sent or delay_s is None:
            return None
        takes_up_s = now_s + delay_s
        times = observed_at_s + np.arange(rows, dtype=np.float64) * dt_s
        known = math.floor((takes_up_s - observed_at_s + ROUNDING_S) / dt_s) + 1
        known = min(max(known, 0), rows)
        schedule = self.rules.schedule if sent[-1].prompt == prompt else "zeros"
        weights = prefix_weights(known, self.rules.execution_horizon, rows, schedule)
        actions, covered = _executed(sent, times, delay_s)
        covered[:known] |= times[:known] >= sent[0].path.starts_at_s
        weights[~covered] = 0.0
        if not weights.any():
            return None
        return Continuation(actions.astype(np.float32), weights, known, delay_s)


def _note(delays: deque[float], delay_s: float) -> None:
    if 0.0 <= delay_s <= LONGEST_DELAY_S:
        delays.append(delay_s)


def prefix_weights(known: int, horizon: int, rows: int, schedule: str) -> F32:
    """f32[rows]: 1 for the `known` leading rows, falling to 0 at row `horizon`.

    'exp' falls as c (e^c - 1)/(e - 1) with c from 1 to 0 in even steps (Black et al. 2025).
    """
    row = np.arange(rows)
    end = max(horizon, known)
    fall = np.clip((end - row) / (end - known + 1), 0.0, 1.0)
    if schedule == "exp":
        fall = fall * np.expm1(fall) / math.expm1(1.0)
    elif schedule in ("ones", "zeros"):
        fall = np.where((row < end) & (schedule == "ones"), 1.0, 0.0)
    return np.where(row < known, 1.0, fall).astype(np.float32)


def _executed(sent: list[_Sent], times: F64, delay_s: float) -> tuple[F64, npt.NDArray[np.bool_]]:
    """f64[H,A]: the command at each time, by the chunk that will be in charge then; and whether
    that chunk reaches so far."""
    taken_up = [s.began_s + delay_s if s.taken_up_s is None else s.taken_up_s for s in sent]
    actions, covered = [], []
    for time_s in times.tolist():
        due = [s for s, at_s in zip(sent, taken_up, strict=True) if at_s <= time_s + ROUNDING_S]
        path = (due[-1] if due else sent[0]).path
        actions.append(path.at(time_s))
        covered.append(path.starts_at_s <= time_s <= path.ends_at_s + ROUNDING_S)
    return np.stack(actions), np.array(covered)


def _path(chunk: ActionChunk) -> Trajectory:
    rows = chunk.actions.astype(np.float64)
    return Trajectory(rows, chunk.observed_at_s, chunk.dt_s, chunk.ends_at_s)

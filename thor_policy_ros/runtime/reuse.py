"""Whether this tick's prefix may be the one already computed: a pure decision.

Ticks are counted by the caller and include those that an overrun missed, so that a slow frame
cannot stretch a prefix's age.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

MODES = ("fixed", "adaptive", "deadline", "continue")
MAX_LATE_TICKS = 3
"""How old a pipelined prefix may be, as for the longest reuse: a policy slower than its ticks
still overlaps, but a prefix from before a pause does not serve."""
ADAPTIVE_THRESHOLD = 0.01
"""What counts as an image change in mode 'adaptive' where no threshold is set: four times the
noise of a camera; on the demo's table, objects that move by about 1.5 cm."""


@dataclass(frozen=True)
class ReuseRules:
    """What the operator allows; may change between two frames. How often is in the backend's
    spec: `reuse_every`.

    mode: 'fixed' reuses between refills; 'adaptive' does too, but refills as soon as an image
    changes; 'deadline' chooses what meets `deadline_ms`; 'continue' computes nothing between
    refills, since the chunk in hand goes on.
    max_age_ms: of a prefix that is used again, 0 for no bound. refresh_threshold: image change
    that forces a refill, share of full scale, 0 for none. refresh_on_state: refill when the
    state's tokens in the prompt change. deadline_ms: from tick to chunk. min_steps: fewest
    denoise steps that 'deadline' may choose.
    """

    mode: str = "fixed"
    max_age_ms: float = 0.0
    refresh_threshold: float = 0.0
    refresh_on_state: bool = True
    deadline_ms: float = math.inf
    min_steps: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown reuse mode {self.mode!r}; choose one of: {', '.join(MODES)}")
        if not (self.max_age_ms >= 0 and self.refresh_threshold >= 0):
            raise ValueError(
                "reuse wants max_age_ms and refresh_threshold of at least 0, got"
                f" {self.max_age_ms} and {self.refresh_threshold}"
            )
        if not (self.deadline_ms > 0 and self.min_steps >= 1):
            raise ValueError(
                "reuse wants a positive deadline_ms and at least 1 min_steps, got"
                f" {self.deadline_ms} and {self.min_steps}"
            )

    @property
    def threshold(self) -> float:
        """Of image change, 0 where images are not compared."""
        if self.mode == "adaptive":
            return self.refresh_threshold or ADAPTIVE_THRESHOLD
        return self.refresh_threshold


@dataclass(frozen=True)
class PrefixKey:
    """What a prefix was made from, besides the pixels: a change of any makes it useless.

    tokens: the prompt tokens as bytes where they hold the robot's state, else b''.
    policy: checkpoint and engine.
    """

    prompt: str
    cameras: frozenset[str]
    tokens: bytes = b""
    policy: str = ""


@dataclass(frozen=True)
class HeldPrefix:
    """The prefix computed last: its key, its tick and the time of its observation."""

    key: PrefixKey
    tick: int
    observed_at_s: float


@dataclass(frozen=True)
class Gone:
    """There is no prefix to use again, because of `reason`."""

    reason: str = "no prefix"


@dataclass(frozen=True)
class Moment:
    """The observation at hand. now_s: the present, on the clock of `observed_at_s`."""

    key: PrefixKey
    tick: int
    observed_at_s: float
    now_s: float


@dataclass(frozen=True)
class Refill:
    """Compute a new prefix, because of `reason`."""

    reason: str


@dataclass(frozen=True)
class Reuse:
    """Use the held prefix, which is `age_ticks` old."""

    age_ticks: int


@dataclass(frozen=True)
class Late:
    """Use the held prefix, `age_ticks` old, while the one of this tick is being computed."""

    age_ticks: int


def decide(
    held: HeldPrefix | Gone,
    moment: Moment,
    reuse_every: int,
    max_age_ms: float = 0.0,
    changed: Collection[str] = (),
) -> Refill | Reuse:
    """Refill on every `reuse_every`-th tick and on any change; reuse in between.

    max_age_ms: of a prefix used again, 0 for no bound. changed: cameras whose picture is not
    the one in the prefix any more. A time that is not known counts as too old.
    """
    if reuse_every < 1:
        raise ValueError(f"reuse_every wants 1 (no reuse) or more ticks, got {reuse_every}")
    if isinstance(held, Gone):
        return Refill(held.reason)
    change = _change(held, moment)
    if change:
        return Refill(change)
    age_ticks = moment.tick - held.tick
    if age_ticks >= reuse_every or reuse_every == 1:
        return Refill("age")
    if 0 < max_age_ms < (moment.now_s - held.observed_at_s) * 1e3:
        return Refill("age in ms")
    if changed:
        return Refill("image changed: " + ", ".join(sorted(changed)))
    return Reuse(age_ticks)


def decide_pipelined(held: HeldPrefix | Gone, moment: Moment) -> Refill | Late:
    """Whether the prefix launched last may serve this tick, or its own must be waited for.

    The key is without tokens. A changed prompt or camera shows in this very chunk: nothing is
    late but the pixels, and the state where the prompt holds it.
    """
    if isinstance(held, Gone):
        return Refill(held.reason)
    change = _change(held, moment)
    if change:
        return Refill(change)
    age_ticks = moment.tick - held.tick
    return Late(age_ticks) if age_ticks <= MAX_LATE_TICKS else Refill("age")


def _change(held: HeldPrefix, moment: Moment) -> str:
    key = moment.key
    if key.policy != held.key.policy:
        return "policy changed"
    if key.prompt != held.key.prompt:
        return "prompt changed"
    if key.cameras != held.key.cameras:
        return "cameras changed"
    if key.tokens != held.key.tokens:
        return "state changed"
    times = (moment.now_s, moment.observed_at_s, held.observed_at_s)
    if not all(math.isfinite(time_s) for time_s in times):
        return "time unknown"
    if moment.tick < held.tick or moment.observed_at_s < held.observed_at_s:
        return "time went back"
    return ""

"""Whether this tick's prefix may be the one already computed: a pure decision.

Ticks are counted by the caller and include those that an overrun missed, so that a slow frame
cannot stretch a prefix's age.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_LATE_TICKS = 3
"""How old a pipelined prefix may be, as for the longest reuse: a policy slower than its ticks
still overlaps, but a prefix from before a pause does not serve."""


@dataclass(frozen=True)
class PrefixKey:
    """What a prefix was made from, besides the pixels: a change of any makes it useless.

    tokens: the prompt tokens as bytes where they hold the robot's state, else b''.
    """

    prompt: str
    cameras: frozenset[str]
    tokens: bytes = b""


@dataclass(frozen=True)
class HeldPrefix:
    """The prefix computed last: its key, its tick and the time of its observation."""

    key: PrefixKey
    tick: int
    observed_at_s: float


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
    held: HeldPrefix | None,
    key: PrefixKey,
    tick: int,
    observed_at_s: float,
    reuse_every: int,
) -> Refill | Reuse:
    """Refill on every `reuse_every`-th tick and on any change; reuse in between.

    tick, key, observed_at_s: of the observation at hand.
    """
    if reuse_every < 1:
        raise ValueError(f"reuse_every wants 1 (no reuse) or more ticks, got {reuse_every}")
    if held is None:
        return Refill("no prefix")
    change = _change(held, key, tick, observed_at_s)
    if change:
        return Refill(change)
    age_ticks = tick - held.tick
    if age_ticks >= reuse_every or reuse_every == 1:
        return Refill("age")
    return Reuse(age_ticks)


def decide_pipelined(
    held: HeldPrefix | None, key: PrefixKey, tick: int, observed_at_s: float
) -> Refill | Late:
    """Whether the prefix launched last may serve this tick, or its own must be waited for.

    key: without tokens. A changed prompt or camera shows in this very chunk: nothing is late
    but the pixels, and the state where the prompt holds it.
    """
    if held is None:
        return Refill("no prefix")
    change = _change(held, key, tick, observed_at_s)
    if change:
        return Refill(change)
    age_ticks = tick - held.tick
    return Late(age_ticks) if age_ticks <= MAX_LATE_TICKS else Refill("age")


def _change(held: HeldPrefix, key: PrefixKey, tick: int, observed_at_s: float) -> str:
    if key.prompt != held.key.prompt:
        return "prompt changed"
    if key.cameras != held.key.cameras:
        return "cameras changed"
    if key.tokens != held.key.tokens:
        return "state changed"
    if tick < held.tick or observed_at_s < held.observed_at_s:
        return "time went back"
    return ""

"""What a tick is worth when time is short: the best frame that is expected to be in time.

Pure: costs come from frames measured before (`frame_costs`), and the same inputs give the same
plan. From best to least: the full frame, the full frame with fewer denoise steps, the prefix
used again, no frame while the chunk in hand goes on, no frame while the robot holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from thor_policy_ros.runtime.reuse import Refill, Reuse

MAX_SKIPPED_TICKS = 2
"""After so many ticks without a frame one is computed, however late: a late chunk is joined
where it should be by then, and only a frame shows that they have become faster."""
WAITING_REASONS = ("age", "age in ms")
"""Refills that may wait for a tick; what any other is for shows in the very next chunk."""


@dataclass(frozen=True)
class Costs:
    """Expected ms of the parts of a frame; 0 where nothing was measured yet.

    rest: transforms, checks and launches, in every frame. prefix: vision and prefill.
    step: one denoise step.
    """

    rest_ms: float = 0.0
    prefix_ms: float = 0.0
    step_ms: float = 0.0

    def frame_ms(self, num_steps: int, refill: bool) -> float:
        return self.rest_ms + num_steps * self.step_ms + (self.prefix_ms if refill else 0.0)


@dataclass(frozen=True)
class Frame:
    """Infer, as `decision` says, with `num_steps`. late: it is not expected to be in time."""

    decision: Refill | Reuse
    num_steps: int
    late: bool = False


@dataclass(frozen=True)
class NoFrame:
    """Infer nothing. kind: 'continue' the chunk in hand, or 'hold' since it ends."""

    kind: str


@dataclass(frozen=True)
class Situation:
    """What the choice depends on, besides costs and the reuse decision.

    budget_ms: time left of the deadline. chunk_left_ms: that the chunk in hand still runs;
    must_cover_ms: that it has to for the robot to move on without a frame.
    skipped_ticks: since the last frame, missed ones too.
    """

    budget_ms: float
    chunk_left_ms: float
    must_cover_ms: float
    skipped_ticks: int


def choose(
    decision: Refill | Reuse, costs: Costs, situation: Situation, num_steps: int, min_steps: int
) -> Frame | NoFrame:
    """The best that meets the deadline, by the order above.

    decision: a Reuse may be refilled instead, a Refill may not be reused. A refill that must
    not wait, or has waited MAX_SKIPPED_TICKS, is computed with the fewest steps even if late.
    """
    why = decision.reason if isinstance(decision, Refill) else "in time"
    counts = step_counts(num_steps, min_steps)
    for count in counts:
        if costs.frame_ms(count, refill=True) <= situation.budget_ms:
            return Frame(Refill(why), count)
    if isinstance(decision, Reuse):
        for count in counts:
            if costs.frame_ms(count, refill=False) <= situation.budget_ms:
                return Frame(decision, count)
    waits = isinstance(decision, Reuse) or why in WAITING_REASONS
    if not waits or situation.skipped_ticks >= MAX_SKIPPED_TICKS:
        return Frame(Refill("overdue" if waits else why), counts[-1], late=True)
    return no_frame(situation)


def no_frame(situation: Situation) -> NoFrame:
    """Which name it has that nothing is inferred now."""
    covered = situation.chunk_left_ms >= situation.must_cover_ms
    return NoFrame("continue" if covered else "hold")


def step_counts(num_steps: int, min_steps: int) -> list[int]:
    """From the wanted count down by halves to the least: few, since an engine may prepare
    something for each. A least above the wanted count means the wanted one."""
    least = min(min_steps, num_steps)
    counts = [num_steps]
    while counts[-1] > least:
        counts.append(max(least, -(-counts[-1] // 2)))
    return counts

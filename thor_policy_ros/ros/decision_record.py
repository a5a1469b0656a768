"""What was decided about the prefix, frame by frame, for diagnostics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from thor_policy_ros.ros.diagnostics import STALE, WARN, Report
from thor_policy_ros.runtime.deadline import Costs
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.reuse import ReuseRules
from thor_policy_ros.types import StepResult

KINDS = ("refill", "reuse", "pipelined", "continue", "hold")


@dataclass
class DecisionRecord:
    """Since activation or the last reset. One thread adds; `copy` for any other.

    kinds: how often each kind of decision was taken. last, last_refill: in words.
    image_changes: by camera slot, share of full scale. costs: of a frame's parts.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    last: str = ""
    last_refill: str = ""
    image_changes: dict[str, float] = field(default_factory=dict)
    costs: Costs = Costs()  # noqa: RUF009 (frozen)

    def add(self, result: StepResult, runner: PolicyRunner) -> None:
        """One step; one that could not be made decided nothing."""
        if not result.decision:
            return
        kind = kind_of(result.decision)
        self.kinds[kind] += 1
        self.last = result.decision
        if kind == "refill":
            self.last_refill = result.decision.partition(": ")[2]
        self.image_changes = runner.image_changes
        self.costs = runner.costs

    def copy(self) -> DecisionRecord:
        return DecisionRecord(
            Counter(self.kinds), self.last, self.last_refill, dict(self.image_changes), self.costs
        )


def kind_of(decision: str) -> str:
    """'refill' of 'refill: age (5 steps)'."""
    return decision.partition(":")[0].partition(" (")[0]


def reuse_report(
    record: DecisionRecord | None, rules: ReuseRules, reuse_every: int, num_steps: int
) -> Report:
    """record: None while not active. reuse_every: as it is in force."""
    report = Report("reuse", fine=_in_words(rules, reuse_every))
    if record is None:
        report.note(STALE, "not active")
        return report
    if reuse_every == 1 and rules.mode == "adaptive":
        report.note(WARN, "reuse_mode adaptive does nothing while kv_reuse_freq is 1")
    report.values = {
        "mode": rules.mode,
        "reuse_every": reuse_every,
        "last_decision": record.last,
        "last_refill": record.last_refill,
        **{f"{kind}_frames": record.kinds[kind] for kind in KINDS},
        **{f"image_change_{slot}": change for slot, change in record.image_changes.items()},
        "expected_full_ms": record.costs.frame_ms(num_steps, refill=True),
        "expected_reuse_ms": record.costs.frame_ms(num_steps, refill=False),
    }
    return report


def _in_words(rules: ReuseRules, reuse_every: int) -> str:
    if reuse_every == 1:
        return f"{rules.mode}: refills every tick"
    return f"{rules.mode}: refills at least every {reuse_every} ticks"

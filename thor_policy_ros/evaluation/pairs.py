"""Two players of the same scenes: what only one of them solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from thor_policy_ros.evaluation.intervals import mcnemar_exact


class Scored(Protocol):
    """One scene that was played: `seed` says which."""

    @property
    def seed(self) -> int: ...

    @property
    def success(self) -> bool: ...


def pairs(records: Mapping[str, Sequence[Scored]], first: str, second: str) -> dict[str, Any]:
    """Scenes that only one of them solved. ValueError unless both played the same scenes.

    probability: of a split at least as uneven, were both equally good.
    """
    ours, theirs = records[first], records[second]
    if [r.seed for r in ours] != [r.seed for r in theirs]:
        raise ValueError(f"{first} and {second} were not played on the same scenes")
    both = list(zip(ours, theirs, strict=True))
    only_first = sum(a.success and not b.success for a, b in both)
    only_second = sum(b.success and not a.success for a, b in both)
    return {
        "first": first,
        "second": second,
        "scenes": len(both),
        "solved_by_both": sum(a.success and b.success for a, b in both),
        "only_by_first": only_first,
        "only_by_second": only_second,
        "probability": round(mcnemar_exact(only_first, only_second), 5),
        "rate_difference": round((only_second - only_first) / len(both), 4) if both else 0.0,
    }

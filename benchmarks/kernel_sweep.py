"""Better tiles by measurement: one field at a time, from what sizes suggest, in limited time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Tiles = TypeVar("Tiles")

PRODUCT_AXES: Mapping[str, Sequence[int]] = {
    "splits": (1, 2, 4),
    "block_n": (8, 16, 32, 64),
    "warps": (2, 4, 8),
    "block_k": (32, 64, 128, 256),
    "stages": (2, 3, 4, 5, 6),
}
ATTENTION_AXES: Mapping[str, Sequence[int]] = {
    "value_parts": (1, 2, 4),
    "block_m": (64, 128),
    "block_n": (32, 64, 128),
    "warps": (4, 8),
    "stages": (1, 2, 3),
}
SUFFIX_AXES: Mapping[str, Sequence[int]] = {
    "splits": (4, 8, 9, 16),
    "value_parts": (1, 2, 4),
    "block_n": (32, 64, 128),
    "warps": (2, 4, 8),
    "stages": (1, 2),
}


def axes_of(name: str) -> Mapping[str, Sequence[int]]:
    """Of the operation `name`, as in kernel_cases."""
    if name == "suffix_attention":
        return SUFFIX_AXES
    return ATTENTION_AXES if "attention" in name else PRODUCT_AXES


@dataclass
class Descent:
    """What was tried, in order: tiles as a dict, with their time or why there is none."""

    best: dict[str, int]
    best_ms: float
    tried: list[dict[str, Any]] = field(default_factory=list)
    ran_out_of_time: bool = False


def descend(
    start: Any,
    axes: Mapping[str, Sequence[int]],
    time_ms: Callable[[Any], float],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Descent:
    """Try every value of one field while the others stay at the best so far, until nothing gains.

    time_ms: of one candidate; what it raises is recorded and the candidate skipped (a tile that
    does not fit, say), but for `start`.
    """
    end = clock() + seconds
    first = dataclasses.asdict(start)
    found = Descent(first, time_ms(start))
    found.tried.append({**first, "ms": found.best_ms})
    seen = {tuple(first.values())}
    improved = True
    while improved:
        improved = False
        for name, values in axes.items():
            for value in values:
                candidate = {**found.best, name: value}
                if tuple(candidate.values()) in seen:
                    continue
                if clock() > end:
                    found.ran_out_of_time = True
                    return found
                seen.add(tuple(candidate.values()))
                improved |= _try(type(start), candidate, time_ms, found)
    return found


def _try(
    kind: Callable[..., Any],
    candidate: dict[str, int],
    time_ms: Callable[[Any], float],
    found: Descent,
) -> bool:
    try:
        taken = time_ms(kind(**candidate))
    except Exception as error:  # noqa: BLE001 - a candidate that does not run is a result
        found.tried.append({**candidate, "error": f"{type(error).__name__}: {str(error)[:120]}"})
        return False
    found.tried.append({**candidate, "ms": taken})
    if taken >= found.best_ms:
        return False
    found.best, found.best_ms = candidate, taken
    return True

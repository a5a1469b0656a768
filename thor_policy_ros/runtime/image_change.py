"""How much a camera's picture differs from the one that a prefix was made from.

Pictures are compared small and grey: block means on a grid of GRID x GRID, so that sensor noise
averages out. Two figures, as shares of full scale: the mean over the picture, which a moving
camera raises, and the mean over the worst of TILES x TILES tiles, which a small object raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import F32, U8

Ints = npt.NDArray[np.int_]

GRID = 32
TILES = 4
WORST_TILE_FACTOR = 2.0
"""The worst tile may differ by so many times what the whole picture may: it is smaller, so its
noise is larger, and a small object shows in it alone."""
HYSTERESIS = 0.5
"""A picture that changed counts as still again below this share of the threshold."""
_SAMPLES = 128  # pixels a side that are looked at; more cost time and change nothing


@dataclass(frozen=True)
class Change:
    """mean, worst_tile: in [0,1], shares of full scale."""

    mean: float
    worst_tile: float

    @property
    def score(self) -> float:
        """What is compared with the threshold."""
        return max(self.mean, self.worst_tile / WORST_TILE_FACTOR)


def small(image: U8) -> F32:
    """u8[H,W,3] -> f32[GRID,GRID] in [0,1]: grey block means."""
    step = max(1, min(image.shape[:2]) // _SAMPLES)
    seen = image[::step, ::step]
    grey = (seen[..., 0].astype(np.float32) + seen[..., 1] + seen[..., 2]) / np.float32(3 * 255)
    rows, columns = (np.arange(GRID) * size // GRID for size in grey.shape)
    blocks = np.add.reduceat(np.add.reduceat(grey, rows, 0), columns, 1)
    counts = np.outer(_lengths(rows, grey.shape[0]), _lengths(columns, grey.shape[1]))
    return (blocks / counts).astype(np.float32)


def change_between(one: F32, other: F32) -> Change:
    """Of two `small` pictures."""
    difference = np.abs(one - other)
    side = GRID // TILES
    tiles = difference.reshape(TILES, side, TILES, side).mean((1, 3))
    return Change(float(difference.mean()), float(tiles.max()))


def exceeds(score: float, threshold: float, changed_before: bool) -> bool:
    """Whether a picture counts as changed, with hysteresis; never for a threshold of 0 (off)."""
    if threshold <= 0:
        return False
    return score > threshold * (HYSTERESIS if changed_before else 1.0)


class ChangeWatch:
    """What each camera showed when it was encoded last, and what counts as changed since."""

    def __init__(self) -> None:
        self._encoded: dict[str, F32] = {}
        self._now: dict[str, F32] = {}
        self._changed: frozenset[str] = frozenset()
        self.scores: dict[str, float] = {}

    def forget(self) -> None:
        self._encoded.clear()
        self._changed = frozenset()
        self.scores = {}

    def look(
        self, images: Mapping[str, U8], threshold: float, growth: float = 1.0
    ) -> frozenset[str]:
        """The cameras that changed since they were encoded, or were not encoded at all.

        growth: how much farther the difference will have grown when it matters.
        """
        self._now = {slot: small(image) for slot, image in images.items()}
        self.scores = {
            slot: change_between(self._encoded[slot], now).score
            for slot, now in self._now.items()
            if slot in self._encoded
        }
        moved = {
            slot
            for slot, score in self.scores.items()
            if exceeds(score * growth, threshold, slot in self._changed)
        }
        self._changed = frozenset(moved)
        return frozenset(moved | (set(images) - set(self._encoded)))

    def encoded(self, slots: Iterable[str]) -> None:
        """These cameras' pictures of the last `look` were encoded."""
        for slot in slots:
            if slot in self._now:
                self._encoded[slot] = self._now[slot]


def _lengths(starts: Ints, size: int) -> Ints:
    return np.maximum(np.diff(np.append(starts, size)), 1)

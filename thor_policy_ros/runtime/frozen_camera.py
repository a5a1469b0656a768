"""Whether a camera's pictures change, or one comes again and again with new stamps.

The noise of a sensor changes some pixel of every picture; a driver that hangs, a decoder that
repeats its last buffer or a stalled network player sends the very same. So does a simulator that
looks at a still scene, and a sensor in the dark.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import U8

SAMPLES = 64
"""Pixels a side that are looked at first, of one colour: between two pictures of a sensor some of
them differ."""
BANDS = 7
"""Only where all those are equal is more compared: a band of the picture, another one each time.
So the cost is bounded, and a difference that lasts is found within so many pictures. A prime, so
that of pictures which come in turns not always the same one meets a band."""
THAWED_AFTER = 5
"""Pictures that differ, one after another, before a frozen camera counts as alive again."""


def sample(image: U8) -> bytes:
    """u8[H,W,3] -> one colour of a grid of pixels."""
    rows, columns = (max(1, size // SAMPLES) for size in image.shape[:2])
    seen: npt.NDArray[np.uint8] = image[::rows, ::columns, 1]
    return seen.tobytes()


class FrozenWatch:
    """Follows one camera; the caller sees to it that one thread at a time does.

    frozen: the same picture came for too long, and no lasting change since.
    """

    def __init__(self) -> None:
        self.frozen = False
        self._picture: U8 | None = None  # the first of those that are the same
        self._sample = b""
        self._since_s = self._newest_s = math.nan
        self._repeats = self._changes = 0

    @property
    def same_s(self) -> float:
        """For how long the newest picture has been coming, by its stamps; NaN before the first."""
        return self._newest_s - self._since_s

    @property
    def words(self) -> str:
        """What to say of it while it is frozen."""
        if self._changes:
            return "frozen until just now; its pictures change again"
        return f"frozen, the same picture for {self.same_s:.1f} s with new stamps; see its driver"

    def add(self, image: U8, sampled: bytes, stamp_s: float, after_s: float) -> None:
        """A new picture, kept until another one comes, and its `sample`. after_s: for how long
        the same one may come, above 0."""
        if self._is_same(image, sampled):
            self._repeats += 1
            self._changes = 0
        else:
            self._picture, self._sample, self._since_s = image, sampled, stamp_s
            self._repeats = 0
            self._changes += 1
        self._newest_s = stamp_s
        if self._repeats >= BANDS and self.same_s >= after_s:
            self.frozen = True
        elif self._changes >= THAWED_AFTER:
            self.frozen = False

    def _is_same(self, image: U8, sampled: bytes) -> bool:
        held = self._picture
        if held is None or held.shape != image.shape or sampled != self._sample:
            return False
        rows = -(-len(image) // BANDS)
        begin = self._repeats % BANDS * rows
        band = slice(begin, begin + rows)
        return bool(np.array_equal(image[band], held[band]))

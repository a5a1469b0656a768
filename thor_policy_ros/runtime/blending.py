"""How a new chunk joins the motion under way: four ways behind one name.

Whatever the way, a chunk is placed by its observation's time, so its rows that are already in
the past are never executed, and the limits of the joints are kept by the executor after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thor_policy_ros.runtime.trajectory import Preview, Reference, Trajectory

BLENDINGS = ("latest", "crossfade", "temporal_ensemble", "rtc")
"""latest: switch at once. crossfade: fade over. temporal_ensemble: fade over to the mean of all
chunks that cover the present. rtc: the policy has already made the chunk continue the one before
it; what is left between them is faded over."""

MOST_ROWS = 1e6  # between two chunks; keeps a dt of next to nothing from becoming inf


class Joining:
    """Makes of each new chunk's trajectory the reference to follow. One thread owns it.

    blending: one of BLENDINGS; may change from chunk to chunk.
    ensemble_decay: of temporal_ensemble; a chunk counts e^-decay for every row that it was
    observed before the newest. 0 is the plain mean.
    """

    def __init__(self, blending: str = "crossfade", ensemble_decay: float = 0.5) -> None:
        self.set(blending, ensemble_decay)
        self._members: list[Trajectory] = []

    def set(self, blending: str, ensemble_decay: float) -> None:
        """ValueError for what is not a way to blend."""
        if blending not in BLENDINGS:
            raise ValueError(
                f"unknown chunk_blending {blending!r}; choose one of: {', '.join(BLENDINGS)}"
            )
        if not (math.isfinite(ensemble_decay) and ensemble_decay >= 0):
            raise ValueError(f"ensemble_decay wants at least 0, got {ensemble_decay}")
        self.blending, self.ensemble_decay = blending, ensemble_decay

    def forget(self) -> None:
        """The chunks before belong to another motion."""
        self._members.clear()

    def join(
        self, trajectory: Trajectory, now_s: float, crossfade_s: float
    ) -> tuple[Reference, float]:
        """What to follow from `now_s` on, and the time in s to fade over to it."""
        self._members = [m for m in self._members if m.ends_at_s > now_s] + [trajectory]
        if self.blending == "latest":
            return trajectory, 0.0
        if self.blending == "temporal_ensemble" and len(self._members) > 1:
            return Mean(tuple(self._members), self.ensemble_decay), crossfade_s
        return trajectory, crossfade_s


@dataclass(frozen=True)
class Mean:
    """The weighted mean of trajectories, the newest last; it ends with the newest.

    An older member's weight fades to 0 over its last row, so that none leaves with a jump.
    """

    members: tuple[Trajectory, ...]
    decay: float

    @property
    def ends_at_s(self) -> float:
        return self.members[-1].ends_at_s

    def preview(self, time_s: float) -> Preview:
        """The mean at `time_s`, and the range from then on: that of the members."""
        time_s = min(time_s, self.ends_at_s)
        weighted = [(self._weight(m, time_s), m) for m in self.members]
        previews = [(w, m.preview(time_s)) for w, m in weighted if w > 0.0]
        total = sum(w for w, _ in previews)
        at = sum((w / total) * p.at for w, p in previews)
        assert isinstance(at, np.ndarray)
        if time_s >= self.ends_at_s:
            return Preview(at, at, at)
        low = np.minimum.reduce([p.low for _, p in previews])
        high = np.maximum.reduce([p.high for _, p in previews])
        return Preview(at, np.minimum(low, at), np.maximum(high, at))

    def _weight(self, member: Trajectory, time_s: float) -> float:
        newest = self.members[-1]
        if member is newest:
            return 1.0
        older_rows = (newest.starts_at_s - member.starts_at_s) / newest.dt_s
        older_rows = min(max(older_rows, 0.0), MOST_ROWS)
        left = min(max((member.ends_at_s - time_s) / member.dt_s, 0.0), 1.0)
        return left * math.exp(-self.decay * older_rows)

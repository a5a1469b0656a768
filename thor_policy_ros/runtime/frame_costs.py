"""What the parts of a frame cost lately, for choosing frames that meet a deadline."""

from __future__ import annotations

from thor_policy_ros.runtime.deadline import Costs
from thor_policy_ros.runtime.latency import LatencyWindow
from thor_policy_ros.types import FrameTiming

WINDOW_FRAMES = 40
WARM_UP_FRAMES = 3
"""Frames that do not count, of each step count, with and without a refill: kernels are chosen,
graphs captured and memory taken in them."""


class FrameCosts:
    """95 % quantiles of the recent past: of 40 frames the two slowest do not count."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Another engine: everything is measured again."""
        self._window = LatencyWindow(WINDOW_FRAMES)
        self._seen: dict[tuple[int, bool], int] = {}

    def add(self, timing: FrameTiming, num_steps: int, refilled: bool) -> None:
        """One frame that was computed."""
        kind = (num_steps, refilled)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= WARM_UP_FRAMES:
            return
        prefix_ms = timing.vision_ms + timing.prefill_ms
        parts = {
            "rest": max(timing.total_ms - prefix_ms - timing.denoise_ms, 0.0),
            "step": timing.denoise_ms / num_steps,
        }
        if refilled:
            parts["prefix"] = prefix_ms
        self._window.add(parts)

    def costs(self) -> Costs:
        found = {name: quantiles.p95 for name, quantiles in self._window.quantiles().items()}
        return Costs(found.get("rest", 0.0), found.get("prefix", 0.0), found.get("step", 0.0))

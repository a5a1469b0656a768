"""Jumps of the clock of stamps, seen against a clock that never jumps. Pure; no clock is read."""

from __future__ import annotations

JUMP_S = 0.1
"""A larger difference is no discipline of a clock and no hiccup of a simulator."""
FASTEST_SIMULATION = 25.0
"""Simulated seconds per second that are still no jump."""


class JumpWatch:
    """Compares how far two clocks went since the last look.

    simulated: the stamps' clock is a simulator's, which may go slower or stand still, and
    faster by up to FASTEST_SIMULATION; otherwise both go alike.
    """

    def __init__(self, simulated: bool) -> None:
        self._fastest = FASTEST_SIMULATION if simulated else 1.0
        self._slowest = 0.0 if simulated else 1.0
        self._seen: tuple[float, float] | None = None

    def jumped_s(self, now_s: float, steady_s: float) -> float:
        """By how much the stamps' clock jumped since the last look; 0 where it did not.

        now_s: of the stamps' clock. steady_s: of the one that never jumps.
        """
        last, self._seen = self._seen, (now_s, steady_s)
        if last is None:
            return 0.0
        went_s, steadily_s = now_s - last[0], max(steady_s - last[1], 0.0)
        ahead_s = went_s - self._fastest * steadily_s
        behind_s = went_s - self._slowest * steadily_s
        if ahead_s > JUMP_S:
            return ahead_s
        return behind_s if behind_s < -JUMP_S else 0.0

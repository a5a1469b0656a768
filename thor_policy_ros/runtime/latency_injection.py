"""Latency that is added on purpose, to see what it does. Never for a robot at work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DISTRIBUTIONS = ("constant", "uniform", "normal", "exponential")
LONGEST_MS = 10_000.0


@dataclass(frozen=True)
class InjectedLatency:
    """How long to wait, drawn anew each time.

    mean_ms: on average, without spikes. distribution: 'constant', 'uniform' (from 0 to twice the
    mean), 'normal' (a quarter of the mean is the deviation, never below 0) or 'exponential'.
    spike_ms: added on top with probability `spike_ratio`.
    """

    mean_ms: float = 0.0
    distribution: str = "constant"
    spike_ms: float = 0.0
    spike_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"unknown latency distribution {self.distribution!r}; choose one of: "
                + ", ".join(DISTRIBUTIONS)
            )
        for name in ("mean_ms", "spike_ms"):
            if not 0.0 <= getattr(self, name) <= LONGEST_MS:
                raise ValueError(
                    f"injected latency wants {name} from 0 to {LONGEST_MS:g}, "
                    f"got {getattr(self, name)}"
                )
        if not 0.0 <= self.spike_ratio <= 1.0:
            raise ValueError(f"injected latency wants spike_ratio in [0,1], got {self.spike_ratio}")

    @property
    def active(self) -> bool:
        return self.mean_ms > 0.0 or (self.spike_ms > 0.0 and self.spike_ratio > 0.0)

    def __str__(self) -> str:
        """In words, for diagnostics."""
        said = f"{self.mean_ms:g} ms, {self.distribution}"
        if self.spike_ms > 0.0 and self.spike_ratio > 0.0:
            said += f", and {self.spike_ms:g} ms more in {self.spike_ratio:.1%} of the cases"
        return said

    def draw_s(self, random: np.random.Generator) -> float:
        """Seconds to wait this time, at least 0."""
        spike = self.spike_ms if random.random() < self.spike_ratio else 0.0
        return (max(self._ordinary_ms(random), 0.0) + spike) * 1e-3

    def _ordinary_ms(self, random: np.random.Generator) -> float:
        mean = self.mean_ms
        if self.distribution == "uniform":
            return float(random.uniform(0.0, 2.0 * mean))
        if self.distribution == "normal":
            return float(random.normal(mean, mean / 4.0))
        if self.distribution == "exponential":
            return min(float(random.exponential(mean)), LONGEST_MS) if mean > 0 else 0.0
        return mean

"""What `make demo` has seen so far: episodes, stage latencies, chunk rate. No ROS, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

STAGES = ("wait", "preprocess", "vision", "prefill", "denoise", "postprocess", "publish", "total")
CHUNK_RATE_WINDOW_S = 5.0


@dataclass(frozen=True)
class Episode:
    """One finished episode of the simulated robot; `duration_s` is simulated time."""

    index: int
    instruction: str
    outcome: str
    success: bool
    duration_s: float


@dataclass
class DemoProgress:
    """Collects the events of one demo run; every method takes plain values."""

    wanted_episodes: int
    episodes: list[Episode] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    observation_to_chunk_ms: list[float] = field(default_factory=list)
    deadline_misses: int = 0
    missed_ticks: int = 0
    instruction: str = ""
    _chunk_times: deque[float] = field(default_factory=deque)

    @property
    def solved(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of the wanted episodes that were solved: one that never ended counts against it."""
        return self.solved / self.wanted_episodes

    @property
    def finished(self) -> bool:
        return len(self.episodes) >= self.wanted_episodes

    @property
    def frames(self) -> int:
        return len(self.stages_ms["total"])

    def add_episode(self, episode: Episode) -> None:
        """A repeated message (same index) counts once."""
        if all(seen.index != episode.index for seen in self.episodes) and not self.finished:
            self.episodes.append(episode)

    def add_frame(
        self, stages_ms: Mapping[str, float], *, deadline_missed: bool, missed_ticks: int
    ) -> None:
        for stage in STAGES:
            self.stages_ms[stage].append(float(stages_ms[stage]))
        self.deadline_misses += deadline_missed
        self.missed_ticks = max(self.missed_ticks, missed_ticks)

    def add_chunk(self, received_s: float, observed_at_age_ms: float) -> None:
        """received_s: monotonic; observed_at_age_ms: from the oldest input to the arrival here."""
        self._chunk_times.append(received_s)
        self.observation_to_chunk_ms.append(observed_at_age_ms)

    def chunk_rate_hz(self, now_s: float) -> float:
        """Chunks per second over the last `CHUNK_RATE_WINDOW_S`."""
        while self._chunk_times and now_s - self._chunk_times[0] > CHUNK_RATE_WINDOW_S:
            self._chunk_times.popleft()
        if len(self._chunk_times) < 2:
            return 0.0
        span = self._chunk_times[-1] - self._chunk_times[0]
        return (len(self._chunk_times) - 1) / span if span > 0 else 0.0

    def stage_quantiles_ms(self, stage: str) -> tuple[float, float, float]:
        """p50, p95, p99 of a stage; NaN before the first frame."""
        return quantiles(self.stages_ms[stage])

    def summary(self) -> dict[str, object]:
        """The figures of the run as JSON keeps them."""
        latency = {
            stage: dict(zip(("p50", "p95", "p99"), self.stage_quantiles_ms(stage), strict=True))
            for stage in STAGES
        }
        latency["observation_to_chunk"] = dict(
            zip(("p50", "p95", "p99"), quantiles(self.observation_to_chunk_ms), strict=True)
        )
        return {
            "episodes": len(self.episodes),
            "wanted_episodes": self.wanted_episodes,
            "solved": self.solved,
            "success_rate": self.success_rate,
            "frames": self.frames,
            "deadline_misses": self.deadline_misses,
            "missed_ticks": self.missed_ticks,
            "latency_ms": latency,
            "outcomes": [
                {
                    "episode": e.index,
                    "instruction": e.instruction,
                    "outcome": e.outcome,
                    "duration_s": round(e.duration_s, 2),
                }
                for e in self.episodes
            ],
        }


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """p50, p95, p99 by linear interpolation; NaN for no values."""
    if not values:
        return (float("nan"),) * 3
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return float(p50), float(p95), float(p99)

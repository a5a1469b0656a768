"""What the simulated robot did, kept as poses: a few kB an episode, pictures are made later."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode: what `TabletopArm.reset` was given, and poses at a fixed rate.

    poses: f64[T,nq], as `TabletopArm.pose` gives them, `frame_dt_s` of simulated time apart.
    """

    seed: int
    speed_m_s: float
    instruction: str
    outcome: str
    frame_dt_s: float
    poses: F64


@dataclass
class Recorder:
    """Collects poses while episodes run and writes each finished episode to its own file."""

    folder: Path
    frame_dt_s: float = 0.05
    _poses: list[F64] = field(default_factory=list)
    _finished: int = 0

    def add_pose(self, pose: F64, time_s: float) -> None:
        """Keep the pose when a frame is due. time_s: simulated time since the episode began."""
        if time_s >= len(self._poses) * self.frame_dt_s - 1e-9:
            self._poses.append(pose.copy())

    def finish(self, seed: int, speed_m_s: float, instruction: str, outcome: str) -> Path:
        """Write the episode and begin the next. Returns the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"episode_{self._finished:03d}.npz"
        np.savez_compressed(
            path,
            seed=seed,
            speed_m_s=speed_m_s,
            instruction=instruction,
            outcome=outcome,
            frame_dt_s=self.frame_dt_s,
            poses=np.array(self._poses),
        )
        self._poses, self._finished = [], self._finished + 1
        return path


def load_episode(path: Path) -> RecordedEpisode:
    """Read one file of a `Recorder`."""
    with np.load(path, allow_pickle=False) as data:
        return RecordedEpisode(
            seed=int(data["seed"]),
            speed_m_s=float(data["speed_m_s"]),
            instruction=str(data["instruction"]),
            outcome=str(data["outcome"]),
            frame_dt_s=float(data["frame_dt_s"]),
            poses=data["poses"],
        )

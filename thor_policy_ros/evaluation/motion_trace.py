"""How smooth a motion was: the jerk of its commands, and how its chunks joined."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from thor_policy_ros.runtime.trajectory import Trajectory
from thor_policy_ros.types import ActionChunk

F64 = npt.NDArray[np.float64]


class MotionTrace:
    """The commands of one episode, and the jump at each new chunk.

    control_dt_s: time from one command to the next. joints: columns that count; leave out
    those that may jump, as a suction valve.
    """

    def __init__(self, control_dt_s: float, joints: npt.NDArray[np.bool_]) -> None:
        self._dt = control_dt_s
        self._joints = joints
        self._commands: list[F64] = []
        self._jumps: list[float] = []
        self._newest: ActionChunk | None = None

    def command(self, positions: F64) -> None:
        """The command of this control tick, f64[A], robot units."""
        self._commands.append(np.asarray(positions, np.float64)[self._joints])

    def joined(self, chunk: ActionChunk, now_s: float) -> None:
        """`chunk` is followed from now on. The jump: how far it is, at this time, from the one
        before, in the joint where that is most."""
        if self._newest is not None and now_s < self._newest.ends_at_s:
            step = position_at(chunk, now_s) - position_at(self._newest, now_s)
            self._jumps.append(float(np.abs(step[self._joints]).max()))
        self._newest = chunk

    @property
    def jumps(self) -> F64:
        """f64[n]: of every chunk that followed one still running, robot units."""
        return np.array(self._jumps, np.float64)

    @property
    def jerk(self) -> F64:
        """f64[n,J]: third difference of the commands, robot units per s^3; empty for n < 1."""
        commands = np.array(self._commands, np.float64).reshape(-1, int(self._joints.sum()))
        return np.diff(commands, 3, axis=0) / self._dt**3

    def sums(self) -> Mapping[str, float]:
        """What adds up over episodes: `pooled` makes figures of it."""
        jerk, jumps = self.jerk, self.jumps
        return {
            "motion_s": len(self._commands) * self._dt,
            "jerk_squared": float((jerk**2).sum()),
            "jerk_values": float(jerk.size),
            "jump_sum": float(jumps.sum()),
            "jumps": float(len(jumps)),
            "jump_worst": float(jumps.max(initial=0.0)),
        }


def pooled(episodes: list[Mapping[str, float]]) -> dict[str, float]:
    """Figures over episodes, of their `sums`: RMS jerk, mean and worst jump, seconds."""

    def total(name: str) -> float:
        return sum(episode[name] for episode in episodes)

    return {
        "motion_s": total("motion_s"),
        "jerk_rms": (total("jerk_squared") / max(total("jerk_values"), 1.0)) ** 0.5,
        "jump_mean": total("jump_sum") / max(total("jumps"), 1.0),
        "jump_worst": max((episode["jump_worst"] for episode in episodes), default=0.0),
    }


def position_at(chunk: ActionChunk, time_s: float) -> F64:
    """f64[A]: the command of `chunk` for that time, as the executor reads it."""
    rows = chunk.actions.astype(np.float64)
    return Trajectory(rows, chunk.observed_at_s, chunk.dt_s, chunk.ends_at_s).preview(time_s).at

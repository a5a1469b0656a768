"""Driving a ChunkExecutor of one joint by hand, tick by tick."""

from __future__ import annotations

import numpy as np
from support.motion import joint_limits

from thor_policy_ros.runtime.executor import ChunkExecutor, Command
from thor_policy_ros.types import ActionChunk, JointLimits

DT_S = 0.01
FREE = joint_limits(-np.inf, np.inf, np.inf, np.inf)
NORMAL = joint_limits(-2.0, 2.0, 1.0, 10.0)


def chunk(rows: list[float] | np.ndarray, observed_at_s: float, dt_s: float = 0.1) -> ActionChunk:
    """A chunk of one joint from a list, or of more from [H,A]."""
    actions = np.asarray(rows, np.float32)
    return ActionChunk(actions.reshape(len(actions), -1), dt_s, observed_at_s)


def executor(limits: JointLimits = FREE, start: float = 0.0, **times: float) -> ChunkExecutor:
    """An executor of the joint 'a', measured at `start` at time 0."""
    made = ChunkExecutor(("a",), limits, DT_S, **{"crossfade_s": 0.0, **times})
    assert made.set_measured([start], 0.0) == ""
    return made


def follow(ex: ChunkExecutor, from_s: float, until_s: float) -> list[Command]:
    """The commands of every tick from `from_s` up to `until_s`, both included."""
    ticks = round((until_s - from_s) / DT_S) + 1
    return [ex.command(from_s + k * DT_S) for k in range(ticks)]


def position(command: Command) -> float:
    assert command.positions is not None
    return float(command.positions[0])

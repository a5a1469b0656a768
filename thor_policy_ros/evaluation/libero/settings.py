"""How episodes are played, as openpi's evaluation plays them, and what is written of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from thor_policy_ros.types import F32

MAX_STEPS: dict[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
    # Not a benchmark: what a simulator's environment without LIBERO's meshes can play.
    "robosuite_lift": 220,
    "robosuite_pick_place": 220,
}
"""Steps that a policy has by suite, without the settling ones."""

TRIALS = 50
SEED = 7
SETTLING_STEPS = 10
SETTLING_ACTION = (0.0,) * 6 + (-1.0,)
REPLAN = 5

SUCCESS, FAILURE = "success", "failure"
REFUSED, LOST = "refused", "simulator_lost"


@dataclass(frozen=True)
class Settings:
    """Of one evaluation; its results are only continued with the same ones.

    max_steps: after the settling ones; replan: actions executed of each chunk; num_steps:
    denoise steps.
    """

    suite: str
    max_steps: int
    seed: int = SEED
    replan: int = REPLAN
    num_steps: int = 10
    settling_steps: int = SETTLING_STEPS

    def __post_init__(self) -> None:
        if self.suite not in MAX_STEPS:
            raise ValueError(f"unknown suite {self.suite!r}; choose one of: {', '.join(MAX_STEPS)}")
        for name, least in (("max_steps", 1), ("replan", 1), ("num_steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} wants at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, order=True)
class Episode:
    """One beginning of one task, played by one backend."""

    backend: str
    task: int
    trial: int

    @property
    def name(self) -> str:
        return f"{self.backend} task {self.task} trial {self.trial}"


@dataclass(frozen=True)
class EpisodeRecord:
    """How one episode went.

    outcome: SUCCESS, FAILURE, REFUSED (the policy gave no usable chunk: a failure too) or LOST
    (the simulator crashed or hung: neither). steps: with the settling ones. actions: digest of
    what was executed, f32. infer_ms: of each chunk; batch: the most that shared one pass.
    reason: of REFUSED and LOST.
    """

    backend: str
    task: int
    trial: int
    outcome: str
    steps: int = 0
    actions: str = ""
    infer_ms: tuple[float, ...] = ()
    batch: int = 1
    seconds: float = 0.0
    reason: str = ""

    @property
    def episode(self) -> Episode:
        return Episode(self.backend, self.task, self.trial)

    @property
    def success(self) -> bool:
        return self.outcome == SUCCESS

    @property
    def played(self) -> bool:
        return self.outcome != LOST

    @property
    def seed(self) -> int:
        """The scene, whichever backend plays it."""
        return self.task * 100_000 + self.trial


@dataclass(frozen=True)
class Played:
    """A record, and JPEGs of what the base camera saw where they are wanted."""

    record: EpisodeRecord
    film: tuple[bytes, ...] = field(default=(), repr=False)


def record_to_json(record: EpisodeRecord) -> dict[str, Any]:
    return {**asdict(record), "infer_ms": list(record.infer_ms)}


def record_from_json(found: Mapping[str, Any]) -> EpisodeRecord:
    """ValueError for anything but what `record_to_json` gives."""
    try:
        record = EpisodeRecord(**{**found, "infer_ms": tuple(found["infer_ms"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"wanted an episode's record, got {sorted(found)}") from error
    if record.outcome not in (SUCCESS, FAILURE, REFUSED, LOST):
        raise ValueError(f"unknown outcome {record.outcome!r}")
    return record


def all_episodes(backend: str, tasks: Sequence[int], trials: int) -> list[Episode]:
    return [Episode(backend, task, trial) for task in tasks for trial in range(trials)]


def episode_noise(settings: Settings, episode: Episode, chunk: int, shape: tuple[int, int]) -> F32:
    """f32[H,32] of one chunk: follows from seed, suite, task, trial and its number, so that every
    backend gets the same and no order of playing matters."""
    text = f"{settings.seed}/{settings.suite}/{episode.task}/{episode.trial}/{chunk}".encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

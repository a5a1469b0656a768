"""Episodes on a Ray cluster: an actor for each policy, several simulators beside it.

An actor that dies (its process, its node) is replaced, and its episodes are played again from the
beginning: nothing of them was written, and each follows from its seed alone. Ray moves Python
objects between its processes by pickling: keep its ports within a network that you trust.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import thor_policy_ros
from thor_policy_ros.evaluation.libero.crew import Finished
from thor_policy_ros.evaluation.libero.settings import Episode, Played
from thor_policy_ros.evaluation.libero.station import Plan, SharedPolicy, stations_of

REPLACED_IN_A_ROW = 5
"""Actors replaced without an episode played between them, after which the evaluation stops."""


class ActorsLostError(RuntimeError):
    """Actors die as fast as they are made; the message says how."""


class PolicyActor:
    """One policy and its simulators, in a process of Ray's."""

    def __init__(self, plan: Plan, label: str) -> None:
        self._plan = plan
        self._stations = stations_of(plan, label)
        self._loading = threading.Lock()
        self._policy: SharedPolicy | None = None

    def facts(self) -> dict[str, Any]:
        """Of the policy, and the process that holds it."""
        return {**self._loaded().facts, "pid": os.getpid()}

    def play(self, station: int, episode: Episode) -> Played:
        """Called in several threads, each with a station of its own."""
        return self._stations[station].play(episode, self._loaded().infer_for(episode))

    def _loaded(self) -> SharedPolicy:
        """Not in the constructor, whose errors Ray reports as the death of the actor."""
        with self._loading:
            if self._policy is None:
                self._policy = SharedPolicy(self._plan)
            return self._policy


@dataclass
class _Slot:
    actor: int
    station: int


class RayCrew:
    """`actors` of a plan, each with `plan.environments` slots.

    gpus: of each actor; 0 for policies on the CPU. Ray must be running (`start_ray`). What is
    wrong with checkpoint or backend is raised by the constructor.
    """

    def __init__(self, plan: Plan, actors: int, gpus: float) -> None:
        import ray

        self._ray = ray
        self._plan = plan
        self._class = ray.remote(
            num_gpus=gpus, num_cpus=0 if gpus else 1, max_concurrency=plan.environments + 1
        )(PolicyActor)
        self._actors = [self._new_actor(number) for number in range(actors)]
        self._generation = [0] * actors
        self._slots = {
            f"actor {actor} simulator {station}": _Slot(actor, station)
            for actor in range(actors)
            for station in range(plan.environments)
        }
        self._running: dict[Any, tuple[str, Episode, int]] = {}
        self._in_a_row = 0
        self.replaced = 0
        try:
            self.facts = self._got([actor.facts.remote() for actor in self._actors])
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> Sequence[str]:
        return list(self._slots)

    def start(self, slot: str, episode: Episode) -> None:
        place = self._slots[slot]
        reference = self._actors[place.actor].play.remote(place.station, episode)
        self._running[reference] = slot, episode, self._generation[place.actor]

    def next(self) -> Finished:
        (reference,), _ = self._ray.wait(list(self._running), num_returns=1)
        slot, episode, generation = self._running.pop(reference)
        try:
            (played,) = self._got([reference])
        except self._ray.exceptions.RayActorError as error:
            self._replace(self._slots[slot].actor, generation, error)
            return Finished(slot, episode, None)
        except self._ray.exceptions.ObjectLostError:  # the node went after the episode ended
            return Finished(slot, episode, None)
        self._in_a_row = 0
        return Finished(slot, episode, played)

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def _new_actor(self, number: int) -> Any:
        return self._class.remote(self._plan, f"actor_{number}_")

    def _replace(self, actor: int, generation: int, error: Exception) -> None:
        """Once for each loss, however many of its episodes tell of it."""
        if generation != self._generation[actor]:
            return
        self._in_a_row += 1
        if self._in_a_row > REPLACED_IN_A_ROW:
            raise ActorsLostError(f"{self._in_a_row} actors were lost in a row: {error}")
        self._generation[actor] += 1
        self.replaced += 1
        self._ray.kill(self._actors[actor])  # it may only have been out of reach
        self._actors[actor] = self._new_actor(actor)

    def _got(self, references: list[Any]) -> list[Any]:
        """Their results; an exception of our code is raised as it was."""
        try:
            return list(self._ray.get(references))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error


def start_ray(address: str | None, actors: int = 1) -> None:
    """Join the cluster at `address` ('auto' finds it), or start one on this machine with room for
    as many actors, whatever it has of cores.

    ValueError where Ray is not installed, OSError where no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"--workers ray wants Ray ({error}): pip install -r requirements/ray.txt"
        ) from error
    root = str(Path(thor_policy_ros.__file__).resolve().parents[1])
    own: dict[str, Any] = {}
    if address is None:
        own["runtime_env"] = {"env_vars": {"PYTHONPATH": root}}
        own["num_cpus"] = max(os.cpu_count() or 1, actors)
    try:
        ray.init(
            address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own
        )
    except (ConnectionError, ValueError) as error:
        raise OSError(f"no Ray cluster at {address!r}: {error}") from error


def stop_ray() -> None:
    import ray

    ray.shutdown()


def cluster_gpus(wait_s: float = 5.0) -> int:
    """GPUs that the cluster has; nodes may take a moment to be told of."""
    import ray

    until_s = time.monotonic() + wait_s
    while not ray.cluster_resources() and time.monotonic() < until_s:
        time.sleep(0.1)
    return int(ray.cluster_resources().get("GPU", 0))

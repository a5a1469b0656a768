"""Who plays the episodes: stations in this process, a thread for each; and the loop over them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from thor_policy_ros.evaluation.libero.episode_queue import EpisodeQueue
from thor_policy_ros.evaluation.libero.settings import Episode, Played
from thor_policy_ros.evaluation.libero.simulator_process import SimulatorLostError
from thor_policy_ros.evaluation.libero.station import SharedPolicy, Station

LOST_IN_A_ROW = 5
"""Simulators lost without an episode played between them, after which the evaluation stops."""


@dataclass(frozen=True)
class Finished:
    """played: None where whoever played is gone, through no fault of the episode."""

    slot: str
    episode: Episode
    played: Played | None


class Crew(Protocol):
    """Plays one episode in each slot at a time. replaced: how many players were, so far."""

    replaced: int

    @property
    def slots(self) -> Sequence[str]: ...

    def start(self, slot: str, episode: Episode) -> None:
        """Begin an episode in a slot that is idle."""
        ...

    def next(self) -> Finished:
        """Wait for an episode to end; what went wrong with the evaluation itself is raised."""
        ...

    def close(self) -> None: ...


def play_all(crew: Crew, left: EpisodeQueue, finish: Callable[[Played], None]) -> None:
    """Play every episode that is left; `finish` is told of each in this thread.

    SimulatorLostError after LOST_IN_A_ROW.
    """
    idle, running, lost = list(crew.slots), 0, 0
    while True:
        for slot in list(idle):
            episode = left.take(slot)
            if episode is None:
                break
            idle.remove(slot)
            crew.start(slot, episode)
            running += 1
        if not running:
            return
        ended = crew.next()
        running -= 1
        idle.append(ended.slot)
        if ended.played is None:
            left.forget(ended.slot)
            left.give_back(ended.episode)
            continue
        finish(ended.played)
        lost = 0 if ended.played.record.played else lost + 1
        if lost == LOST_IN_A_ROW:
            raise SimulatorLostError(
                f"{lost} simulators were lost one after the other, the last one so:"
                f" {ended.played.record.reason}. When that is mended, --retry-lost plays their"
                " episodes again"
            )


class LocalCrew:
    """Stations of this process beside one policy. Closing it closes the policy, not the
    stations: another policy may play on in their simulators.
    """

    def __init__(self, stations: Sequence[Station], policy: SharedPolicy) -> None:
        self._stations = {f"simulator {n}": station for n, station in enumerate(stations)}
        self._policy = policy
        self.replaced = 0
        self._ended: queue.Queue[Finished | BaseException] = queue.Queue()

    @property
    def slots(self) -> Sequence[str]:
        return list(self._stations)

    def start(self, slot: str, episode: Episode) -> None:
        threading.Thread(target=self._play, args=(slot, episode), name=slot, daemon=True).start()

    def next(self) -> Finished:
        ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def close(self) -> None:
        self._policy.close()

    def _play(self, slot: str, episode: Episode) -> None:
        try:
            played = self._stations[slot].play(episode, self._policy.infer_for(episode))
        except BaseException as error:  # noqa: BLE001 - raised where `next` is awaited
            self._ended.put(error)
        else:
            self._ended.put(Finished(slot, episode, played))

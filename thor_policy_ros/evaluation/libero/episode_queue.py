"""Which episode a simulator plays next: of the task that it has open, while there is one."""

from __future__ import annotations

from collections.abc import Iterable

from thor_policy_ros.evaluation.libero.settings import Episode


class EpisodeQueue:
    """Episodes that are left. Opening a task costs, and catching up with its resets."""

    def __init__(self, episodes: Iterable[Episode]) -> None:
        self._left = sorted(episodes)
        self._open: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._left)

    def take(self, slot: str) -> Episode | None:
        """The next one of the slot's task; else of a task that nobody has open, else any. None
        when nothing is left."""
        if not self._left:
            return None
        busy = {task for other, task in self._open.items() if other != slot}
        mine = [e for e in self._left if e.task == self._open.get(slot)]
        free = [e for e in self._left if e.task not in busy]
        chosen = (mine or free or self._left)[0]
        self._left.remove(chosen)
        self._open[slot] = chosen.task
        return chosen

    def give_back(self, episode: Episode) -> None:
        """It was not played to its end, by no fault of its own."""
        self._left = sorted([*self._left, episode])

    def forget(self, slot: str) -> None:
        """The slot is gone, and what it had open."""
        self._open.pop(slot, None)

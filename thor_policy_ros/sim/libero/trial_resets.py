"""Which environment a trial is played in, and which reset it begins with: random numbers as if all
trials had been played in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class TrialResets:
    """The resets of one task's environment after it was seeded.

    openpi's evaluation seeds an environment once and then plays trial after trial, so what a
    reset draws (the robot's noise, where fixtures stand) depends on the resets before it. Here
    trial k begins with the reset k after seeding whichever trials were played before: the state
    of NumPy's global generator is kept for each reset that was made, and resets that were not
    made yet are made first. Steps draw no random numbers (robosuite 1.4, seen).
    """

    def __init__(self, seed: int) -> None:
        np.random.seed(seed)
        self._before: list[Any] = [np.random.get_state()]

    def to(self, trial: int, reset: Callable[[], object]) -> None:
        """Call `reset`, as often as it takes, so that the last call is the one of `trial`."""
        first = min(trial, len(self._before) - 1)
        np.random.set_state(self._before[first])
        for number in range(first, trial + 1):
            reset()
            if number + 1 == len(self._before):
                self._before.append(np.random.get_state())


class OneEnvironment:
    """The one environment that is open; another task or seed closes it and makes another.

    make: of a task by its number; it has `reset` and `close`.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._open: tuple[int, int] | None = None
        self._env: Any = None
        self._resets: TrialResets | None = None

    def at(self, task: int, trial: int, seed: int) -> Any:
        """The task's environment after the reset of `trial`. What `make` raises is raised, and
        nothing is open then."""
        if self._open != (task, seed) or self._resets is None:
            self._open = None
            if self._env is not None:
                self._env.close()
                self._env = None
            self._env = self._make(task)
            self._resets = TrialResets(seed)
            self._open = task, seed
        self._resets.to(trial, self._env.reset)
        return self._env

"""A simulator that needs nothing: a gripper moves as it is told, and misbehaves on command.

Run as the real one is: `fake_simulator.py ... --suite NAME --fd N`. `write_environment` makes a
folder that looks like a simulator's environment. What goes wrong is read from
`misbehaviour.json` in that folder: {"task/trial": "crash" | "hang" | "fail" | "garble"}; each
happens as often as `times` says, counted across processes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thor_policy_ros.sim.libero.served_tasks import TasksRefusedError, end_with_parent, serve_tasks
from thor_policy_ros.sim.libero.trial_resets import TrialResets
from thor_policy_ros.sim.libero.wire import F64, IMAGE_SHAPE, Seen, Task

TASKS = (Task("near", "go near"), Task("far", "go far", 3), Task("dim", "go dim"))
GOALS = (0.3, 9.9, 0.3)
"""Distances that solve the tasks: a random policy gets to the smaller ones, some time."""


class FakeTasks:
    """The gripper is at a random place; actions move it; far enough from there is success."""

    def __init__(self, suite: str, folder: Path) -> None:
        if suite == "libero_goal":
            raise TasksRefusedError("LIBERO's meshes are missing: fetch them")
        print("a simulator that talks on standard output", flush=True)
        self.tasks = TASKS
        self.simulator = "fake 1.0"
        self._folder = folder
        self._resets: dict[tuple[int, int], TrialResets] = {}
        self._trial = (0, 0)
        self._begin = self._place = np.zeros(3)
        self._steps = 0
        self._log("started")

    def reset(self, task: int, trial: int, seed: int) -> Seen:
        resets = self._resets.setdefault((task, seed), TrialResets(seed))
        resets.to(trial, self._draw)
        self._trial, self._steps = (task, trial), 0
        self._log(f"reset {task}/{trial}")
        return self._seen()

    def step(self, action: F64) -> tuple[Seen, bool]:
        self._steps += 1
        if self._steps == 13:
            self._misbehave()
        self._place = self._place + 0.02 * action[:3]
        far = np.abs(self._place - self._begin).max()
        return self._seen(), bool(far > GOALS[self._trial[0]])

    def _draw(self) -> None:
        self._begin = self._place = np.random.normal(size=3)

    def _seen(self) -> Seen:
        shade = (np.abs(self._place) * 97 % 256).astype(np.uint8)
        base = np.zeros(IMAGE_SHAPE, np.uint8)
        base[:128] = shade
        return Seen(base, np.ascontiguousarray(base[::-1]), self._place,
                    np.array([0.0, 0.6, 0.0, 0.8]), np.array([0.04, -0.04]))  # fmt: skip

    def _misbehave(self) -> None:
        file = self._folder / "misbehaviour.json"
        plan = json.loads(file.read_text()) if file.exists() else {}
        kind = plan.get("{}/{}".format(*self._trial))
        done = sum(line.startswith(f"{kind} ") for line in read_log(self._folder))
        if kind is None or done >= plan.get("times", 1):
            return
        self._log(f"{kind} {self._trial}")
        if kind == "crash":
            print("segmentation fault, as it were", flush=True)
            os._exit(77)
        if kind == "hang":
            time.sleep(600)
        if kind == "fail":
            raise RuntimeError("physics exploded")
        raise SystemExit(kind)

    def _log(self, line: str) -> None:
        with (self._folder / "log").open("a") as log:
            log.write(f"{line} pid={os.getpid()}\n")


def read_log(folder: Path) -> list[str]:
    """What the fake simulators of an environment did."""
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def write_environment(folder: Path, misbehaviour: Mapping[str, object] | None = None) -> Path:
    """`folder` with a bin/python that runs this file whatever it is asked; returns it."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{folder}" "$@"\n')
    python.chmod(0o755)
    if misbehaviour is not None:
        (folder / "misbehaviour.json").write_text(json.dumps(misbehaviour))
    return folder


def main(arguments: list[str]) -> None:
    folder, words = Path(arguments[0]), dict(zip(arguments[1::2], arguments[2::2], strict=True))
    end_with_parent()
    connection = socket.socket(fileno=int(words["--fd"]))
    serve_tasks(connection, lambda: FakeTasks(words["--suite"], folder))


if __name__ == "__main__":
    main(sys.argv[1:])

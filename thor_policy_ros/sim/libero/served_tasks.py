"""A simulator's side of the protocol: answers requests until the connection closes."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from thor_policy_ros.sim.libero import wire
from thor_policy_ros.sim.libero.wire import F64, Seen, Task


class TasksRefusedError(RuntimeError):
    """Nothing can be played here: something is not installed, or not what was asked for."""


class Tasks(Protocol):
    """The tasks of one suite. One thread uses them."""

    tasks: Sequence[Task]
    simulator: str
    """Name and versions, for the record."""

    def reset(self, task: int, trial: int, seed: int) -> Seen:
        """Begin a trial. TasksRefusedError for a task that cannot be played."""
        ...

    def step(self, action: F64) -> tuple[Seen, bool]:
        """One control step of f64[7]; whether the task is solved."""
        ...


def end_with_parent(every_s: float = 1.0) -> None:
    """End this process when the one that started it is gone: a simulator that hangs would not
    notice that its connection closed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def serve_tasks(connection: socket.socket, open_tasks: Callable[[], Tasks]) -> None:
    """Until the other side closes. An exception of the simulator is told and ends nothing."""
    tasks: Tasks | None = None
    while True:
        try:
            request = wire.receive(connection)
        except EOFError:
            return
        try:
            tasks = tasks or open_tasks()
            answer = _answer(tasks, request)
        except (TasksRefusedError, wire.SimulatorWireError) as error:
            answer = {"error": str(error), "kind": wire.REFUSED}
        except Exception as error:  # noqa: BLE001 - the other side is told, and decides
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}", "kind": wire.FAILED}
        wire.send(connection, answer)


def _answer(tasks: Tasks, request: Mapping[str, Any]) -> dict[str, Any]:
    ask = request.get("ask")
    if ask == "hello":
        return _hello(tasks, request)
    if ask == "reset":
        numbers = [request.get(name) for name in ("task", "trial", "seed")]
        return {"seen": wire.seen_to_wire(tasks.reset(*_checked(tasks.tasks, numbers)))}
    if ask == "act":
        return _act(tasks, wire.actions_from_wire(request.get("actions")))
    raise wire.SimulatorWireError(f"unknown request {str(ask)[:40]!r}")


def _hello(tasks: Tasks, request: Mapping[str, Any]) -> dict[str, Any]:
    if request.get("protocol") != wire.PROTOCOL:
        raise wire.SimulatorWireError(
            f"protocol {request.get('protocol')} was asked for; this simulator speaks"
            f" {wire.PROTOCOL}"
        )
    return {
        "protocol": wire.PROTOCOL,
        "simulator": tasks.simulator,
        "tasks": wire.tasks_to_wire(tasks.tasks),
    }


def _checked(tasks: Sequence[Task], numbers: Sequence[Any]) -> tuple[int, int, int]:
    if any(type(one) is not int or one < 0 for one in numbers):
        raise wire.SimulatorWireError(f"wanted task, trial and seed, got {list(numbers)}")
    task, trial, seed = numbers
    if task >= len(tasks):
        raise TasksRefusedError(f"wanted a task of 0 to {len(tasks) - 1}, got {task}")
    trials = tasks[task].trials
    if trials and trial >= trials:
        raise TasksRefusedError(
            f"task {task} has beginnings for {trials} trials, got trial {trial}; ask for fewer"
            " --episodes"
        )
    return task, trial, seed


def _act(tasks: Tasks, actions: F64) -> dict[str, Any]:
    frames: list[bytes] = []
    for number, action in enumerate(actions, 1):
        seen, success = tasks.step(action)
        if success or number == len(actions):
            break
        frames.append(seen.base.tobytes())
    return {
        "seen": wire.seen_to_wire(seen),
        "steps": number,
        "success": bool(success),
        "frames": frames,
    }

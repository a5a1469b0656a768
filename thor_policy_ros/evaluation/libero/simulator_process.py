"""The evaluation's end of a simulator's process: started, asked, given up on when it hangs."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import thor_policy_ros
from thor_policy_ros.sim.libero import wire
from thor_policy_ros.sim.libero.wire import Moved, Seen, SimulatorWireError, Task
from thor_policy_ros.types import F32, Closing

LOG_TAIL = 400
MODULE = "thor_policy_ros.sim.libero.process"


class SimulatorLostError(RuntimeError):
    """The simulator crashed, hung or failed; the message says which, and the end of its log."""


class SimulatorRefusedError(ValueError):
    """The simulator can play nothing of this evaluation; the message says what to do."""


class SimulatorProcess(Closing):
    """One simulator. One thread uses it; after a SimulatorLostError only `close` is left.

    python: of the simulator's environment. timeout_s: for one control step and whatever comes
    with it; start_timeout_s: to import, and for a reset, which compiles a scene.
    log: what the process prints is appended there.
    """

    def __init__(
        self,
        python: Path,
        suite: str,
        log: Path,
        timeout_s: float = 60.0,
        start_timeout_s: float = 600.0,
    ) -> None:
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        self._log = log
        self._connection, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            self._log_begins = output.tell()
            self._place = tempfile.TemporaryDirectory(prefix="thor_policy_simulator_")
            try:
                self._process = subprocess.Popen(
                    [str(python), "-m", MODULE, "--suite", suite, "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,  # LIBERO asks questions there
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(Path(self._place.name)),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C ends the evaluation, not an episode
                )
            except BaseException:
                self._connection.close()
                self._place.cleanup()
                raise
        try:
            self.name, self.tasks = self._hello()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def reset(self, task: int, trial: int, seed: int) -> Seen:
        """Begin the trial. SimulatorLostError, SimulatorRefusedError."""
        request = {"ask": "reset", "task": task, "trial": trial, "seed": seed}
        # A new process may have to make every reset before this one.
        timeout_s = self._start_timeout_s + trial * self._timeout_s
        return self._understood(lambda a: wire.seen_from_wire(a.get("seen")), request, timeout_s)

    def act(self, actions: F32) -> Moved:
        """Execute f32[n,7] until they end or the task is solved. SimulatorLostError."""
        rows = [[float(one) for one in row] for row in actions]
        timeout_s = self._timeout_s * len(rows)
        return self._understood(wire.moved_from_wire, {"ask": "act", "actions": rows}, timeout_s)

    def close(self) -> None:
        """End the process. It ends by itself too when whoever started it is gone."""
        self._process.kill()  # first: a thread that waits for an answer is then told
        self._process.wait()
        self._connection.close()
        self._place.cleanup()

    def _hello(self) -> tuple[str, tuple[Task, ...]]:
        answer = self._ask({"ask": "hello", "protocol": wire.PROTOCOL}, self._start_timeout_s)
        if answer.get("protocol") != wire.PROTOCOL:
            raise SimulatorRefusedError(
                f"the simulator speaks protocol {answer.get('protocol')}, wanted {wire.PROTOCOL}"
            )
        return str(answer.get("simulator")), wire.tasks_from_wire(answer.get("tasks"))

    def _understood(self, form: Any, request: Mapping[str, Any], timeout_s: float) -> Any:
        answer = self._ask(request, timeout_s)
        try:
            return form(answer)
        except SimulatorWireError as error:
            raise self._lost(f"answered {request['ask']} wrongly: {error}") from error

    def _ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        self._connection.settimeout(timeout_s)
        try:
            wire.send(self._connection, request)
            answer = wire.receive(self._connection)
        except TimeoutError as error:
            raise self._lost(f"hung: no answer to {request['ask']} in {timeout_s:g} s") from error
        except (OSError, EOFError) as error:
            raise self._lost(f"ended during {request['ask']}{self._status()}") from error
        except SimulatorWireError as error:
            raise self._lost(f"answered {request['ask']} wrongly: {error}") from error
        if "error" not in answer:
            return answer
        if answer.get("kind") == wire.REFUSED:
            raise SimulatorRefusedError(str(answer["error"]))
        raise self._lost(f"failed in {request['ask']}: {answer['error']}")

    def _status(self) -> str:
        try:
            return f" with status {self._process.wait(5.0)}"
        except subprocess.TimeoutExpired:
            return ""

    def _lost(self, what: str) -> SimulatorLostError:
        with self._log.open("rb") as log:
            log.seek(self._log_begins)
            said = log.read().decode(errors="replace").strip()
        end = f"; the end of its log {self._log}: {said[-LOG_TAIL:]}" if said else ""
        return SimulatorLostError(f"the simulator {what}{end}")


def checked_python(environment: Path) -> Path:
    """The Python of a simulator's environment; FileNotFoundError says how to make one."""
    python = environment / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(
            f"no simulator's environment in {environment}: make one with `thor-policy libero"
            f" --make-environment {environment}`"
        )
    return python


def played_tasks(tasks: Sequence[Task], wanted: Sequence[int] | None, trials: int) -> list[int]:
    """Numbers of the tasks to play; ValueError where there are no such tasks or trials."""
    numbers = list(range(len(tasks))) if wanted is None else sorted(set(wanted))
    unknown = [number for number in numbers if not 0 <= number < len(tasks)]
    if unknown:
        raise ValueError(f"wanted tasks of 0 to {len(tasks) - 1}, got {unknown}")
    short = [n for n in numbers if tasks[n].trials and tasks[n].trials < trials]
    if short:
        raise ValueError(
            f"task {short[0]} has {tasks[short[0]].trials} initial states, wanted {trials}"
            " --episodes"
        )
    return numbers


def _environment(place: Path) -> dict[str, str]:
    """Ours, with this package alone on the path: not the packages installed beside it, which
    belong to another NumPy."""
    package = Path(thor_policy_ros.__file__).resolve().parent
    (place / package.name).symlink_to(package)
    return {**os.environ, "PYTHONPATH": str(place), "PYTHONUNBUFFERED": "1"}

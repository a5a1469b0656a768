"""A simulator's process: `python -m thor_policy_ros.sim.libero.process --suite NAME --fd N`.

Runs in the simulator's own environment (requirements/libero.txt). `--fd` is this end of a
socket pair; when the other end closes, the process ends. Standard output is the log.
"""

from __future__ import annotations

import argparse
import os
import socket

from thor_policy_ros.sim.libero.served_tasks import (
    Tasks,
    TasksRefusedError,
    end_with_parent,
    serve_tasks,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args()
    # Before anything imports MuJoCo, which reads it once.
    os.environ.setdefault("MUJOCO_GL", "egl")
    end_with_parent()
    connection = socket.socket(fileno=arguments.fd)
    serve_tasks(connection, lambda: open_tasks(arguments.suite))
    # Without the interpreter's clean-up: robosuite's contexts raise in it, after everything.
    os._exit(0)


def open_tasks(suite: str) -> Tasks:
    """Imports the simulator. TasksRefusedError for an unknown suite and for missing parts."""
    try:
        return _open(suite)
    except ImportError as error:
        raise TasksRefusedError(
            f"the simulator does not import: {error}. Make its environment with"
            " `thor-policy libero --make-environment DIR`; for MUJOCO_GL=egl the machine needs"
            " libEGL (Debian: libegl1 libgl1-mesa-dri), for osmesa libosmesa6"
        ) from error


def _open(suite: str) -> Tasks:
    from thor_policy_ros.sim.libero import libero_tasks, robosuite_tasks

    if suite in robosuite_tasks.SUITES:
        return robosuite_tasks.RobosuiteTasks(suite)
    if suite in libero_tasks.SUITES:
        return libero_tasks.LiberoTasks(suite)
    known = [*libero_tasks.SUITES, *robosuite_tasks.SUITES]
    raise TasksRefusedError(f"unknown suite {suite!r}; choose one of: {', '.join(known)}")


if __name__ == "__main__":
    main()

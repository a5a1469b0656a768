"""LIBERO's suites, from an installed `hf-libero` and the meshes and textures that belong to it.

Imported in the simulator's process alone, after MUJOCO_GL is set. Neither torch nor LIBERO's
benchmark module, which wants it, is needed: the lists of tasks and the states are read as data.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thor_policy_ros.sim.libero.init_states import read_init_states
from thor_policy_ros.sim.libero.robosuite_tasks import seen_of
from thor_policy_ros.sim.libero.served_tasks import TasksRefusedError
from thor_policy_ros.sim.libero.trial_resets import OneEnvironment
from thor_policy_ros.sim.libero.wire import CAMERA_PX, F64, Seen, Task

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
REPOSITORY = "https://github.com/Lifelong-Robot-Learning/LIBERO"


class LiberoTasks:
    """One suite of SUITES."""

    def __init__(self, suite: str) -> None:
        self._folder = package_folder()
        check_assets(self._folder)
        _write_config(self._folder)
        self._suite = suite
        self._names = task_names(self._folder, suite)
        self._states = [self._read_states(name) for name in self._names]
        self.tasks: Sequence[Task] = tuple(
            Task(name, language_of(name), len(states))
            for name, states in zip(self._names, self._states, strict=True)
        )
        said = [f"{name} {version(name)}" for name in ("hf-libero", "robosuite", "mujoco")]
        self.simulator = ", ".join(said)
        self._env: Any = None
        self._environment = OneEnvironment(lambda task: self._made(self._names[task]))

    def reset(self, task: int, trial: int, seed: int) -> Seen:
        self._env = self._environment.at(task, trial, seed)
        return seen_of(self._env.set_init_state(self._states[task][trial]))

    def step(self, action: F64) -> tuple[Seen, bool]:
        observation, _, done, _ = self._env.step(action.tolist())
        return seen_of(observation), bool(done)

    def _made(self, name: str) -> Any:
        from libero.libero.envs import OffScreenRenderEnv

        file = self._folder / "bddl_files" / self._suite / f"{name}.bddl"
        try:
            return OffScreenRenderEnv(
                bddl_file_name=str(file), camera_heights=CAMERA_PX, camera_widths=CAMERA_PX
            )
        except FileNotFoundError as error:
            raise TasksRefusedError(
                f"the scene of {name!r} lacks a file: {error}. {_where(self._folder)}"
            ) from error

    def _read_states(self, name: str) -> F64:
        return read_init_states(self._folder / "init_files" / self._suite / f"{name}.pruned_init")


def package_folder() -> Path:
    """`libero/libero` of the installed package, found without importing it: that would ask a
    question on stdin. TasksRefusedError where it is not installed."""
    found = importlib.util.find_spec("libero")
    if found is None or not found.submodule_search_locations:
        raise TasksRefusedError(
            "LIBERO is not installed in the simulator's environment: make it again with"
            " `thor-policy libero --make-environment DIR`"
        )
    return Path(next(iter(found.submodule_search_locations))) / "libero"


def check_assets(folder: Path) -> None:
    """TasksRefusedError, with what to fetch, where meshes and textures are not there."""
    assets = folder / "assets"
    missing = [
        n for n in ("scenes", "textures", "stable_hope_objects") if not (assets / n).is_dir()
    ]
    if missing:
        raise TasksRefusedError(
            f"LIBERO's meshes and textures are missing: no {', '.join(missing)} in {assets}"
            f" (packages on PyPI leave them out). {_where(folder)}"
        )


def task_names(folder: Path, suite: str) -> list[str]:
    """In the order of LIBERO's benchmark."""
    path = folder / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("libero_suite_task_map", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.libero_task_map[suite])


def language_of(name: str) -> str:
    """The instruction, which LIBERO keeps in the name, after 'KITCHEN_SCENE3_' or the like."""
    if name[:1].isupper():
        _, _, name = name.partition("SCENE")[2].partition("_")
    return name.replace("_", " ")


def _where(folder: Path) -> str:
    return (
        f"Fetch them with `git clone {REPOSITORY}` and link its folder:"
        f" `ln -sfn LIBERO/libero/libero/assets {folder / 'assets'}` (with the whole path)"
    )


def _write_config(folder: Path) -> None:
    """The configuration that importing LIBERO would ask for on stdin, for this process alone."""
    place = Path(tempfile.mkdtemp(prefix="thor_policy_libero_"))
    paths = {
        "benchmark_root": folder,
        "bddl_files": folder / "bddl_files",
        "init_states": folder / "init_files",
        "datasets": folder / "datasets",
        "assets": folder / "assets",
    }
    lines = [f'{name}: "{path}"\n' for name, path in paths.items()]
    (place / "config.yaml").write_text("".join(lines))
    os.environ["LIBERO_CONFIG_PATH"] = str(place)

"""robosuite's own tasks with LIBERO's robot, cameras and controller: no benchmark, but they run
from the wheel alone, and try everything between a policy and a simulator.

Imported in the simulator's process alone, after MUJOCO_GL is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from thor_policy_ros.sim.libero.trial_resets import OneEnvironment
from thor_policy_ros.sim.libero.wire import CAMERA_PX, F64, Seen, Task

SUITES: dict[str, tuple[Task, ...]] = {
    "robosuite_lift": (Task("Lift", "lift the red cube"),),
    "robosuite_pick_place": (
        Task("PickPlaceCan", "put the can into its bin"),
        Task("PickPlaceMilk", "put the milk into its bin"),
    ),
}
CAMERAS = ("agentview", "robot0_eye_in_hand")


class RobosuiteTasks:
    """One suite of SUITES."""

    def __init__(self, suite: str) -> None:
        import robosuite

        self._robosuite = robosuite
        self.tasks: Sequence[Task] = SUITES[suite]
        self.simulator = f"robosuite {robosuite.__version__}, mujoco {version('mujoco')}"
        self._env: Any = None
        self._environment = OneEnvironment(lambda task: self._made(self.tasks[task].name))

    def reset(self, task: int, trial: int, seed: int) -> Seen:
        self._env = self._environment.at(task, trial, seed)
        return seen_of(self._env._get_observations())

    def step(self, action: F64) -> tuple[Seen, bool]:
        observation, _, _, _ = self._env.step(action)
        return seen_of(observation), bool(self._env._check_success())

    def _made(self, name: str) -> Any:
        return self._robosuite.make(
            name,
            robots="Panda",
            controller_configs=self._robosuite.load_controller_config(
                default_controller="OSC_POSE"
            ),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=True,
            camera_names=list(CAMERAS),
            camera_heights=CAMERA_PX,
            camera_widths=CAMERA_PX,
            control_freq=20,
            ignore_done=True,
        )


def seen_of(observation: Mapping[str, Any]) -> Seen:
    """From robosuite's observation, which LIBERO's is too."""

    def numbers(name: str) -> F64:
        return np.asarray(observation[f"robot0_{name}"], np.float64)

    return Seen(
        base=observation["agentview_image"],
        wrist=observation["robot0_eye_in_hand_image"],
        eef_position=numbers("eef_pos"),
        eef_quaternion=numbers("eef_quat"),
        gripper=numbers("gripper_qpos"),
    )

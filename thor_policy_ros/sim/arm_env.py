"""A simulated arm with a suction tip over a table of drifting, coloured objects.

Everything that happens in an episode follows from its seed and the commands.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np
import numpy.typing as npt

from thor_policy_ros.sim import scene
from thor_policy_ros.sim.drift import Drift, plan_turns
from thor_policy_ros.sim.episode import Episode, Judge, plan_episode
from thor_policy_ros.sim.instructions import SHAPES
from thor_policy_ros.sim.kinematics import TOOL_M
from thor_policy_ros.sim.look import make_look
from thor_policy_ros.sim.ray_camera import RayCamera
from thor_policy_ros.types import F32, U8, JointLimits

CAMERA_SLOTS = ("base_0_rgb", "left_wrist_0_rgb")
TICK_S = 0.1
MAX_TICKS = 80
GRIP_RADIUS_M = 0.020
_GRIP_DEPTH_M = (-0.012, 0.004)
"""Height of the lip over the object's top at which suction takes hold."""
_YAW_GRIP_NM_S = 0.001
_ARM = len(scene.ARM_JOINTS)
_STEPS_PER_TICK = round(TICK_S / scene.PHYSICS_DT_S)

F64 = npt.NDArray[np.float64]


class TabletopArm:
    """The robot as its drivers see it, and the task it is judged by. Not thread-safe.

    Commands: f32[5], absolute joint setpoints in rad and suction in [0,1] (on above 0.5).
    State: f32[5], measured joint positions and 1.0 while something is held.
    """

    joint_names: tuple[str, ...] = (*scene.ARM_JOINTS, "suction")
    limits = JointLimits(
        lower=np.array([low for low, _ in scene.JOINT_RANGE] + [0.0], np.float32),
        upper=np.array([high for _, high in scene.JOINT_RANGE] + [1.0], np.float32),
        velocity=np.array([2.0] * _ARM + [np.inf], np.float32),
        acceleration=np.array([10.0] * _ARM + [np.inf], np.float32),
    )

    def __init__(self, image_size: int = 64, *, vary_look: bool = False) -> None:
        """image_size: pixels a side of each camera picture.

        vary_look: tint the scene a little differently in each episode (training data).
        """
        self._model = scene.build_model()
        self._data = mujoco.MjData(self._model)
        self._vary_look = vary_look
        self._cameras = {
            slot: RayCamera(self._model, slot, image_size, image_size) for slot in CAMERA_SLOTS
        }
        self._viewers: dict[tuple[int, int], RayCamera] = {}
        self._tool = int(self._model.body("tool").id)
        self._objects_pose = self._data.qpos[_ARM:].reshape(scene.NUM_OBJECTS, 4)
        self._objects_rate = self._data.qvel[_ARM:].reshape(scene.NUM_OBJECTS, 4)
        self._objects_force = self._data.qfrc_applied[_ARM:].reshape(scene.NUM_OBJECTS, 4)
        self.reset(0, 0.0)

    def reset(
        self,
        seed: int,
        speed_m_s: float,
        instruction: str | None = None,
        start_joints: F64 | None = None,
    ) -> None:
        """Begin the episode that `seed` describes, with objects drifting at `speed_m_s`.

        instruction: None draws one; otherwise the scene is made to hold the named object.
        A blank one cannot be solved. ValueError for an instruction of another form.
        start_joints: f64[4], rad, instead of the episode's own pose near the middle.
        """
        rng = np.random.default_rng(seed)
        self._episode = plan_episode(rng, instruction)
        self._judge = Judge(self._episode, MAX_TICKS)
        self._drift = Drift(
            self._episode.headings_rad, speed_m_s, plan_turns(rng, 2.0 * MAX_TICKS * TICK_S)
        )
        look_rng = rng if self._vary_look else None
        self._look = make_look(self._model, self._episode.colours, speed_m_s, look_rng)
        self._steps, self._held, self._suction = 0, -1, 0.0
        self._show_shapes()
        self._place(self._episode.start_joints if start_joints is None else start_joints)

    @property
    def instruction(self) -> str:
        """What the arm is asked to do in this episode."""
        return self._episode.instruction

    @property
    def episode(self) -> Episode:
        """The scene and the task, for experts and evaluation; a policy must not look."""
        return self._episode

    @property
    def time_s(self) -> float:
        """Simulated seconds since the reset."""
        return self._steps * scene.PHYSICS_DT_S

    @property
    def held(self) -> int:
        """Index of the object that hangs at the tip, -1 for none."""
        return self._held

    def wrong_instruction(self, rng: np.random.Generator) -> str:
        """An instruction that names another object of this scene, with the same verb."""
        return self._episode.other_instruction(rng)

    def command(self, targets: npt.NDArray[np.floating]) -> None:
        """Servo setpoints from now on, float[5]; clipped to the joint limits.

        ValueError on a wrong shape or a value that is not finite.
        """
        if targets.shape != (_ARM + 1,) or not np.isfinite(targets).all():
            raise ValueError(f"command wants {_ARM + 1} finite numbers; got {targets!r}")
        clipped = np.clip(targets, self.limits.lower, self.limits.upper)
        self._data.ctrl[:] = clipped[:_ARM]
        self._suction = float(clipped[_ARM])

    def advance(self, seconds: float) -> None:
        """Let simulated time pass: a multiple of 5 ms (ValueError otherwise)."""
        steps = round(seconds / scene.PHYSICS_DT_S)
        if abs(steps * scene.PHYSICS_DT_S - seconds) > 1e-6:
            raise ValueError(f"advance wants a multiple of {scene.PHYSICS_DT_S} s; got {seconds}")
        for _ in range(steps):
            self._step()
        self._update_kinematics()

    def outcome(self) -> str:
        """'running', 'success', 'wrong_object' or 'timeout'; the first verdict stays.

        Judged every 0.1 s of simulated time. 'wrong_object': something was lifted that should
        not have been.
        """
        return self._judge.outcome

    def state(self) -> F32:
        """f32[5]: measured joint positions, rad, and the holding sensor, 0 or 1."""
        state = np.empty(_ARM + 1, np.float32)
        state[:_ARM] = self._data.qpos[:_ARM]
        state[_ARM] = float(self._held >= 0)
        return state

    def images(self) -> dict[str, U8]:
        """Camera slot -> u8[S,S,3], RGB, of this instant."""
        return {
            slot: camera.picture(self._data, self._look) for slot, camera in self._cameras.items()
        }

    def intrinsics(self) -> dict[str, F64]:
        """Camera slot -> f64[3,3], as CameraInfo.k."""
        return {slot: camera.intrinsics() for slot, camera in self._cameras.items()}

    def render(self, width: int, height: int) -> U8:
        """u8[height,width,3]: a view from outside with shadows, for videos and pictures."""
        size = (width, height)
        if size not in self._viewers:
            self._viewers[size] = RayCamera(self._model, "external", width, height)
        return self._viewers[size].fine_picture(self._data, self._look)

    def pose(self) -> F64:
        """f64[nq]: all joint positions of the scene, arm and objects, for `show`."""
        return self._data.qpos.copy()

    def show(self, pose: F64) -> None:
        """Put the scene into a recorded `pose` without simulating: to make pictures later."""
        self._data.qpos[:] = pose
        self._update_kinematics()

    def tip(self) -> F64:
        """f64[3]: the suction lip in the base frame, m."""
        axis = self._data.xmat[self._tool].reshape(3, 3)[:, 2]
        return self._data.xpos[self._tool] + TOOL_M * axis

    def objects(self) -> F64:
        """f64[3,3]: centres of the objects, m."""
        return self._objects_pose[:, :3] + (0.0, 0.0, scene.OBJECT_RADIUS_M)

    def move_object(self, index: int, place: npt.NDArray[np.floating]) -> None:
        """Put an object elsewhere on the table at once, float[2], m: to see who notices."""
        self._objects_pose[index, :2] = place
        self._update_kinematics()

    def velocities(self) -> F64:
        """f64[3,2]: where the objects' own drives take them, m/s; 0 for the held one."""
        velocity = self._drift.velocity
        if self._held >= 0:
            velocity[self._held] = 0.0
        return velocity

    def objects_in_images(self) -> F32:
        """f32[V,3,2]: the centres in each camera's picture, (0,0) upper left to (1,1)."""
        centres = self.objects()
        return np.stack([c.project(self._data, centres) for c in self._cameras.values()])

    def _show_shapes(self) -> None:
        """Of each object's three geoms, let one be seen and touched."""
        for index, shape in enumerate(self._episode.shapes):
            for number, name in enumerate(SHAPES):
                geom = self._model.geom(f"object_{index}_{name}").id
                self._model.geom_contype[geom] = int(number == shape)
                self._model.geom_conaffinity[geom] = scene.OBJECT_TOUCHED_BY * int(number == shape)
                self._model.geom_group[geom] = 0 if number == shape else 5

    def _place(self, joints: F64) -> None:
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:_ARM] = joints
        self._data.ctrl[:] = joints
        self._objects_pose[:, :2] = self._episode.positions
        self._objects_pose[:, 3] = self._episode.headings_rad
        self._objects_rate[:, :2] = self._drift.velocity
        mujoco.mj_forward(self._model, self._data)

    def _step(self) -> None:
        """One physics step, and the verdict at the end of a tick."""
        self._update_grip()
        self._objects_force[:] = self._drift.forces(
            self._objects_pose, self._objects_rate, self._held, self.time_s
        )
        if self._held >= 0:
            slip = self._data.qvel[0] - self._objects_rate[self._held, 3]
            self._objects_force[self._held, 3] = _YAW_GRIP_NM_S * slip
        mujoco.mj_step(self._model, self._data)
        self._steps += 1
        if self._steps % _STEPS_PER_TICK == 0:
            self._update_kinematics()
            self._judge.tick(self.tip(), self.objects(), self._held)

    def _update_kinematics(self) -> None:
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    def _update_grip(self) -> None:
        if self._suction <= 0.5:
            if self._held >= 0:
                self._data.eq_active[self._held] = 0
                self._held = -1
        elif self._held < 0:
            self._try_grip()

    def _try_grip(self) -> None:
        tip = self.tip().tolist()
        low, high = _GRIP_DEPTH_M
        for index, (x, y, z, _) in enumerate(self._objects_pose.tolist()):
            depth = tip[2] - (z + 2 * scene.OBJECT_RADIUS_M)
            if low < depth < high and math.hypot(tip[0] - x, tip[1] - y) < GRIP_RADIUS_M:
                self._grip(index)
                return

    def _grip(self, index: int) -> None:
        """Tie the object to the tip where it is."""
        body = int(self._model.body(f"object_{index}").id)
        rotation = self._data.xmat[body].reshape(3, 3)
        self._model.eq_data[index, 3:6] = (self.tip() - self._data.xpos[body]) @ rotation
        self._model.eq_data[index, 0:3] = (0.0, 0.0, TOOL_M)
        self._data.eq_active[index] = 1
        self._held = index

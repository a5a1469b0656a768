"""The tabletop as a MuJoCo model: arm, table, three objects, two cameras.

Only the suction tube, the objects and the table collide; everything else is there to be seen.
Objects slide in x, y, z and turn about the vertical: they stay upright, and the lower end of
the z joint is the table.
"""

from __future__ import annotations

import copy
import functools

import mujoco
import numpy as np

from thor_policy_ros.sim.kinematics import FOREARM_M, SHOULDER_HEIGHT_M, TOOL_M, UPPER_ARM_M

Point = tuple[float, float, float]

NUM_OBJECTS = 3
OBJECT_RADIUS_M = 0.022
"""Half the height and width of every object."""
NOSE_RADIUS_M = 0.010
"""A small lamp at the front: it shows where an object is going, the faster the brighter."""
OBJECT_MASS_KG = 0.06
TABLE_X_M = (0.25, 0.61)
TABLE_Y_M = (-0.27, 0.27)
"""Where object centres may drift."""
PHYSICS_DT_S = 0.005
WRIST_CAMERA_FORWARD_M = 0.070
BELLOWS_M = 0.010
"""How far the suction cup can be pressed together before the tube touches."""

_OBJECT_BIT, _TOOL_BIT = 1, 2
OBJECT_TOUCHED_BY = _OBJECT_BIT | _TOOL_BIT
ARM_JOINTS = ("base_yaw", "shoulder", "elbow", "wrist")
JOINT_RANGE = ((-1.3, 1.3), (-0.75, 1.4), (0.4, 2.75), (-0.5, 2.2))
JOINT_DAMPING = 0.2
SERVO_STIFFNESS = (800.0, 1000.0, 800.0, 300.0)
SERVO_LAG_S = 0.030
"""How far the measured joints trail a moving setpoint; the servos' damping is chosen for it."""


def build_model() -> mujoco.MjModel:
    """A model of the scene, the caller's own. Object shapes are chosen later, at reset."""
    return copy.copy(_compiled())


@functools.cache
def _compiled() -> mujoco.MjModel:
    model = mujoco.MjModel.from_xml_string(_scene_xml())
    _choose_what_collides(model)
    return model


def _choose_what_collides(model: mujoco.MjModel) -> None:
    """Let only tube, table and objects touch one another.

    Said after compiling: the boxes by which mj_multiRay skips whole bodies are made at compile
    time around the colliding geoms alone, so a geom that never collides would go unseen.
    """
    for index in range(model.ngeom):
        touches, touched_by = _collision_bits(model.geom(index).name)
        model.geom_contype[index], model.geom_conaffinity[index] = touches, touched_by
    for body in range(model.nbody):
        geoms = slice(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body])
        if model.body_geomnum[body]:
            model.body_contype[body] = np.bitwise_or.reduce(model.geom_contype[geoms])
            model.body_conaffinity[body] = np.bitwise_or.reduce(model.geom_conaffinity[geoms])


def _collision_bits(geom: str) -> tuple[int, int]:
    """contype and conaffinity of a geom, by its name."""
    if geom == "suction_tube":
        return _TOOL_BIT, 0
    if geom == "table":
        return 0, _TOOL_BIT
    if geom.startswith("object_") and not geom.endswith("nose"):
        return _OBJECT_BIT, OBJECT_TOUCHED_BY
    return 0, 0


def _scene_xml() -> str:
    objects = "\n".join(_object_xml(i) for i in range(NUM_OBJECTS))
    suction = "\n".join(
        f'<connect name="suction_{i}" body1="tool" body2="object_{i}" anchor="0 0 {TOOL_M}" '
        f'active="false" solref="0.012 1" solimp="0.95 0.99 0.001"/>'
        for i in range(NUM_OBJECTS)
    )
    servos = "\n".join(
        f'<position name="{joint}" joint="{joint}" kp="{kp}" '
        f'kv="{SERVO_LAG_S * kp - JOINT_DAMPING}"/>'
        for joint, kp in zip(ARM_JOINTS, SERVO_STIFFNESS, strict=True)
    )
    return f"""
<mujoco model="tabletop_arm">
  <compiler angle="radian" inertiafromgeom="true"/>
  <option timestep="{PHYSICS_DT_S}" integrator="implicitfast" cone="pyramidal"/>
  <visual><global offwidth="1280" offheight="960"/></visual>
  <default>
    <geom density="500"/>
    <default class="object">
      <geom mass="{OBJECT_MASS_KG / 3}" friction="0.4" group="0"
            solref="0.006 1" solimp="0.97 0.999 0.001" priority="1"/>
    </default>
  </default>
  <worldbody>
    <light pos="0.2 -0.5 1.6" dir="0.1 0.3 -1"/>
    <geom name="floor" type="plane" pos="0 0 -0.6" size="4 4 0.1"/>
    <geom name="table" type="box" pos="0.30 0 -0.02" size="0.47 0.47 0.02"/>
    <geom name="table_leg" type="cylinder" pos="0.30 0 -0.32" size="0.05 0.28"/>
    {_camera_xml("base_0_rgb", (1.08, 0.0, 0.80), (0.385, 0.0, 0.05), 36)}
    {_camera_xml("external", (1.22, -0.98, 0.80), (0.22, 0.0, 0.20), 35)}
    {_arm_xml()}
    {objects}
  </worldbody>
  <equality>{suction}</equality>
  <actuator>{servos}</actuator>
</mujoco>"""


def _camera_xml(name: str, eye: Point, target: Point, fovy_deg: float) -> str:
    """A fixed camera at `eye` that looks at `target`, z up in the image."""
    forward = np.subtract(target, eye)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    up = np.cross(right, forward)
    axes = " ".join(f"{v:.6f}" for v in (*right, *up))
    pos = " ".join(str(v) for v in eye)
    return f'<camera name="{name}" pos="{pos}" xyaxes="{axes}" fovy="{fovy_deg}"/>'


def _joint_xml(index: int, axis: str) -> str:
    low, high = JOINT_RANGE[index]
    return (
        f'<joint name="{ARM_JOINTS[index]}" axis="{axis}" range="{low} {high}" limited="true" '
        f'armature="0.12" damping="{JOINT_DAMPING}"/>'
    )


def _arm_xml() -> str:
    """Nested links; `gravcomp` carries the arm's own weight, as a stiff servo would."""
    return f"""
    <geom name="base_plate" type="cylinder" pos="0 0 0.008" size="0.095 0.008"/>
    <geom name="pedestal" type="cylinder" pos="0 0 0.07" size="0.062 0.07"/>
    <body name="turret" pos="0 0 {SHOULDER_HEIGHT_M}" gravcomp="1">
      {_joint_xml(0, "0 0 1")}
      <geom name="turret_drum" type="cylinder" pos="0 0 -0.10" size="0.068 0.025"/>
      <geom name="turret_yoke" type="box" pos="-0.005 0 -0.045" size="0.040 0.034 0.055"/>
      <geom name="shoulder_motor" type="cylinder" size="0.042 0.052" euler="1.5708 0 0"/>
      <body name="upper_arm" gravcomp="1">
        {_joint_xml(1, "0 1 0")}
        <geom name="upper_arm_link" type="capsule" fromto="0 0 0.01 0 0 {UPPER_ARM_M - 0.01}"
              size="0.030"/>
        <geom name="upper_arm_stripe" type="cylinder" pos="0 0 {0.5 * UPPER_ARM_M}"
              size="0.0315 0.030"/>
        <body name="forearm" pos="0 0 {UPPER_ARM_M}" gravcomp="1">
          {_joint_xml(2, "0 1 0")}
          <geom name="elbow_motor" type="cylinder" size="0.034 0.042" euler="1.5708 0 0"/>
          <geom name="forearm_link" type="capsule" fromto="0 0 0.01 0 0 {FOREARM_M - 0.01}"
                size="0.022"/>
          <geom name="forearm_stripe" type="cylinder" pos="0 0 {0.62 * FOREARM_M}"
                size="0.0235 0.022"/>
          <body name="tool" pos="0 0 {FOREARM_M}" gravcomp="1">
            {_joint_xml(3, "0 1 0")}
            <geom name="wrist_motor" type="cylinder" size="0.024 0.032" euler="1.5708 0 0"/>
            <geom name="tool_flange" type="cylinder" pos="0 0 0.034" size="0.020 0.014"/>
            <geom name="suction_tube" type="capsule" size="0.007" mass="0.05"
                  fromto="0 0 0.05 0 0 {TOOL_M - BELLOWS_M - 0.007}"/>
            <geom name="suction_cup" type="ellipsoid" pos="0 0 {TOOL_M - 0.009}"
                  size="0.013 0.013 0.009"/>
            <geom name="camera_body" type="box" pos="-0.052 0 0.006" size="0.014 0.016 0.010"/>
            <camera name="left_wrist_0_rgb" pos="-{WRIST_CAMERA_FORWARD_M} 0 0.020"
                    xyaxes="0 -1 0 -0.97 0 0.243" fovy="84"/>
          </body>
        </body>
      </body>
    </body>"""


def _object_xml(index: int) -> str:
    """One body with the three shapes in one place; reset keeps one."""
    size = OBJECT_RADIUS_M
    return f"""
    <body name="object_{index}" pos="0 0 {size}">
      <joint name="object_{index}_x" type="slide" axis="1 0 0"/>
      <joint name="object_{index}_y" type="slide" axis="0 1 0"/>
      <joint name="object_{index}_z" type="slide" axis="0 0 1" range="0 2" limited="true"
             solreflimit="0.01 1" solimplimit="0.99 0.9999 0.0001"/>
      <joint name="object_{index}_yaw" type="hinge" axis="0 0 1" damping="0.0002"/>
      <geom class="object" name="object_{index}_cube" type="box" size="{size} {size} {size}"/>
      <geom class="object" name="object_{index}_ball" type="sphere" size="{size}"/>
      <geom class="object" name="object_{index}_cylinder" type="cylinder" size="{size} {size}"/>
      <geom name="object_{index}_nose" type="sphere" size="{NOSE_RADIUS_M}" mass="0.0001"
            pos="{size + 0.002} 0 0.018"/>
    </body>"""

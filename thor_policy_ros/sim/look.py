"""The colours of the tabletop, and their small random changes from episode to episode."""

from __future__ import annotations

import mujoco
import numpy as np

from thor_policy_ros.sim.instructions import COLOURS, SHAPES
from thor_policy_ros.sim.ray_camera import Look
from thor_policy_ros.sim.scene import NUM_OBJECTS
from thor_policy_ros.types import F32

OBJECT_RGB = {
    "red": (0.86, 0.13, 0.12),
    "green": (0.12, 0.62, 0.22),
    "blue": (0.10, 0.30, 0.88),
    "yellow": (0.97, 0.80, 0.10),
}
_WHITE, _ORANGE, _DARK = (0.88, 0.89, 0.90), (0.94, 0.45, 0.10), (0.20, 0.21, 0.24)
_STEEL, _RUBBER = (0.62, 0.65, 0.70), (0.12, 0.12, 0.14)
_PARTS = {
    "floor": (0.66, 0.68, 0.71),
    "table": (0.40, 0.42, 0.45),
    "table_leg": _DARK,
    "base_plate": _DARK,
    "pedestal": _DARK,
    "turret_drum": _ORANGE,
    "turret_yoke": _ORANGE,
    "shoulder_motor": _DARK,
    "upper_arm_link": _WHITE,
    "upper_arm_stripe": _ORANGE,
    "elbow_motor": _DARK,
    "forearm_link": _WHITE,
    "forearm_stripe": _ORANGE,
    "wrist_motor": _DARK,
    "tool_flange": _STEEL,
    "suction_tube": _STEEL,
    "suction_cup": _RUBBER,
    "camera_body": _RUBBER,
}
_CHECKERS = ((0.46, 0.48, 0.51), (0.39, 0.41, 0.44))
_FULL_LAMP_M_S = 0.12
_SKY = (0.83, 0.88, 0.93)
_LIGHT_M = (0.75, -0.65, 1.7)


def make_look(
    model: mujoco.MjModel,
    colours: tuple[int, ...],
    speed_m_s: float,
    rng: np.random.Generator | None = None,
) -> Look:
    """The scene's look with object i painted COLOURS[colours[i]].

    speed_m_s: how fast the objects go; their lamps tell.

    rng: varies tints, light and its direction a little (training data); None keeps the
    standard look.
    """
    rgb = np.zeros((model.ngeom, 3), np.float32)
    gloss = np.full(model.ngeom, 0.25, np.float32)
    for name, colour in _PARTS.items():
        rgb[model.geom(name).id] = colour
    for index in range(NUM_OBJECTS):
        for shape in SHAPES:
            rgb[model.geom(f"object_{index}_{shape}").id] = OBJECT_RGB[COLOURS[colours[index]]]
        rgb[model.geom(f"object_{index}_nose").id] = _lamp(speed_m_s)
    table = int(model.geom("table").id)
    gloss[[table, model.geom("floor").id]] = 0.0
    checkers = np.asarray(_CHECKERS, np.float32)
    light, ambient, diffuse = np.asarray(_LIGHT_M, np.float32), 0.42, 0.62
    if rng is not None:
        rgb = _tinted(rgb, rng)
        checkers = checkers * rng.uniform(0.85, 1.12, (1, 3)).astype(np.float32)
        light = light + rng.uniform(-0.4, 0.4, 3).astype(np.float32)
        ambient, diffuse = rng.uniform(0.36, 0.50), rng.uniform(0.50, 0.72)
    sky = np.asarray(_SKY, np.float32)
    return Look(rgb, gloss, table, checkers, 0.10, sky, light, float(ambient), float(diffuse))


def _lamp(speed_m_s: float) -> tuple[float, float, float]:
    """Black when parked, white at the highest speed."""
    light = 0.04 + 1.2 * min(speed_m_s / _FULL_LAMP_M_S, 1.0)
    return light, light, light


def _tinted(rgb: F32, rng: np.random.Generator) -> F32:
    """Each part a few per cent lighter, darker or off colour."""
    return np.clip(rgb * rng.uniform(0.90, 1.10, rgb.shape), 0.0, 1.0).astype(np.float32)

"""Pictures by ray casting."""

import mujoco
import numpy as np
import pytest

from thor_policy_ros.sim.instructions import SHAPES
from thor_policy_ros.sim.kinematics import joints_for_tip
from thor_policy_ros.sim.look import make_look
from thor_policy_ros.sim.ray_camera import RayCamera
from thor_policy_ros.sim.scene import build_model


@pytest.fixture(scope="module")
def scene() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = build_model()
    data = mujoco.MjData(model)
    data.qpos[:4] = joints_for_tip(np.array([0.42, -0.05, 0.12]))
    data.qpos[4:] = np.array(
        [[0.35, -0.1, 0, 0.4], [0.5, 0.1, 0, 2.0], [0.42, -0.05, 0, 1]]
    ).ravel()
    mujoco.mj_forward(model, data)
    return model, data


@pytest.mark.parametrize("name", ["base_0_rgb", "left_wrist_0_rgb", "external"])
def test_no_part_is_missing_from_a_picture(scene, name):
    """mj_multiRay skips bodies by boxes that once left out what never collides."""
    model, data = scene
    camera = RayCamera(model, name, 48, 36)
    look = make_look(model, (0, 1, 2), 0.1)
    seen = camera._cast(data, camera._rays).geom
    eye, rotation = data.cam_xpos[camera._id], data.cam_xmat[camera._id].reshape(3, 3)
    one, alone = np.zeros(1, np.int32), []
    for ray in camera._rays @ rotation.T:
        mujoco.mj_ray(model, data, eye, ray, np.array([1, 0, 0, 0, 0, 0], np.uint8), True, -1, one)
        alone.append(one[0])
    assert np.array_equal(seen, alone)
    assert camera.picture(data, look).shape == (36, 48, 3)


def test_only_tube_table_and_objects_collide(scene):
    model, _ = scene
    colliding = {
        model.geom(i).name
        for i in range(model.ngeom)
        if model.geom_contype[i] or model.geom_conaffinity[i]
    }
    objects = {f"object_{i}_{shape}" for i in range(3) for shape in SHAPES}
    assert colliding == {"suction_tube", "table", *objects}


def test_projection_finds_the_pixel_of_a_ray(scene):
    model, data = scene
    camera = RayCamera(model, "base_0_rgb", 40, 30)
    hits = camera._cast(data, camera._rays)
    for pixel in (3, 444, 1111):
        u, v = camera.project(data, hits.point[pixel].astype(np.float64))
        row, column = divmod(pixel, 40)
        np.testing.assert_allclose((u * 40, v * 30), (column + 0.5, row + 0.5), atol=1e-3)


def test_what_is_behind_the_camera_has_no_place_in_the_picture(scene):
    model, data = scene
    camera = RayCamera(model, "base_0_rgb", 40, 30)
    assert np.isnan(camera.project(data, np.array([3.0, 0.0, 2.0]))).all()


def test_shadows_darken_and_never_brighten_the_table(scene):
    model, data = scene
    camera = RayCamera(model, "base_0_rgb", 64, 64)
    look = make_look(model, (0, 1, 2), 0.1)
    table = camera._cast(data, camera._rays).geom.reshape(64, 64) == look.checkered
    plain = camera.picture(data, look)[table].astype(int)
    shaded = camera.picture(data, look, shadows=True)[table].astype(int)
    assert (shaded <= plain + 1).all()
    assert (shaded < plain - 10).any()

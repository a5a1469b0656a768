"""Where the tip is for given joints, and back."""

import mujoco
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.sim.kinematics import TOOL_M, joints_for_tip, tip_position
from thor_policy_ros.sim.scene import JOINT_RANGE, TABLE_X_M, TABLE_Y_M, build_model


def workspace(count: int, seed: int = 0) -> np.ndarray:
    """f64[count,3]: places for the tip over the whole table, low and high."""
    low, high = np.array([TABLE_X_M, TABLE_Y_M, (0.02, 0.27)]).T
    return np.random.default_rng(seed).uniform(low, high, (count, 3))


@given(
    st.tuples(*[st.floats(low, high) for low, high in (TABLE_X_M, TABLE_Y_M, (0.02, 0.27))]),
)
def test_the_inverse_undoes_the_forward_kinematics(tip):
    joints = joints_for_tip(np.array(tip))
    np.testing.assert_allclose(tip_position(joints), tip, atol=1e-9)


def test_the_whole_workspace_is_within_the_joint_limits():
    low, high = np.array(JOINT_RANGE).T
    joints = joints_for_tip(workspace(2000))
    assert (joints >= low).all() and (joints <= high).all()


def test_the_inverse_keeps_the_tool_vertical():
    joints = joints_for_tip(workspace(100))
    np.testing.assert_allclose(joints[:, 1:].sum(axis=1), np.pi)


def test_out_of_reach_points_the_straight_arm_that_way():
    joints = joints_for_tip(np.array([2.0, 2.0, 0.1]))
    np.testing.assert_allclose(joints[0], np.pi / 4)
    np.testing.assert_allclose(joints[2], 0.0, atol=1e-6)


def test_forward_kinematics_agree_with_the_physics_model():
    model = build_model()
    data = mujoco.MjData(model)
    rng = np.random.default_rng(1)
    low, high = np.array(JOINT_RANGE).T
    for joints in rng.uniform(low, high, (20, 4)):
        data.qpos[:4] = joints
        mujoco.mj_kinematics(model, data)
        tool = data.body("tool")
        tip = tool.xpos + TOOL_M * tool.xmat.reshape(3, 3)[:, 2]
        np.testing.assert_allclose(tip_position(joints), tip, atol=1e-9)

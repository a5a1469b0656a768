"""A URDF gives limits and forward kinematics, or says why not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.arm_urdf import ARM_JOINTS, ARM_URDF

from thor_policy_ros.runtime.urdf import Urdf, UrdfError
from thor_policy_ros.sim.kinematics import tip_position

angles = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@given(st.lists(angles, min_size=1, max_size=4))
def test_the_tip_is_where_the_simulated_arms_own_kinematics_have_it(joints) -> None:
    chain = Urdf(ARM_URDF).chain("tip", ARM_JOINTS)
    found = chain.positions(np.array(joints))
    np.testing.assert_allclose(found, tip_position(np.array(joints)), atol=1e-9)
    assert chain.root == "base"


def test_limits_are_those_of_the_joints_in_the_order_asked_for() -> None:
    lower, upper, velocity = Urdf(ARM_URDF).limits(("elbow", "base_yaw"))
    assert (lower.tolist(), upper.tolist()) == ([0.4, -1.3], [2.75, 1.3])
    assert velocity.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<robot", "<nothing", "not XML"),
        ('xyz="0 2 0"', 'xyz="0 0 0"', "axis"),
        ('lower="0.4"', 'lower="nan"', "finite"),
        ('lower="0.4"', 'lower="x"', "not numbers"),
        ('lower="0.4"', 'lower="9"', "limits 9.0 to 2.75"),
        ('<parent link="hand"/>', "", "parent and a child"),
    ],
)
def test_what_makes_no_sense_is_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(UrdfError, match=reason):
        Urdf(ARM_URDF.replace(old, new))


def test_a_link_that_cannot_be_known_is_refused() -> None:
    with pytest.raises(UrdfError, match="'wrist' on the way"):
        Urdf(ARM_URDF).chain("tip", ARM_JOINTS[:3])
    with pytest.raises(UrdfError, match="lacks the link 'toe'"):
        Urdf(ARM_URDF).chain("toe", ARM_JOINTS)


@given(st.text(max_size=300))
def test_any_text_is_a_urdf_or_refused(text: str) -> None:
    with pytest.raises(UrdfError):
        Urdf(text)

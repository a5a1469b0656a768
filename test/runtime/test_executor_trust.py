"""The chunk executor watches the robot: no motion by joints that are not where they should be."""

import re

import numpy as np
import pytest
from support.executing import DT_S, NORMAL, chunk, executor, follow, position
from support.motion import assert_limits_kept, joint_limits

from thor_policy_ros.runtime.executor import ChunkExecutor, Command
from thor_policy_ros.types import JointLimits


def trusting(limits: JointLimits = NORMAL, **trust: float) -> ChunkExecutor:
    """An executor of the joint 'a' under way to 1.0, with joints measured at time 0."""
    made = executor(limits, **trust)
    assert made.accept(chunk(np.ones(20), 0.0), ("a",), 0.0) == ""
    return made


def assert_braking(commands: list[Command], limits: JointLimits = NORMAL) -> None:
    path = [c.positions for c in commands]
    assert_limits_kept(path, [0.0], limits, DT_S)
    assert commands[-1].velocities == pytest.approx([0.0])


class TestTrust:
    """The robot is where it was commanded, or it is not moved."""

    def test_joints_that_are_no_longer_measured_stop_the_motion(self):
        ex = trusting(max_measured_age_s=0.2)
        commands = follow(ex, 0.0, 0.5)
        assert {c.state for c in commands[:21]} == {"tracking"}
        assert {c.state for c in commands[22:]} == {"stopped"}
        assert "measured joints are 0.500 s old" in commands[-1].reason
        assert_braking(commands)
        assert position(commands[-1]) < 0.5

    def test_the_motion_goes_on_when_they_are_measured_again_and_a_chunk_comes(self):
        ex = trusting(max_measured_age_s=0.2)
        commands = follow(ex, 0.0, 0.5)
        ex.set_measured(commands[-1].positions, 0.51)
        assert ex.command(0.51).state == "stopped", "without a new chunk"
        ex.accept(chunk(np.ones(20), 0.5), ("a",), 0.52)
        resumed = ex.command(0.52)
        assert resumed.state == "tracking"
        assert abs(position(resumed) - position(commands[-1])) <= 10.0 * DT_S**2 * 1.001

    def test_an_old_measurement_does_not_begin_a_motion(self):
        ex = executor(NORMAL, max_measured_age_s=0.2)
        ex.accept(chunk(np.ones(20), 0.0), ("a",), 0.3)
        assert "0.300 s old" in ex.command(0.3).reason

    def test_a_robot_that_does_not_follow_is_stopped_until_the_reset(self):
        ex = trusting(max_lag_s=0.25)
        commands = follow(ex, 0.0, 0.8)  # the joint stays at 0
        assert commands[-1].state == "stopped"
        assert re.search(r"'a' is 0\.2\d+ from its command.*reset", commands[-1].reason)
        assert_braking(commands)
        ex.set_measured(commands[-1].positions, 0.81)
        ex.accept(chunk(np.ones(20), 0.8), ("a",), 0.81)
        assert ex.command(0.81).state == "stopped", "caught up, but nobody has looked"
        ex.reset()
        ex.set_measured([0.0], 0.82)
        ex.accept(chunk(np.ones(20), 0.8), ("a",), 0.82)
        begun = ex.command(0.82)
        assert begun.state == "tracking"
        assert position(begun) == pytest.approx(0.0, abs=10.0 * DT_S**2 * 1.001)

    def test_a_robot_that_was_moved_while_stopped_is_not_pulled_back(self):
        ex = trusting(max_lag_s=0.25)
        ex.command(0.0)
        ex.set_measured([-1.5], 3.0)
        ex.accept(chunk(np.ones(20), 3.0), ("a",), 3.0)
        commands = follow(ex, 3.0, 3.5)
        assert {c.state for c in commands} == {"stopped"}
        assert abs(position(commands[-1])) < 0.01

    def test_a_gripper_that_holds_something_is_not_a_lag(self):
        ex = trusting(joint_limits(-2.0, 2.0, np.inf, np.inf), max_lag_s=0.01)
        assert {c.state for c in follow(ex, 0.0, 0.5)} == {"tracking"}

    @pytest.mark.parametrize("trust", [{"max_lag_s": 0.0}, {"max_measured_age_s": np.nan}])
    def test_trust_without_bounds_is_refused(self, trust):
        with pytest.raises(ValueError, match="wants positive max_measured_age_s and max_lag_s"):
            executor(**trust)

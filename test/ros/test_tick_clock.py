"""What paces a node: the simulation where there is one, else a clock that is never set."""

from __future__ import annotations

import pytest
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter

from thor_policy_ros.ros.chunk_executor_node import ChunkExecutorNode
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.tick_clock import tick_clock

EXECUTOR = {
    "joint_names": ["a"],
    "limits.lower": [-1.0],
    "limits.upper": [1.0],
    "limits.velocity": [1.0],
    "limits.acceleration": [1.0],
}


@pytest.mark.parametrize("simulated", [True, False])
def test_ticks_follow_the_simulation_or_else_the_steady_clock(simulated: bool) -> None:
    node = Node("paced", parameter_overrides=[Parameter("use_sim_time", value=simulated)])
    try:
        clock = tick_clock(node)
        assert clock.clock_type == (ClockType.ROS_TIME if simulated else ClockType.STEADY_TIME)
        assert (clock is node.get_clock()) == simulated
    finally:
        node.destroy_node()


def test_the_policy_is_paced_by_it() -> None:
    node = PolicyNode()
    try:
        node._restart_timer()
        paces = [timer.clock.clock_type for timer in node.timers]
        assert paces == [ClockType.STEADY_TIME] * 3, "ticks, diagnostics, heartbeat"
    finally:
        node.destroy_node()


def test_the_executor_is_paced_by_it() -> None:
    """No timer of it sleeps when the system's clock is set back."""
    overrides = [Parameter(name, value=value) for name, value in EXECUTOR.items()]
    node = ChunkExecutorNode(parameter_overrides=overrides)
    try:
        paces = [timer.clock.clock_type for timer in node.timers]
        assert paces == [ClockType.STEADY_TIME] * 2, "commands, diagnostics"
    finally:
        node.destroy_node()

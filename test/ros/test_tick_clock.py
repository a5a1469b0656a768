"""What paces a node: the simulation where there is one, else a clock that is never set."""

from __future__ import annotations

import pytest
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter

from thor_policy_ros.ros.chunk_executor_node import ChunkExecutorNode
from thor_policy_ros.ros.frame_ticks import FrameTicks
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


def test_nothing_of_the_policy_waits_for_a_clock_that_is_set() -> None:
    node = PolicyNode()
    try:
        paces = [timer.clock.clock_type for timer in node.timers]
        assert paces == [ClockType.STEADY_TIME] * 2, "diagnostics, heartbeat"
    finally:
        node.destroy_node()


class Paced:
    """An inference thread's ticks."""

    def __init__(self) -> None:
        self.periods: list[float | None] = []
        self.ticks: list[float] = []

    def pace(self, period_s: float | None) -> None:
        self.periods.append(period_s)

    def tick(self, now_s: float) -> None:
        self.ticks.append(now_s)


@pytest.mark.parametrize("simulated", [True, False])
def test_frames_follow_the_simulation_or_else_their_own_thread(simulated: bool) -> None:
    node = Node("paced", parameter_overrides=[Parameter("use_sim_time", value=simulated)])
    thread = Paced()
    try:
        ticks = FrameTicks(node, thread)  # type: ignore[arg-type]
        ticks.start(20.0)
        ticks.start(10.0)
        timers = [(t.clock.clock_type, t.timer_period_ns) for t in node.timers]
        assert timers == ([(ClockType.ROS_TIME, 100_000_000)] if simulated else [])
        assert thread.periods == [None, None] if simulated else [None, 0.05, None, 0.1]
        for timer in node.timers:
            timer.callback()
        assert len(thread.ticks) == simulated
        ticks.stop()
        assert not list(node.timers) and thread.periods[-1] is None
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

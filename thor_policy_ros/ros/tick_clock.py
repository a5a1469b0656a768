"""The clock that paces a node's work."""

from __future__ import annotations

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node


def tick_clock(node: Node) -> Clock:
    """/clock with use_sim_time; else the steady clock.

    A timer on the system's clock sleeps through an adjustment backwards: an hour back, and no
    command would leave for an hour.
    """
    clock = node.get_clock()
    return clock if clock.ros_time_is_active else Clock(clock_type=ClockType.STEADY_TIME)

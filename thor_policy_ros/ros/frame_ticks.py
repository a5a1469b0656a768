"""When the policy node begins a frame."""

from __future__ import annotations

import time

from rclpy.node import Node
from rclpy.timer import Timer

from thor_policy_ros.ros.inference_thread import InferenceThread


class FrameTicks:
    """Ticks at a fixed rate: by /clock with use_sim_time, where the executor's thread hears it;
    else by the inference thread itself, which no callback holds up and no clock that is set. The
    executor's thread alone uses it."""

    def __init__(self, node: Node, thread: InferenceThread) -> None:
        self._node = node
        self._thread = thread
        self._timer: Timer | None = None

    def start(self, rate_hz: float) -> None:
        """At this rate from now on, the first after one period."""
        self.stop()
        if self._node.get_clock().ros_time_is_active:
            self._timer = self._node.create_timer(1.0 / rate_hz, self._on_timer)
        else:
            self._thread.pace(1.0 / rate_hz)

    def stop(self) -> None:
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        self._thread.pace(None)

    def _on_timer(self) -> None:
        self._thread.tick(time.perf_counter())

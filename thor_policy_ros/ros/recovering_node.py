"""A lifecycle node that comes back to work after a failed frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lifecycle_msgs.msg import Transition
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.timer import Timer

from thor_policy_ros.ros.diagnostics import WARN, Report
from thor_policy_ros.ros.inference_thread import InferenceThread
from thor_policy_ros.ros.lifecycle import PatientLifecycleNode
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.recovery import (
    STICKY_STATUS,
    FrameWatchdog,
    apply_state,
    end_process,
    keep_state,
)
from thor_policy_ros.runtime.gpu_errors import needs_new_process


class InferenceFailedError(RuntimeError):
    """The policy raised while it was active."""


class RecoveringNode(PatientLifecycleNode):
    """Call `watch_over` at the end of the constructor."""

    parameters: NodeParameters

    def __init__(self, name: str, **kwargs: Any) -> None:
        self._failure: BaseException | None = None
        self._recovering: Timer | None = None
        self._unkept = ""
        self._last_words: Callable[[], None] = lambda: None
        super().__init__(name, **kwargs)

    def watch_over(
        self, thread: Callable[[], InferenceThread | None], last_words: Callable[[], None]
    ) -> None:
        """Takes over the parameters of the process before, and watches the frames of `thread`."""
        self._last_words = last_words
        self._unkept = apply_state(self, self.parameters["state_file"])
        if self.parameters["recover_after_s"] > 0:

            def serving_since_s() -> float | None:
                found = thread()
                return None if found is None else found.serving_since_s

            timeout_s = self.parameters["inference_timeout_s"]
            self._watchdog = FrameWatchdog(self, serving_since_s, timeout_s, last_words)

    def keep(self, changed: Mapping[str, Any]) -> None:
        """For the next process."""
        self._unkept = keep_state(self.parameters["state_file"], changed)

    def note_unkept(self, report: Report) -> None:
        if self._unkept:
            report.note(WARN, self._unkept)

    def raise_failure(self) -> None:
        """InferenceFailedError if a frame failed since the last configuration."""
        if self._failure is not None:
            raise InferenceFailedError(
                f"{type(self._failure).__name__}: {self._failure}"
            ) from self._failure

    def on_inference_failure(self, error: BaseException) -> None:
        """In the inference thread. A frame cut off by the end of the process is no failure."""
        if not self.context.ok():
            return
        self._failure = error
        self.executor.create_task(self._recover)

    async def _recover(self) -> None:
        """Active with a failed policy: through the error state to unconfigured, and again."""
        after_s, failure = self.parameters["recover_after_s"], self._failure
        if after_s > 0 and failure is not None and needs_new_process(failure):
            why = f"{type(failure).__name__}: {failure}"
            end_process(self, why, STICKY_STATUS, self._last_words)
        if self.state_label == "active":
            await self.transition(Transition.TRANSITION_DEACTIVATE)
        if after_s > 0 and self._recovering is None:
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._recovering = self.create_timer(after_s, self._try_again, clock=steady)

    async def _try_again(self) -> None:
        """Until it is active, or someone else has ended it."""
        if self.state_label == "unconfigured":
            await self.transition(Transition.TRANSITION_CONFIGURE)
        if self.state_label == "inactive":
            await self.transition(Transition.TRANSITION_ACTIVATE)
        if self.state_label in ("active", "finalized") and self._recovering is not None:
            self.destroy_timer(self._recovering)
            self._recovering = None

"""The policy on the robot: camera images and joint states in, action chunks out.

A lifecycle node. Its executor has one thread, which decodes inputs and answers services; an
inference thread of its own is the only one that touches the backend. A backend that is set while
another one runs is loaded and verified in a third thread (`LiveSwitch`).
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String
from std_srvs.srv import Trigger

from thor_policy_ros.backends.registry import availability
from thor_policy_ros.msg import ActionChunk, ChunkFeedback, FrameInputs, FrameLatency
from thor_policy_ros.ros.chunk_answers import FEEDBACK_QOS, TOPIC
from thor_policy_ros.ros.conversions import answer_of, seconds
from thor_policy_ros.ros.decision_record import reuse_report
from thor_policy_ros.ros.diagnostics import (
    DiagnosticsPublisher,
    Report,
    note_missing_clock,
)
from thor_policy_ros.ros.frame_loop import (
    FrameLoop,
    FrameStatistics,
    PolicyFacts,
)
from thor_policy_ros.ros.frame_ticks import FrameTicks
from thor_policy_ros.ros.inference_thread import InferenceThread
from thor_policy_ros.ros.inputs import LATCHED, PolicyInputs
from thor_policy_ros.ros.instruction import Instruction
from thor_policy_ros.ros.lifecycle import (
    TransitionRefusedError,
    finished_elsewhere,
)
from thor_policy_ros.ros.limits import limits_of
from thor_policy_ros.ros.live_switch import LiveSwitch
from thor_policy_ros.ros.motion_reports import injection_report, motion_report
from thor_policy_ros.ros.motion_safety import Heartbeat
from thor_policy_ros.ros.parameter_tables import CAMERA, POLICY
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.policy_health import PolicyHealth
from thor_policy_ros.ros.policy_reports import (
    backend_report,
    inference_report,
    input_report,
    lifecycle_report,
)
from thor_policy_ros.ros.policy_session import (
    cameras_of,
    check_cameras,
    chunking_refusal,
    facts_of,
    frame_settings,
    make_runner,
)
from thor_policy_ros.ros.process import run_node
from thor_policy_ros.ros.realtime import RealtimeState, enter_realtime
from thor_policy_ros.ros.recovering_node import RecoveringNode
from thor_policy_ros.ros.reuse_parameters import reuse_refusal
from thor_policy_ros.ros.smooth_motion_parameters import (
    chunking_rules,
    injected_latency,
)
from thor_policy_ros.ros.verified_loading import (
    LoadedPolicy,
    LoadRequest,
    References,
    Say,
    load_policy,
)
from thor_policy_ros.runtime.frame_hops import FrameHops
from thor_policy_ros.runtime.latest_frames import LatestFrames
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.real_time_chunking import RealTimeChunking
from thor_policy_ros.types import BackendUnavailableError, VerificationFailedError

if TYPE_CHECKING:
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
CLOSE_TIMEOUT_S = 3.0  # ros2 launch loses patience after 5 s
SWITCH_INTERVAL_S = 1e-3
"""Python's own 5 ms is what a callback waits for a busy inference or loader thread, each time it
wakes: p50 10 ms and p99 26 ms beside one such thread, with 1 ms p50 4 and p99 19 (2 shared cores).
A lower priority of the loader makes it worse: it keeps the interpreter's lock while it waits."""
LOAD_ERRORS = (ValueError, OSError, ImportError, BackendUnavailableError)


class PolicyNode(RecoveringNode):
    """Everything between `configure` and `cleanup` is made by the one and freed by the other."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("policy_node", **kwargs)
        self._switch: LiveSwitch | None = None
        self.parameters = NodeParameters(self, POLICY, self._check, self._on_change)
        names = self.parameters["cameras"]
        self.parameters.declare(row.for_item(name) for name in names for row in CAMERA)
        self.parameters.start()
        self.progress = ""
        self._frames: LatestFrames | None = None
        self._instruction = Instruction(self, self.parameters["instruction"])
        self._thread: InferenceThread | None = None
        self._policy: UnifiedPolicy | None = None  # until the switch has it
        self._inputs: PolicyInputs | None = None
        self._loop: FrameLoop | None = None
        self._chunking = RealTimeChunking(chunking_rules(self.parameters))
        self._hops = FrameHops()
        self._realtime = RealtimeState()
        self._ticks: FrameTicks | None = None  # while active
        self._chunks = self.create_lifecycle_publisher(ActionChunk, "~/action_chunk", RELIABLE)
        self._latencies = self.create_lifecycle_publisher(FrameLatency, "~/frame_latency", RELIABLE)
        self._used = self.create_lifecycle_publisher(FrameInputs, "~/frame_inputs", RELIABLE)
        self.create_subscription(String, "instruction", self._on_instruction, LATCHED)
        self.create_subscription(ChunkFeedback, TOPIC, self._on_feedback, FEEDBACK_QOS)
        self.create_service(
            Trigger, "~/reset", self._on_reset, callback_group=ReentrantCallbackGroup()
        )
        self._health = PolicyHealth(self.parameters)
        self._diagnostics = DiagnosticsPublisher(self, self._hardware_id, self._reports)
        self._heartbeat = Heartbeat(self)
        self.watch_over(lambda: self._thread, self._diagnostics.publish)

    # Transitions

    async def do_configure(self) -> None:
        self._failure = None
        self._thread = InferenceThread("inference", self.on_inference_failure)
        request, references = LoadRequest.of(self.parameters), References()
        loading = self._thread.call(lambda: load_policy(request, references, self._say))
        try:
            loaded = await finished_elsewhere(self.executor, loading)
            self._policy = loaded.policy
            self._prepare(loaded, references)
        except (*LOAD_ERRORS, VerificationFailedError) as error:
            await self._free()
            raise TransitionRefusedError(str(error)) from error
        finally:
            self.progress = ""
        self._on_change({"backend": self.parameters["backend"]})  # it may be another one by now

    async def do_activate(self) -> None:
        assert self._thread is not None and self._loop is not None
        self._forget_inputs()
        priority = self.parameters["realtime_priority"]  # of frames, not of loading
        entering = self._thread.call(lambda: enter_realtime(priority, lock_memory=False))
        self._realtime = await finished_elsewhere(self.executor, entering)
        for refusal in self._realtime.refusals:
            self.get_logger().warning(refusal)
        await finished_elsewhere(self.executor, self._thread.call(self._loop.begin))
        self._thread.run_on_ticks(self._loop.on_tick)
        self._ticks = FrameTicks(self, self._thread)
        self._ticks.start(self.parameters["control_rate_hz"])

    async def do_deactivate(self) -> None:
        await self._stop()
        self.raise_failure()

    async def do_cleanup(self) -> None:
        await self._stop()
        await self._free()

    async def do_shutdown(self) -> None:
        await self.do_cleanup()

    async def do_error(self) -> None:
        await self.do_cleanup()

    def close(self) -> bool:
        """Ends the threads when the process ends; waits a little for all of them, not for ever."""
        until_s = time.monotonic() + CLOSE_TIMEOUT_S
        thread, policy = self._thread, self._left_policy()
        switch, self._thread, self._switch = self._switch, None, None
        if thread is None:
            return True
        thread.stop_ticks()
        if policy is not None:
            thread.call(policy.close)
        thread.end()
        ended = thread.join(CLOSE_TIMEOUT_S)
        return ended and (switch is None or switch.join(max(0.0, until_s - time.monotonic())))

    # Making and freeing

    def _prepare(self, loaded: LoadedPolicy, references: References) -> None:
        """Inputs and frame loop for the loaded policy. Raises ValueError for parameters that
        do not fit the checkpoint.
        """
        parameters, policy = self.parameters, loaded.policy
        cameras = cameras_of(parameters)
        check_cameras(cameras, policy.config)
        facts = facts_of(parameters, policy)
        refusal = chunking_refusal(parameters, policy)
        if refusal:
            raise ValueError(refusal)
        joint_names = parameters["joint_names"]
        self._frames = LatestFrames(
            [camera.slot for camera in cameras],
            len(joint_names),
            parameters["max_input_age_s"],
            parameters["max_input_skew_s"],
        )
        self._judge_frozen(self._frames)
        self._loop = self._make_loop(policy, self._frames, facts)
        self._switch = self._make_switch(loaded, references, self._loop, facts)
        self._inputs = PolicyInputs(
            self,
            self._frames,
            cameras,
            joint_names,
            parameters["image_reliability"],
            lambda: parameters["accept_zero_stamps"],
            self._hops.arrived,
        )
        self._forget_inputs()

    def _judge_frozen(self, frames: LatestFrames) -> None:
        frames.frozen_after_s = self.parameters["frozen_camera_after_s"]
        frames.refuse_frozen = self.parameters["frozen_camera_action"] == "stop"

    def _make_loop(
        self, policy: UnifiedPolicy, frames: LatestFrames, facts: PolicyFacts
    ) -> FrameLoop:
        runner = self._make_runner(policy, facts)
        window = self.parameters["latency_window"]
        clock, settings = self._ros_now_s, partial(frame_settings, self.parameters)
        return FrameLoop(
            runner, frames, facts, self, clock, settings, window, self._chunking, self._hops
        )

    def _make_runner(self, policy: UnifiedPolicy, facts: PolicyFacts) -> PolicyRunner:
        limits = limits_of(self.parameters, facts.action_names)
        runner = make_runner(policy, limits, time.perf_counter, facts.action_names)
        runner.chunking = self._chunking
        return runner

    def _make_switch(
        self, loaded: LoadedPolicy, references: References, loop: FrameLoop, facts: PolicyFacts
    ) -> LiveSwitch:
        def load(backend: str, say: Say) -> LoadedPolicy:
            request = replace(LoadRequest.of(self.parameters), backend=backend)
            return load_policy(request, references, say)

        assert self._thread is not None
        switch = LiveSwitch(
            loaded,
            self.executor,
            self._thread,
            loop,
            lambda policy: self._make_runner(policy, facts),
            load,
            lambda: str(self.parameters["switch_mode"]),
        )
        switch.set_reuse(self.parameters["kv_reuse_freq"])
        return switch

    async def _stop(self) -> None:
        """No tick after this; the frame being computed is finished, and not published."""
        if self._ticks is not None:
            self._ticks.stop()
            self._ticks = None
        if self._loop is not None:
            self._loop.discard()
        if self._thread is not None:
            await finished_elsewhere(self.executor, self._thread.stop_ticks())

    async def _free(self) -> None:
        if self._inputs is not None:
            self._inputs.destroy()
        thread, policy = self._thread, self._left_policy()
        self._thread = self._switch = self._frames = self._inputs = self._loop = None
        if thread is None:
            return
        if policy is not None:
            await finished_elsewhere(self.executor, thread.call(policy.close))
        thread.end()

    def _left_policy(self) -> UnifiedPolicy | None:
        """What is loaded, for the caller to close; the node knows it no more."""
        policy, self._policy = self._policy, None
        if self._switch is None:
            return policy
        loaded = self._switch.abandon()
        return loaded.policy if loaded is not None else None

    # Ticks and inputs

    def chunk(self, message: ActionChunk) -> None:
        self._chunks.publish(message)

    def latency(self, message: FrameLatency) -> None:
        self._latencies.publish(message)

    def wants_inputs(self) -> bool:
        return bool(self._used.get_subscription_count())

    def inputs(self, message: FrameInputs) -> None:
        self._used.publish(message)

    def _on_feedback(self, message: ChunkFeedback) -> None:
        """The executor's word of when the robot began to move by a chunk."""
        self._hops.answered(answer_of(message, self._ros_now_s()))
        if message.taken_up:
            self._chunking.taken_up(message.sequence, seconds(message.header.stamp))
        else:
            self._chunking.refused(message.sequence)

    def _on_instruction(self, message: String) -> None:
        self._set_instruction(message.data)

    def _set_instruction(self, text: str) -> None:
        self._instruction.take(text)
        self._give_instruction()

    def _give_instruction(self) -> None:
        if self._frames is not None and self._instruction.text is not None:
            self._frames.set_prompt(self._instruction.text)

    def _forget_inputs(self) -> None:
        """Old inputs and counters go; the instruction is a setting and stays."""
        assert self._frames is not None and self._inputs is not None
        self._inputs.forget_until(self._ros_now_s())
        self._frames.reset()
        self._give_instruction()

    async def _on_reset(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Once answered, every chunk is made from inputs that are newer than the request."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            response.success = False
            response.message = f"nothing to reset in state '{self.state_label}'"
            return response
        loop.discard()
        self._forget_inputs()
        await finished_elsewhere(self.executor, thread.call(loop.reset))
        response.success = True
        response.message = "inputs, prefix and counters forgotten"
        return response

    # Parameters

    def _check(self, values: Mapping[str, Any]) -> str:
        """Why these values cannot be taken together. Fast: nothing is loaded here."""
        name, refusal = values["backend"], reuse_refusal(values)
        loaded = self._switch.loaded if self._switch is not None else None
        refusal = refusal or chunking_refusal(values, None if loaded is None else loaded.policy)
        if refusal:
            return refusal
        if self._switch is None or name == self.parameters["backend"]:
            return ""  # configure will say what is missing
        missing = availability(name)
        return f"backend {name!r} cannot run here; missing: {'; '.join(missing)}" if missing else ""

    def _on_change(self, changed: Mapping[str, Any]) -> None:
        self.keep(changed)
        if self._switch is not None and "kv_reuse_freq" in changed:
            self._switch.set_reuse(changed["kv_reuse_freq"])
        if self._switch is not None and "backend" in changed:
            self._switch.request(changed["backend"])
        self._chunking.rules = chunking_rules(self.parameters)
        if "instruction" in changed:
            self._set_instruction(changed["instruction"])
        if self._frames is not None:
            self._frames.max_age_s = self.parameters["max_input_age_s"]
            self._frames.max_skew_s = self.parameters["max_input_skew_s"]
            self._judge_frozen(self._frames)
        if "control_rate_hz" in changed and self._ticks is not None:
            self._ticks.start(changed["control_rate_hz"])

    # Reports

    def _ros_now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds * 1e-9)

    def _hardware_id(self) -> str:
        return self.parameters["hardware_id"] or socket.gethostname()

    def _say(self, progress: str) -> None:
        """In the inference thread, while configuring."""
        self.progress = progress
        self.get_logger().info(f"configuring: {progress}")

    def _reports(self) -> list[Report]:
        active = self.state_label == "active"
        engine = self._switch.state.active if self._switch is not None else ""
        statistics = self._loop.statistics() if self._loop is not None else None
        records = self._inputs.records if self._inputs is not None else {}
        lifecycle = lifecycle_report(
            self.state_label, self.progress, self.last_error, self.parameters, engine
        )
        note_missing_clock(self, lifecycle)
        self._instruction.note_refusal(lifecycle)
        self.note_unkept(lifecycle)
        now_s, cameras = self._ros_now_s(), cameras_of(self.parameters)
        facts, alarms = (self._frames, statistics, now_s, active), self._health.alarms
        return [
            lifecycle,
            self._health.with_gpu(backend_report(self._switch), self._switch),
            input_report(records.values(), *facts),
            *self._health.input_reports(cameras, records, *facts),
            inference_report(self.parameters, statistics, active, alarms, self._realtime),
            self._reuse_report(statistics if active else None),
            motion_report(self.parameters, self._chunking.facts, active),
            injection_report(injected_latency(self.parameters)),
        ]

    def _reuse_report(self, statistics: FrameStatistics | None) -> Report:
        loaded = self._switch.loaded if self._switch is not None else None
        settings = frame_settings(self.parameters)
        return reuse_report(
            None if statistics is None else statistics.decisions,
            settings.rules,
            1 if loaded is None else loaded.policy.spec.reuse_every,
            settings.num_steps,
        )


def main() -> int:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run_node(PolicyNode, lambda node: node.start if node.parameters["autostart"] else None)


if __name__ == "__main__":
    raise SystemExit(main())

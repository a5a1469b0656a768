"""The safety layer of the chunk executor: its services, its watchdogs and what it says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from thor_policy_ros.ros.diagnostics import ERROR, WARN, Report
from thor_policy_ros.ros.limits import BOUNDS
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.runtime.motion_guard import HeartbeatWatch, MotionGuard
from thor_policy_ros.runtime.urdf import Urdf
from thor_policy_ros.runtime.workspace import WorkspaceBox
from thor_policy_ros.types import JointLimits

HEARTBEAT = "heartbeat"
BEAT_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
BEAT_PERIOD_S = 0.1


class Heartbeat:
    """Says ten times a second, by the steady clock, that the node's executor turns."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(Header, f"~/{HEARTBEAT}", BEAT_QOS)
        self._timer = node.create_timer(
            BEAT_PERIOD_S, self._beat, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def _beat(self) -> None:
        self._publisher.publish(Header(stamp=self._node.get_clock().now().to_msg()))


@dataclass(frozen=True)
class Bounds:
    """What the joints are held to.

    missing: the bounds that nobody gave; they are inf, and the run is dry.
    workspace: None where none is kept, for the reason `no_workspace`.
    """

    limits: JointLimits
    missing: tuple[str, ...]
    workspace: WorkspaceBox | None
    no_workspace: str


def bounds_of(parameters: NodeParameters, joints: Sequence[str]) -> Bounds:
    """From the parameters, then from the URDF. ValueError, OSError for what makes no sense, and
    for missing limits where `dry_run` is never.
    """
    path = parameters["robot_description_file"]
    urdf = Urdf(Path(path).read_text()) if path else None
    given = {name: parameters[f"limits.{name}"] for name in BOUNDS}
    if urdf is not None:
        for name, values in zip(BOUNDS, urdf.limits(joints), strict=False):
            given[name] = given[name] or tuple(values)
    for name, values in given.items():
        if values and len(values) != len(joints):
            raise ValueError(
                f"limits.{name} has {len(values)} values for {len(joints)} joints "
                f"({', '.join(joints)})"
            )
    missing = tuple(f"limits.{name}" for name in BOUNDS if not given[name])
    if missing and parameters["dry_run"] == "never":
        raise ValueError(
            f"set {', '.join(missing)}: one value for each of {', '.join(joints)}; "
            "a robot is not moved without limits (.inf where there is none)"
        )
    unbounded = np.full(len(joints), np.inf, np.float32)
    arrays = {name: np.asarray(given[name], np.float32) for name in BOUNDS if given[name]}
    limits = JointLimits(
        lower=arrays.get("lower", -unbounded),
        upper=arrays.get("upper", unbounded),
        velocity=arrays.get("velocity", unbounded),
        acceleration=arrays.get("acceleration", unbounded),
    )
    box, why = _workspace(parameters, urdf, joints)
    return Bounds(limits, missing, box, why)


def _workspace(
    parameters: NodeParameters, urdf: Urdf | None, joints: Sequence[str]
) -> tuple[WorkspaceBox | None, str]:
    link, lower, upper = (parameters[f"workspace.{name}"] for name in ("link", "lower", "upper"))
    if urdf is None:
        if link or lower or upper:
            raise ValueError("a workspace wants robot_description_file, to know where the tool is")
        return None, "off: no robot_description_file"
    if not link:
        if lower or upper:
            raise ValueError("a workspace wants workspace.link, the link that stays inside")
        return None, "off: no workspace.link"
    return WorkspaceBox(urdf.chain(link, joints), np.array(lower), np.array(upper)), ""


class MotionSafety:
    """Enable, emergency stop and heartbeat for one executor node; its one thread owns it."""

    def __init__(self, node: Node, parameters: NodeParameters, bounds: Bounds) -> None:
        self.guard = MotionGuard(enabled=parameters["start_enabled"])
        self.dry = parameters["dry_run"] == "always" or bool(bounds.missing)
        self._node, self._parameters, self._bounds = node, parameters, bounds
        self._heart = HeartbeatWatch()
        node.create_subscription(Header, HEARTBEAT, self._on_beat, BEAT_QOS)
        node.create_service(SetBool, "~/enable", self._on_enable)
        node.create_service(Trigger, "~/estop", self._on_estop)
        node.create_service(Trigger, "~/reset_estop", self._on_reset_estop)
        if bounds.missing:
            node.get_logger().warning(self._dry_words())

    def watch(self) -> None:
        """Before every command."""
        self._heart.timeout_s = self._parameters["heartbeat_timeout_s"]
        fault = self._heart.fault(time.monotonic())
        self.guard.note("heartbeat", bool(fault))
        self.guard.watchdog_fault = fault

    def report(self, refusals: int) -> Report:
        """refusals: messages that the executor did not take."""
        report = Report("safety", fine="watching")
        guard = self.guard
        if self.dry:
            report.note(WARN, self._dry_words())
        if guard.halt:
            report.note(ERROR, guard.halt)
        for name in guard.lasting:
            if name in ("workspace", "start_refused"):
                report.note(WARN, f"intervening: {name}")
        report.values = {
            "enabled": guard.enabled,
            "estopped": guard.estopped,
            "dry_run": self.dry,
            "limits_missing": ", ".join(self._bounds.missing),
            "workspace": self._bounds.no_workspace or "on",
            "refused_messages": refusals,
            **{f"interventions.{name}": n for name, n in sorted(guard.interventions.items())},
        }
        return report

    def _dry_words(self) -> str:
        why = f"{', '.join(self._bounds.missing)} not set" if self._bounds.missing else "as set"
        return f"dry run, no command is sent: {why}"

    def _on_beat(self, _: Header) -> None:
        self._heart.beat(time.monotonic())

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        refusal = self.guard.enable(request.data)
        response.success = not refusal
        response.message = refusal or ("enabled" if request.data else "disabled; braking to rest")
        return response

    def _on_estop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.guard.estop()
        self._node.get_logger().error("emergency stop")
        response.success = True
        response.message = "braking to rest; latched until ~/reset_estop and ~/enable"
        return response

    def _on_reset_estop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        refusal = self.guard.reset_estop()
        response.success = not refusal
        response.message = refusal or "reset; still disabled until ~/enable with true"
        return response

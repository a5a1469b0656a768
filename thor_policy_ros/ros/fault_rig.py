"""The real nodes with a hand on every wire between them: the faults run's test bench."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from thor_policy_ros.msg import ActionChunk, EpisodeResult
from thor_policy_ros.ros.demo import share_dir
from thor_policy_ros.ros.fault_record import CommandLog
from thor_policy_ros.ros.faulty_policy_node import FAULT_TOPIC
from thor_policy_ros.ros.inputs import LATCHED
from thor_policy_ros.ros.node_processes import EXECUTOR_REMAPS, NodeCommand, NodeProcesses

POLICY, EXECUTOR, ROBOT = "faulty_policy_node", "chunk_executor_node", "sim_robot_node"
NODE_NAMES = {POLICY: "policy_node", EXECUTOR: EXECUTOR, ROBOT: ROBOT}
RESPAWN_DELAY_S = 2.0  # as in the launch file
CAMERAS = ("base", "wrist")
Change = Callable[[Any], Iterable[Any]]


def unchanged(message: Any) -> Iterable[Any]:
    return (message,)


def commands(folder: Path, sim_time: bool) -> list[NodeCommand]:
    """The demo's nodes; the robot's sensors lead to the rig."""
    share = share_dir()
    config = (share / "config" / "demo.yaml",)
    clock = (("use_sim_time", str(sim_time).lower()),)
    policy = (
        ("checkpoint", str((share / "checkpoints" / "demo").resolve())),
        ("recover_after_s", "1.0"),
        ("inference_timeout_s", "3.0"),
        ("verification_observations", "1"),
        ("state_file", str(folder / "parameters.json")),
        ("verification_report_dir", str(folder / "reports")),
    )
    topics = (*(f"camera_{name}/image_raw" for name in CAMERAS), "joint_states", "instruction")
    relayed = tuple((topic, f"sim/{topic}") for topic in topics)
    return [
        NodeCommand(POLICY, config, (*policy, *clock)),
        NodeCommand(EXECUTOR, config, clock, EXECUTOR_REMAPS),
        NodeCommand(
            ROBOT,
            config,
            (("episodes", "0"), *clock),
            (("commands", f"{EXECUTOR}/commands"), ("/clock", "sim/clock"), *relayed),
        ),
    ]


class FaultRig(Node):
    """image, joints, clock: what becomes of each message on its way; set them, `mend` unsets.

    folder: whatever the nodes write is in it. nodes: other than `commands`.
    """

    def __init__(
        self, folder: Path, sim_time: bool, nodes: Sequence[NodeCommand] | None = None
    ) -> None:
        super().__init__("faults")
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)
        self.log = CommandLog()
        self.seen: list[tuple[float, DiagnosticStatus]] = []
        self.state, self.state_at_s, self.chunk_at_s = "", 0.0, 0.0
        self.backend = ""
        self.said: list[tuple[float, str]] = []
        self._dead_at_s: dict[str, float] = {}
        self.folder = folder
        self.processes = NodeProcesses(folder, {"ROS_LOG_DIR": str(folder / "ros")})
        started = commands(folder, sim_time) if nodes is None else nodes
        self._commands = {command.module: command for command in started}
        self._callers: dict[tuple[str, int], Any] = {}
        self.mend()
        self._connect()

    def _connect(self) -> None:
        deep = QoSProfile(depth=2000)
        for name in CAMERAS:
            topic = f"camera_{name}/image_raw"
            out = self.create_publisher(Image, topic, 1)
            self._relay(Image, f"sim/{topic}", out, "image")
        self._joints_out = self.create_publisher(JointState, "joint_states", 1)
        self._relay(JointState, "sim/joint_states", self._joints_out, "joints")
        self._relay(Clock, "sim/clock", self.create_publisher(Clock, "/clock", 1), "clock")
        self.words = self.create_publisher(String, "instruction", LATCHED)
        self.create_subscription(String, "sim/instruction", self.words.publish, LATCHED)
        self._engine = self.create_publisher(String, FAULT_TOPIC, LATCHED)
        # What ~/commands has too, with its velocities, and none lost while the rig is busy.
        topic = f"{EXECUTOR}/commanded_state"
        self.create_subscription(JointState, topic, self._on_commanded, deep)
        self.create_subscription(ActionChunk, "policy_node/action_chunk", self._on_chunk, 10)
        self.create_subscription(EpisodeResult, "episode_result", self._on_episode, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, deep)

    def _relay(self, kind: Any, topic: str, out: Any, which: str) -> None:
        def pass_on(message: Any) -> None:
            for changed in getattr(self, which)(message):
                out.publish(changed)

        self.create_subscription(kind, topic, pass_on, 5)

    # Faults

    def mend(self) -> None:
        """Every wire as it should be."""
        self.image: Change = unchanged
        self.joints: Change = unchanged
        self.clock: Change = unchanged

    def engine(self, fault: str) -> None:
        self._engine.publish(String(data=fault))

    def kill(self, module: str, signum: signal.Signals = signal.SIGKILL) -> None:
        if module == EXECUTOR:
            self.log.breaks_s.append(time.monotonic())
        os.killpg(self.processes.pid(module), signum)

    def set_parameter(self, node: str, name: str, value: Any, client: int = 0) -> None:
        """Asks; the answer, when it comes, is among `said` if it is a refusal. client: which of
        any number of clients of our own asks.
        """
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        self._ask(SetParameters, f"{node}/set_parameters", request, client)

    def call(self, kind: Any, service: str, request: Any) -> None:
        self._ask(kind, service, request)

    def estop(self) -> None:
        self.call(Trigger, f"{EXECUTOR}/estop", Trigger.Request())

    def leave_estop(self) -> None:
        self.call(Trigger, f"{EXECUTOR}/reset_estop", Trigger.Request())
        self.spin(0.3)
        self.call(SetBool, f"{EXECUTOR}/enable", SetBool.Request(data=True))

    def _ask(self, kind: Any, service: str, request: Any, number: int = 0) -> None:
        client = self._callers.get((service, number))
        if client is None:
            client = self._callers[service, number] = self.create_client(kind, service)
            self.wait(client.service_is_ready, 10.0)
            self.spin(0.2)

        def heard(future: Any) -> None:
            for result in getattr(future.result(), "results", []):
                if not result.successful:
                    self.said.append((time.monotonic(), f"refused: {result.reason}"))

        client.call_async(request).add_done_callback(heard)

    # Life

    def start(self) -> None:
        self.processes.__enter__()
        self.processes.start(list(self._commands.values()))

    def end(self) -> None:
        self.processes.stop()
        self._spinner.shutdown()
        self.destroy_node()

    def spin(self, seconds: float) -> None:
        self.wait(lambda: False, seconds)

    def wait(self, done: Callable[[], Any], limit_s: float) -> bool:
        deadline_s = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline_s:
                return False
            self._respawn()
            self._spinner.spin_once(timeout_sec=0.02)
        return True

    def respawns(self, module: str) -> bool:
        """Whether its host is there to start it again."""
        return True

    def _respawn(self) -> None:
        """As `respawn:=true` of the launch file does."""
        now_s = time.monotonic()
        for module in self._commands:
            if self.processes.alive(module) or not self.respawns(module):
                continue
            dead_at_s = self._dead_at_s.setdefault(module, now_s)
            if now_s - dead_at_s > RESPAWN_DELAY_S:
                del self._dead_at_s[module]
                self.processes.start([self._commands[module]])

    @property
    def healthy(self) -> bool:
        """The robot follows chunks that are of now."""
        now_s = time.monotonic()
        return (
            self.state == "tracking" and now_s - self.state_at_s < 2.5
            and now_s - self.chunk_at_s < 1.0
        )  # fmt: skip

    def _on_commanded(self, message: JointState) -> None:
        self.log.add(time.monotonic(), message.position, message.velocity)

    def _on_chunk(self, message: ActionChunk) -> None:
        self.chunk_at_s, self.backend = time.monotonic(), message.backend

    def _on_episode(self, _: EpisodeResult) -> None:
        self.log.breaks_s.append(time.monotonic())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        now_s = time.monotonic()
        for status in message.status:
            self.seen.append((now_s, status))
            if status.name == f"{EXECUTOR}: execution":
                values = {value.key: value.value for value in status.values}
                self.state, self.state_at_s = values["state"], now_s

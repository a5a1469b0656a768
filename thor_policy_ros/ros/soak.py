"""Switches the policy node's backend again and again while the simulated robot runs.

`python -m thor_policy_ros.ros.soak --switches 100`. Every node is a process of its own. Fails when
a command to the robot is missing, the executor has to hold for longer than a pause allows, memory
grows, or a chunk comes from a backend whose verification was not reported before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from std_msgs.msg import Float64MultiArray

from thor_policy_ros.backends.registry import BACKENDS, availability, spec_of
from thor_policy_ros.msg import ActionChunk, EpisodeResult
from thor_policy_ros.ros.conversions import seconds
from thor_policy_ros.ros.demo import isolated_ros, share_dir
from thor_policy_ros.ros.memory_use import MB, nvml_process_bytes, rss_bytes
from thor_policy_ros.ros.node_processes import (
    EXECUTOR_REMAPS,
    NodeCommand,
    NodeDiedError,
    NodeProcesses,
)
from thor_policy_ros.ros.soak_memory import KINDS
from thor_policy_ros.ros.soak_record import SoakRecord
from thor_policy_ros.runtime.backend_switch import is_variant

START_LIMIT_S, SWITCH_LIMIT_S = 120.0, 120.0
DWELL_S = (0.2, 0.6)
BASELINE_S = 5.0
DEMO_SPEED_M_S = 0.12
REPLACED_EVERY = 10
"""Every so many switches another name is asked for just before."""


class SoakFailedError(RuntimeError):
    """The soak could not go on."""


class SoakNode(Node):
    """Listens and asks; `wait` spins it, in an executor that is made once: `rclpy.spin_once` takes
    half a core for it, and what listens must not be what loads the machine.
    """

    def __init__(self, record: SoakRecord, reports: Path) -> None:
        super().__init__("soak")
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)
        self.record = record
        self.policy_pid = 0
        self.backend = ""
        self.problem = ""
        self.ticks = record.ticks_before
        self._reports = reports
        deep = QoSProfile(depth=200)
        self.create_subscription(ActionChunk, "policy_node/action_chunk", self._on_chunk, deep)
        commands = "chunk_executor_node/commands"
        self.create_subscription(Float64MultiArray, commands, self._on_command, deep)
        self.create_subscription(EpisodeResult, "episode_result", self._on_episode, deep)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, deep)
        self._set = self.create_client(SetParameters, "policy_node/set_parameters")

    def end(self) -> None:
        self._spinner.shutdown()
        self.destroy_node()

    def set_backend(self, name: str) -> None:
        """Raises SoakFailedError where the node refuses the name."""
        request = SetParameters.Request(
            parameters=[Parameter("backend", value=name).to_parameter_msg()]
        )
        begun_s = time.perf_counter()
        future = self._set.call_async(request)
        self.wait(future.done, "an answer to the set call")
        self.record.set_calls_ms.append((time.perf_counter() - begun_s) * 1e3)
        result = future.result().results[0]
        if not result.successful:
            raise SoakFailedError(f"backend {name} was refused: {result.reason}")

    def wait(self, done: Callable[[], Any], what: str, limit_s: float = SWITCH_LIMIT_S) -> None:
        deadline_s = time.monotonic() + limit_s
        while not done():
            if time.monotonic() > deadline_s:
                raise SoakFailedError(f"waited {limit_s:.0f} s for {what}; {self.problem}")
            self._spinner.spin_once(timeout_sec=0.05)

    def spin_for(self, period_s: float) -> None:
        deadline_s = time.monotonic() + period_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._spinner.spin_once(timeout_sec=left_s)

    def _on_chunk(self, message: ActionChunk) -> None:
        if message.backend not in self.record.verified:
            self._look_up(message.backend)
        last_s = seconds(message.observed_at) + (message.horizon - 1) * message.dt
        self.record.add_chunk(message.backend, seconds(message.header.stamp), last_s)
        self.backend = message.backend

    def _look_up(self, backend: str) -> None:
        """The node's own reports of the verification, as they lie on the disk: of this name, or of
        one that is the same engine with other reuse.
        """
        for name, spec in BACKENDS.items():
            path = self._reports / f"verification_{name}.json"
            if not (is_variant(spec, spec_of(backend)) and path.is_file()):
                continue
            report = json.loads(path.read_text())
            if report["ok"]:
                self.record.verified[backend] = report["written_at_s"]
                return

    def _on_command(self, _: Float64MultiArray) -> None:
        self.record.add_command(time.time())

    def _on_episode(self, _: EpisodeResult) -> None:
        self.record.episode_ended(time.time())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            if status.name == "policy_node: backend":
                self.problem = status.message
                self._add_memory(values)
            if status.name == "chunk_executor_node: execution":
                self.ticks.append((seconds(message.header.stamp), int(values["ticks"])))

    def _add_memory(self, values: Mapping[str, str]) -> None:
        if not values.get("active") or values.get("loading"):
            return
        found = {kind: float(values[kind]) for kind in KINDS if values.get(kind)}
        process = nvml_process_bytes(self.policy_pid) if found else None
        taken = {} if process is None else {"gpu_process_mb": process / MB}
        self.record.gpu.add(values["active"], {**found, **taken})


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m thor_policy_ros.ros.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--checkpoint", type=Path, help="default: the demo checkpoint")
    parser.add_argument("--backends", nargs="+", help="default: all that can run here")
    parser.add_argument("--device", default="cpu", help="default: cpu, as the demo")
    parser.add_argument("--mode", choices=("auto", "beside", "pause"), default="auto")
    parser.add_argument(
        "--hold", type=float, default=0.0, help="hold that is allowed, s (default 0)"
    )
    add_priorities(parser)
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="folder for logs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(argv)


def add_priorities(parser: argparse.ArgumentParser) -> None:
    """Options for SCHED_FIFO, as a robot would have it."""
    parser.add_argument(
        "--realtime-priority",
        type=int,
        default=0,
        help="of the executor's control thread, with its memory locked (default 0: an ordinary"
        " thread)",
    )
    parser.add_argument(
        "--inference-priority",
        type=int,
        default=0,
        help="of the policy's inference thread, below the executor's (default 0: an ordinary"
        " thread)",
    )


def node_commands(
    arguments: argparse.Namespace,
    first: str,
    speed_m_s: float = DEMO_SPEED_M_S,
    realtime_priority: int = 0,
    inference_priority: int = 0,
) -> list[NodeCommand]:
    """realtime_priority: of the executor; inference_priority: of the policy's frames."""
    share = share_dir()
    realtime = (("realtime_priority", str(realtime_priority)), ("lock_memory", "true"))
    config = (share / "config" / "demo.yaml",)
    checkpoint = arguments.checkpoint or share / "checkpoints" / "demo"
    return [
        NodeCommand(
            "policy_node",
            config,
            (
                ("checkpoint", str(checkpoint.resolve())),
                ("backend", first),
                ("device", arguments.device),
                ("switch_mode", arguments.mode),
                ("realtime_priority", str(inference_priority)),
                ("verification_report_dir", str((arguments.out / "reports").resolve())),
            ),
        ),
        NodeCommand(
            "chunk_executor_node",
            config,
            realtime if realtime_priority else (),
            remaps=EXECUTOR_REMAPS,
        ),
        NodeCommand(
            "sim_robot_node",
            config,
            (("episodes", "0"), ("speed", str(speed_m_s))),
            remaps=(("commands", "chunk_executor_node/commands"),),
        ),
    ]


def switch_all(
    node: SoakNode, processes: NodeProcesses, names: Sequence[str], switches: int
) -> None:
    """Cycles through the names, each awaited in the chunks."""
    dwell = random.Random(0)
    cycle = itertools.cycle([*names[1:], names[0]])
    for number, name in enumerate(itertools.islice(cycle, switches), 1):
        if number % REPLACED_EVERY == 0:
            node.set_backend(dwell.choice(list(names)))
        begun_s = time.monotonic()
        node.set_backend(name)
        node.wait(lambda name=name: node.backend == name, f"a chunk of {name}")  # type: ignore[misc]
        node.record.switch_s.append(time.monotonic() - begun_s)
        node.spin_for(dwell.uniform(*DWELL_S))
        processes.require_alive()
        rss = rss_bytes(node.policy_pid)
        if rss is not None:
            node.record.rss.append(rss)


def available_backends() -> list[str]:
    return [name for name in BACKENDS if not availability(name)]


def run_beside(
    node: SoakNode,
    out: Path,
    commands: Sequence[NodeCommand],
    work: Callable[[NodeProcesses], None],
) -> list[str]:
    """Starts the nodes, does the work, ends them all and `node` too; returns what ended it early.

    out: folder of logs, and of the verification reports, which are to be of this run.
    """
    for old in (out / "reports").glob("verification_*.json"):
        old.unlink()
    try:
        with NodeProcesses(out / "logs") as processes:
            processes.start(commands)
            work(processes)
    except (SoakFailedError, NodeDiedError) as error:
        return [str(error)]
    finally:
        node.end()
    return []


def run_nodes(arguments: argparse.Namespace) -> SoakRecord:
    """The whole soak, in an initialised rclpy; what ends it early is among the failures."""
    names = arguments.backends or available_backends()
    record = SoakRecord()
    node = SoakNode(record, arguments.out / "reports")

    def work(processes: NodeProcesses) -> None:
        node.policy_pid = processes.pid("policy_node")
        node.wait(lambda: node.backend and record.commands, "the first chunk", START_LIMIT_S)
        node.spin_for(BASELINE_S)
        node.ticks = record.ticks
        switch_all(node, processes, names, arguments.switches)

    commands = node_commands(
        arguments,
        names[0],
        realtime_priority=arguments.realtime_priority,
        inference_priority=arguments.inference_priority,
    )
    record.failures += run_beside(node, arguments.out, commands, work)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with isolated_ros():
        record = run_nodes(arguments)
    faults = record.faults(arguments.hold)
    settings = {
        "backends": arguments.backends or available_backends(),
        "mode": arguments.mode,
        "device": arguments.device,
        "cpu_count": os.cpu_count(),
        "realtime_priority": arguments.realtime_priority,
        "inference_priority": arguments.inference_priority,
    }
    text = json.dumps({"settings": settings, **record.summary(), "faults": faults}, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

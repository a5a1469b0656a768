"""The demo for an hour, while its backend and its live parameters change at random.

`thor-policy soak` starts this. The policy, the executor and the simulated robot are processes of
their own and run without end: in turns untouched (--quiet minutes in all) and with a change every
second or so. Written down is what was changed and what was refused, every episode, the memory of
each process, what the executor's watchdogs did, and the motion that was commanded. In the end the
policy's process is stopped, to see that its silence is still noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from thor_policy_ros.msg import ActionChunk, EpisodeResult, FrameLatency
from thor_policy_ros.ros.conversions import seconds
from thor_policy_ros.ros.demo import isolated_ros
from thor_policy_ros.ros.diagnostics import OK
from thor_policy_ros.ros.fault_record import without_numbers
from thor_policy_ros.ros.long_soak_record import LongSoakRecord, Phase
from thor_policy_ros.ros.memory_use import rss_bytes
from thor_policy_ros.ros.node_processes import NodeProcesses
from thor_policy_ros.ros.random_changes import (
    EXECUTOR_NODE,
    POLICY_NODE,
    Change,
    RandomChanges,
    message_of,
)
from thor_policy_ros.ros.soak import (
    START_LIMIT_S,
    SoakFailedError,
    SoakNode,
    available_backends,
    node_commands,
    run_beside,
)
from thor_policy_ros.ros.soak_record import SoakRecord

# Of config/demo.yaml: what the nodes start with; QUIET is what they have in the quiet parts.
Settings = Mapping[str, Mapping[str, Any]]
START: Settings = {
    POLICY_NODE: {
        "control_rate_hz": 10.0,
        "num_denoise_steps": 3,
        "kv_refresh_on_state": False,
        "kv_reuse_freq": 0,
        "max_input_age_s": 0.2,
        "max_input_skew_s": 0.1,
    },
    EXECUTOR_NODE: {"crossfade_s": 0.1, "hold_timeout_s": 0.5, "max_chunk_age_s": 1.0},
}
QUIET: Settings = {**START, POLICY_NODE: {**START[POLICY_NODE], "kv_reuse_freq": 1}}
SECTION_MINUTES, SETTLE_S = 12.0, 3.0
MEMORY_EVERY_S, WRITTEN_EVERY_S = 5.0, 60.0
WARM_SHARE = 1 / 6
"""Of the changes' time, in which every backend comes round for the first time."""
RECOVERY_LIMIT_S = 30.0


class LongSoakNode(SoakNode):
    """Listens to everything, and counts it to the phase that is on."""

    def __init__(self, record: LongSoakRecord, reports: Path) -> None:
        super().__init__(SoakRecord(), reports)
        self.found = record
        self.phase: Phase | None = None
        self.about: Callable[[], dict[str, Any]] = dict
        self._mixed_episode = False
        self.counted_from: dict[str, int] | None = None
        self.interventions: dict[str, int] = {}
        self.executor_state, self.executor_message = "", ""
        self.chunk_at_s = 0.0
        deep = QoSProfile(depth=500)
        self.create_subscription(
            JointState, f"{EXECUTOR_NODE}/commanded_state", self._on_state, deep
        )
        self.create_subscription(FrameLatency, "policy_node/frame_latency", self._on_frame, deep)
        service = f"{EXECUTOR_NODE}/set_parameters"
        self._setters = {
            POLICY_NODE: self._set,
            EXECUTOR_NODE: self.create_client(SetParameters, service),
        }

    def enter(self, phase: Phase | None) -> None:
        """The episode that is under way counts to no phase."""
        self.phase, self._mixed_episode = phase, True

    def make(self, change: Change) -> str:
        """Sets it; returns '' or the node's reason to refuse it."""
        begun_s = time.perf_counter()
        request = SetParameters.Request(parameters=[message_of(change)])
        future = self._setters[change.node].call_async(request)
        self.wait(future.done, f"an answer about {change.name}", 30.0)
        self.found.set_calls_ms.append((time.perf_counter() - begun_s) * 1e3)
        result = future.result().results[0]
        return "" if result.successful else result.reason or "refused without a reason"

    def _on_chunk(self, message: ActionChunk) -> None:
        before = self.record.unverified_chunks
        super()._on_chunk(message)
        self.record.hold_s.clear()
        self.found.unverified_chunks += self.record.unverified_chunks - before
        self.chunk_at_s = time.monotonic()
        if self.phase is not None:
            self.phase.chunks[message.backend] += 1

    def _on_command(self, _: Float64MultiArray) -> None:
        """`commanded_state` has the same with its stamps."""
        self.record.commands += 1

    def _on_state(self, message: JointState) -> None:
        self.found.motion.add(seconds(message.header.stamp), message.position, message.velocity)

    def _on_frame(self, message: FrameLatency) -> None:
        if self.phase is not None:
            self.phase.frames += 1
            self.phase.late_frames += message.deadline_missed

    def _on_episode(self, message: EpisodeResult) -> None:
        self.found.motion.reset(seconds(message.header.stamp))
        mixed, self._mixed_episode = self._mixed_episode, False
        if self.phase is None or mixed:
            return
        self.phase.episodes += 1
        self.phase.solved += message.success
        self.phase.outcomes[message.outcome] += 1
        if not message.success:
            episode = {"episode": message.episode, "outcome": message.outcome}
            self.phase.failed.append({**episode, **self.about()})

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            if status.name == f"{EXECUTOR_NODE}: safety":
                self.interventions = {
                    key.removeprefix("interventions."): int(value)
                    for key, value in values.items()
                    if key.startswith("interventions.")
                }
                self.count_interventions()
            if status.name == f"{EXECUTOR_NODE}: execution":
                self.executor_state, self.executor_message = values["state"], status.message
            self._note(status)

    def count_interventions(self) -> None:
        if self.counted_from is None:
            return
        for name, count in self.interventions.items():
            self.found.interventions[name] = count - self.counted_from.get(name, 0)

    def _note(self, status: DiagnosticStatus) -> None:
        if status.name == f"{POLICY_NODE}: backend":
            self.problem = status.message
        if self.phase is None or status.level == OK:
            return
        said = self.found.said
        if status.name == f"{EXECUTOR_NODE}: execution":
            said = self.found.executor_said
        said[f"{status.name}: {without_numbers(status.message)}"] += 1


class LongSoak:
    """One run: `run` fills the record, `watched` keeps the time of memory and file."""

    def __init__(
        self, arguments: argparse.Namespace, node: LongSoakNode, processes: NodeProcesses
    ) -> None:
        self.arguments, self.node, self.processes = arguments, node, processes
        self.record = node.found
        self._began_s = time.monotonic()
        self._memory_at_s = self._written_at_s = 0.0

    def run(self) -> None:
        node, arguments = self.node, self.arguments
        node.wait(lambda: node.backend and node.record.commands, "the first chunk", START_LIMIT_S)
        self._began_s = time.monotonic()
        node.spin_for(SETTLE_S)
        node.counted_from = dict(node.interventions)
        changes = RandomChanges(arguments.seed, arguments.backends, START)
        changes.values[POLICY_NODE]["backend"] = node.backend
        quiet: Settings = {**QUIET, POLICY_NODE: {**QUIET[POLICY_NODE], "backend": node.backend}}
        node.about = lambda: {
            "at_min": round((time.monotonic() - self._began_s) / 60.0, 1),
            "load": round(os.getloadavg()[0], 1),
            "values": changes.differing_from(quiet),
        }
        sections = sections_of(arguments)
        for _ in range(sections):
            self._calm(changes, quiet)
            quiet_s = arguments.quiet * 60.0 / sections
            self._through(self.record.quiet, quiet_s, lambda: node.spin_for(0.5))
            changing_s = arguments.minutes * 60.0 / sections
            self._through(self.record.changing, changing_s, lambda: self._change(changes))
        node.count_interventions()
        node.counted_from = None
        self.record.motion.finish()
        self._try_watchdog(changes)

    def _through(self, phase: Phase, lasts_s: float, step: Callable[[], None]) -> None:
        begun_s, before_s = time.monotonic(), phase.seconds
        self.node.enter(phase)
        while time.monotonic() - begun_s < lasts_s:
            step()
            phase.seconds = before_s + time.monotonic() - begun_s
            self._look(time.monotonic() - self._began_s)
        self.node.enter(None)

    def _calm(self, changes: RandomChanges, quiet: Settings) -> None:
        """The parameters of the quiet parts, on both nodes."""
        for change in changes.back_to(quiet):
            if reason := self.node.make(change):
                raise SoakFailedError(f"{change.name} = {change.value!r} was refused: {reason}")
            changes.took(change)
            if change.name == "backend":
                self._await_backend(change.value)
        self.node.spin_for(SETTLE_S)

    def _change(self, changes: RandomChanges) -> None:
        """One change, its answer, and some time in which it works."""
        node, change = self.node, changes.draw()
        reason = node.make(change)
        key = f"{change.node}.{change.name}"
        if not reason:
            self.record.made[key] += 1
            changes.took(change)
        else:
            self.record.refused[key] += 1
        if bool(reason) != bool(change.expected):
            what = f"refused: {reason}" if reason else f"taken, though {change.expected}"
            self.record.surprises.append(f"{key} = {change.value!r} was {what}")
        elif not reason and change.name == "backend":
            self._await_backend(change.value)
        node.spin_for(changes.pause_s(self.arguments.every))

    def _await_backend(self, name: str) -> None:
        asked_s = time.monotonic()
        self.node.wait(lambda: self.node.backend == name, f"a chunk of {name}")
        self.record.switch_s.append(time.monotonic() - asked_s)

    def _look(self, now_s: float) -> None:
        self.processes.require_alive()
        if now_s - self._memory_at_s >= MEMORY_EVERY_S:
            self._memory_at_s = now_s
            self.record.load.append(os.getloadavg()[0])
            pids = {
                c: self.processes.pid(c) for c in (POLICY_NODE, EXECUTOR_NODE, "sim_robot_node")
            }
            for name, pid in {**pids, "the soak itself": os.getpid()}.items():
                rss = rss_bytes(pid)
                if rss is not None:
                    self.record.add_memory(name, now_s, rss)
        if now_s - self._written_at_s >= WRITTEN_EVERY_S:
            self._written_at_s = now_s
            write(self.arguments, self.record, finished=False)
            self._tell(now_s)

    def _tell(self, now_s: float) -> None:
        quiet, changing = self.record.quiet, self.record.changing
        rss = {name: memory.rss[-1] // 1_000_000 for name, memory in self.record.memory.items()}
        sys.stdout.write(
            f"{now_s / 60:5.1f} min: {quiet.solved}/{quiet.episodes} quiet, {changing.solved}/"
            f"{changing.episodes} changing, {sum(self.record.made.values())} changes, "
            f"{sum(self.record.refused.values())} refused, MB {rss}, "
            f"{dict(self.record.interventions)}, {self.record.faults(warm_s(self.arguments))}\n"
        )
        sys.stdout.flush()

    def _try_watchdog(self, changes: RandomChanges) -> None:
        """The policy's silence is noticed within heartbeat_timeout_s, and its return too."""
        node, pid = self.node, self.processes.pid(POLICY_NODE)
        limit_s = changes.values[EXECUTOR_NODE]["heartbeat_timeout_s"] + 2.0
        begun_s = time.monotonic()
        os.killpg(pid, signal.SIGSTOP)
        try:
            node.wait(
                lambda: (
                    # Between two episodes it waits instead, and for the same reason.
                    node.executor_state in ("stopped", "waiting")
                    and "no heartbeat" in node.executor_message
                ),
                "the executor to stop for want of a heartbeat",
                limit_s,
            )
            self.record.watchdog_tripped_s = round(time.monotonic() - begun_s, 2)
        finally:
            os.killpg(pid, signal.SIGCONT)
        begun_s = time.monotonic()
        node.wait(
            lambda: node.executor_state == "tracking" and node.chunk_at_s > begun_s,
            "the robot to go on",
            RECOVERY_LIMIT_S,
        )
        self.record.watchdog_recovered_s = round(time.monotonic() - begun_s, 2)


def sections_of(arguments: argparse.Namespace) -> int:
    """Each begins with its share of the quiet minutes."""
    return max(1, round(arguments.minutes / SECTION_MINUTES))


def warm_s(arguments: argparse.Namespace) -> float:
    """From when on memory is expected to be flat."""
    return float(arguments.quiet + arguments.minutes * WARM_SHARE) * 60.0


def write(arguments: argparse.Namespace, record: LongSoakRecord, finished: bool) -> None:
    """The figures until now, in one piece or not at all."""
    document = {
        "finished": finished,
        "settings": {
            "minutes": arguments.minutes,
            "quiet_minutes": arguments.quiet,
            "seed": arguments.seed,
            "mean_s_between_changes": arguments.every,
            "backends": arguments.backends,
            "device": arguments.device,
            "speed_m_s": arguments.speed,
            "sections": sections_of(arguments),
            "checkpoint": str(arguments.checkpoint or "demo"),
            "cpu_count": os.cpu_count(),
            "warm_up_s": warm_s(arguments),
        },
        **record.summary(warm_s(arguments)),
    }
    if arguments.json:
        beside = arguments.json.with_suffix(".part")
        beside.write_text(json.dumps(document, indent=1) + "\n")
        beside.replace(arguments.json)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m thor_policy_ros.ros.long_soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--quiet", type=float, default=6.0)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backends", nargs="+")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--speed", type=float, default=0.08)
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    arguments.backends = arguments.backends or available_backends()
    arguments.mode = "auto"
    return arguments


def run_nodes(arguments: argparse.Namespace) -> LongSoakRecord:
    """The whole soak, in an initialised rclpy; what ends it early is among the failures."""
    record = LongSoakRecord()
    node = LongSoakNode(record, arguments.out / "reports")
    commands = node_commands(arguments, arguments.backends[0], arguments.speed)
    record.failures += run_beside(
        node, arguments.out, commands, lambda processes: LongSoak(arguments, node, processes).run()
    )
    write(arguments, record, finished=True)
    return record


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with isolated_ros():
        record = run_nodes(arguments)
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())

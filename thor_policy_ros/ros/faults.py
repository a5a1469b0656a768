"""Injects faults into the running nodes and says what the robot did and what one saw of it.

The real policy (the demo's checkpoint), the executor and the simulated robot run as processes of
their own, respawned as `respawn:=true` does; the run stands on every wire between them. It fails
when a command exceeds a limit or is not finite, or when the robot does not go on by itself after
the fault (an emergency stop and joints that lie want an operator's call, not a restart).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus

from thor_policy_ros.ros.demo import isolate
from thor_policy_ros.ros.diagnostics import OK
from thor_policy_ros.ros.fault_record import FaultResult, judge, table, without_numbers
from thor_policy_ros.ros.fault_rig import FaultRig
from thor_policy_ros.ros.fault_scenarios import SCENARIOS, Scenario
from thor_policy_ros.ros.link_fault_rig import two_host_rig
from thor_policy_ros.ros.link_fault_scenarios import LINKS
from thor_policy_ros.ros.small_disk import refusal as small_disk_refusal
from thor_policy_ros.ros.small_disk import small_disk
from thor_policy_ros.ros.two_hosts import refusal as two_hosts_refusal

ALL = (*SCENARIOS, *LINKS)
ELSEWHERE = {
    "gpu_memory_exhausted": "wants a GPU, and the demo runs on the CPU: "
    "`benchmarks/gpu_checks.py --sections exhausted`",
}
DT_S = 0.01
# Of config/demo.yaml.
VELOCITY = np.array([2.0, 2.0, 2.0, 2.0, np.inf])
ACCELERATION = np.array([10.0, 10.0, 10.0, 10.0, np.inf])
START_LIMIT_S, BASELINE_S, STILL_FINE_S = 300.0, 1.2, 0.5
# What a busy machine says anyway, and what the end of each of the arm's own episodes brings.
UNREMARKABLE = (
    "jitter",
    "deadline",
    "inject",
    "no valid chunk",
    "reset: decelerating",
    "none has come",
    "no tick",
)


def run_scenario(rig: FaultRig, scenario: Scenario) -> FaultResult:
    """From a healthy robot through the fault to a healthy robot."""
    result = FaultResult(scenario.name, scenario.group)
    rig.wait(lambda: rig.healthy, scenario.recovers_s)
    rig.log.clear()
    rig.seen.clear()
    rig.said.clear()
    rig.spin(BASELINE_S)
    usual = {(status.name, part) for _, status in rig.seen for part in parts_of(status)}
    begun_s = time.monotonic()
    scenario.begin(rig)
    while time.monotonic() < begun_s + scenario.lasts_s:
        rig.spin(0.05)
        scenario.during(rig)
    scenario.end(rig)
    ended_s = time.monotonic()
    rig.spin(STILL_FINE_S)
    if rig.wait(lambda: rig.healthy and rig.chunk_at_s > ended_s, scenario.recovers_s):
        result.recovered_s = time.monotonic() - ended_s
    else:
        result.failures.append(f"not tracking {scenario.recovers_s:.0f} s after the fault")
    rig.spin(STILL_FINE_S)
    scenario.after(rig)
    _look(rig, result, usual, begun_s)
    found = judge(rig.log, begun_s, ended_s, DT_S, VELOCITY, ACCELERATION)
    result.peak_velocity, result.moved = found.peak_velocity, found.moved
    result.peak_acceleration = found.peak_acceleration
    result.commands = len(rig.log.times_s)
    result.failures += found.failures
    return result


def _look(rig: FaultRig, result: FaultResult, usual: set[tuple[str, str]], begun_s: float) -> None:
    """The first thing out of the ordinary that was said."""
    said = [(at_s, text) for at_s, text in rig.said if at_s >= begun_s]
    for at_s, status in rig.seen:
        odd = any((status.name, part) not in usual for part in remarkable(status))
        if at_s >= begun_s and status.level != OK and odd:
            said.append((at_s, f"{status.name}: {status.message}"))
    if said:
        at_s, result.saw = min(said)
        result.saw_s = at_s - begun_s


def parts_of(status: DiagnosticStatus) -> list[str]:
    """What a status says, one finding each, without numbers."""
    return [without_numbers(part) for part in status.message.split("; ")]


def remarkable(status: DiagnosticStatus) -> list[str]:
    """Its findings that a busy machine or a new episode does not bring by itself."""
    return [part for part in parts_of(status) if not any(word in part for word in UNREMARKABLE)]


def run_all(scenarios: Sequence[Scenario]) -> list[FaultResult]:
    """Scenarios that live by /clock, of a full disk, and of two hosts want nodes of their own."""
    results: list[FaultResult] = []
    for bench, chosen in (
        (one_host_rig, [s for s in scenarios if not (s.sim_time or s.two_hosts or s.small_disk)]),
        (full_disk_rig, [s for s in scenarios if s.small_disk]),
        (partial(one_host_rig, sim_time=True), [s for s in scenarios if s.sim_time]),
        (two_host_rig, [s for s in scenarios if s.two_hosts]),
    ):
        if chosen and results and bench is two_host_rig:
            results += _in_a_process([s.name for s in chosen])
            continue
        if chosen:
            folder = Path(tempfile.mkdtemp(prefix="faults_"))
            with bench(folder) as rig:
                results += _run_on(rig, chosen, folder)
    return results


def _in_a_process(names: Sequence[str]) -> list[FaultResult]:
    """Of their own: who has been on this host's network before is not heard on another one's."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "thor_policy_ros.ros.faults", "--json", str(found)]
        subprocess.run([*command, "--only", *names], check=False)
        if not found.is_file():
            return [FaultResult(name, "link", failures=["the run ended early"]) for name in names]
        return [FaultResult(**row) for row in json.loads(found.read_text())["faults"]]


@contextlib.contextmanager
def one_host_rig(folder: Path, sim_time: bool = False) -> Iterator[FaultRig]:
    rclpy.init(args=[])
    try:
        yield FaultRig(folder, sim_time)
    finally:
        rclpy.try_shutdown()


@contextlib.contextmanager
def full_disk_rig(folder: Path) -> Iterator[FaultRig]:
    """Raises NoSmallDiskError where there can be none."""
    with small_disk(folder), one_host_rig(folder) as rig:
        yield rig


def _run_on(rig: FaultRig, chosen: Sequence[Scenario], folder: Path) -> list[FaultResult]:
    results = []
    try:
        rig.start()
        if not rig.wait(lambda: rig.healthy, START_LIMIT_S):
            reason = f"the robot did not start in {START_LIMIT_S:.0f} s; see {folder}"
            return [FaultResult(s.name, s.group, failures=[reason]) for s in chosen]
        for scenario in chosen:
            results.append(run_scenario(rig, scenario))
            _tell(results[-1])
    finally:
        rig.end()
    return results


def _tell(result: FaultResult) -> None:
    verdict = "FAILED: " + "; ".join(result.failures) if result.failures else "safe"
    recovered = "never" if result.recovered_s is None else f"{result.recovered_s:.1f} s"
    sys.stdout.write(
        f"{result.name:<36} {verdict}; v {result.peak_velocity:.2f} a "
        f"{result.peak_acceleration:.1f} moved {result.moved:.2f} recovered {recovered}; "
        f"{result.saw[:100]}\n"
    )
    sys.stdout.flush()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [scenario.name for scenario in ALL]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="these faults")
    parser.add_argument("--short", action="store_true", help="a few of the fastest")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    parser.add_argument("--json", type=Path, help="write the run to this file")
    parser.add_argument("--table", type=Path, help="print the table of a run's JSON and end")


def not_run(chosen: Sequence[Scenario]) -> dict[str, str]:
    """Scenarios that this machine cannot bring about, and why."""
    with tempfile.TemporaryDirectory() as folder:
        no_disk = small_disk_refusal(Path(folder))
    no_hosts = two_hosts_refusal(relayed=True)
    found = {s.name: no_hosts for s in chosen if s.two_hosts}
    found.update({s.name: no_disk for s in chosen if s.small_disk})
    return {name: reason for name, reason in found.items() if reason}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="thor-policy faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.table:
        stored = json.loads(arguments.table.read_text())
        sys.stdout.write(table(stored["faults"], stored.get("not_run", {})))
        return 0
    chosen = [
        s for s in ALL
        if (not arguments.only or s.name in arguments.only) and (not arguments.short or s.short)
    ]  # fmt: skip
    if arguments.list:
        sys.stdout.write("".join(f"{s.group:<11} {s.name}\n" for s in chosen))
        return 0
    isolate()
    left_out = not_run(chosen)
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        sys.stdout.write(f"not run: {', '.join(names)}: {reason}\n")
    results = run_all([s for s in chosen if s.name not in left_out])
    failed = [r.name for r in results if r.failures]
    if arguments.json:
        document = document_of(arguments.only, left_out, results)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(f"{len(results)} faults, {len(failed)} failed: {', '.join(failed)}\n")
    return 1 if failed or not results else 0


def document_of(
    only: Sequence[str] | None, left_out: Mapping[str, str], results: Sequence[FaultResult]
) -> dict[str, Any]:
    """What --json holds. only: the faults that were asked for by name."""
    return {
        "command": shlex.join(["thor-policy", "faults", *(["--only", *only] if only else [])]),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg(),
        "limits": {"velocity": 2.0, "acceleration": 10.0},
        "not_run": left_out if only else {**left_out, **ELSEWHERE},
        "faults": [r.as_dict() for r in results],
    }


if __name__ == "__main__":
    raise SystemExit(main())

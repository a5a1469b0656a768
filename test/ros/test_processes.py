"""The policy node as a process: starts by itself, survives kills, ends when asked."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rcl_interfaces.msg import Log
from std_msgs.msg import Float64MultiArray
from support.fake_robot import FakeRobot
from support.ros_probe import RELIABLE, Probe

from thor_policy_ros.msg import ActionChunk, EpisodeResult
from thor_policy_ros.ros.diagnostics import ERROR, OK
from thor_policy_ros.ros.node_processes import NodeCommand

pytestmark = pytest.mark.node

CONFIG = Path(__file__).parents[2] / "config" / "demo.yaml"
NODE = "policy_node"
LIFECYCLE = f"{NODE}: lifecycle"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(probe: Probe) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start(module: str, **parameters: Any) -> subprocess.Popen[str]:
        given = tuple((name, str(value)) for name, value in parameters.items())
        command = NodeCommand(module, (CONFIG,), given)
        process = subprocess.Popen(
            command.argv(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], signum: signal.Signals) -> str:
    """Ends the process by a signal; its output. It must say 0 and show no traceback."""
    process.send_signal(signum)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def test_it_starts_by_itself_infers_and_does_so_again_after_a_kill(
    probe: Probe, start: Start, arm_checkpoint: Path
) -> None:
    FakeRobot(probe)
    chunks = probe.listen(ActionChunk, f"{NODE}/action_chunk")
    first = start(NODE, checkpoint=arm_checkpoint)
    probe.wait(lambda: len(chunks) > 2, "chunks")
    assert probe.state(NODE) == "active"
    first.kill()
    first.wait(10)
    chunks.clear()
    second = start(NODE, checkpoint=arm_checkpoint)
    probe.wait(lambda: chunks, "chunks of the new process")
    assert chunks[0].sequence == 1
    output = ended(second, signal.SIGINT)
    assert "warming up" in output and "ready after" in output


def test_without_autostart_it_waits_to_be_told(
    probe: Probe, start: Start, arm_checkpoint: Path
) -> None:
    process = start(NODE, checkpoint=arm_checkpoint, autostart="false")
    assert probe.state(NODE) == "unconfigured"
    assert probe.transition(NODE, "configure")
    assert probe.state(NODE) == "inactive"
    ended(process, signal.SIGTERM)


def test_a_checkpoint_that_is_missing_is_told_and_can_be_mended(
    probe: Probe, start: Start, arm_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "late"
    process = start(NODE, checkpoint=folder)
    probe.diagnosis(LIFECYCLE, ERROR, f"got {folder}: no such folder")
    assert probe.state(NODE) == "unconfigured"
    shutil.copytree(arm_checkpoint, folder)
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    probe.diagnosis(LIFECYCLE, OK, "active")
    assert "no such folder" in ended(process, signal.SIGINT)


def test_it_ends_at_once_while_still_loading(
    probe: Probe, start: Start, arm_checkpoint: Path
) -> None:
    process = start(NODE, checkpoint=arm_checkpoint)
    probe.wait(lambda: LIFECYCLE in probe.diagnostics, "the node")
    ended(process, signal.SIGINT)


def test_interrupted_many_times_it_still_ends_well(
    probe: Probe, start: Start, arm_checkpoint: Path
) -> None:
    process = start(NODE, checkpoint=arm_checkpoint)
    probe.diagnosis(LIFECYCLE, OK, "active")
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    ended(process, signal.SIGINT)


def test_simulated_time_without_a_clock_is_told(
    probe: Probe, start: Start, arm_checkpoint: Path
) -> None:
    start(NODE, checkpoint=arm_checkpoint, use_sim_time="true")
    probe.diagnosis(LIFECYCLE, ERROR, "use_sim_time is set and no /clock has come")


def test_the_robot_waits_for_a_command_and_refuses_nonsense(probe: Probe, start: Start) -> None:
    results = probe.listen(EpisodeResult, "episode_result")
    said = probe.listen(Log, "/rosout")
    commands = probe.create_publisher(Float64MultiArray, "commands", RELIABLE)
    process = start(
        "sim_robot_node", use_sim_time="true", realtime_factor="8.0", episodes="1", seed="3"
    )

    def refused() -> bool:
        commands.publish(Float64MultiArray(data=[1.0, 2.0]))
        return any("command refused: command wants 5 finite numbers" in log.msg for log in said)

    probe.wait(refused, "a refusal")
    probe.spin_for(2.0)
    assert not results, "an episode passed without a command that can be used"

    def begin() -> bool:
        commands.publish(Float64MultiArray(data=[0.0, 0.3, 1.8, 0.7, 0.0]))
        return bool(results)

    probe.wait(begin, "the end of the episode")
    assert (results[0].outcome, results[0].success) == ("timeout", False)
    assert 7.9 < results[0].duration_s < 8.2
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output


def test_a_wrong_parameter_ends_the_process_with_the_reason(start: Start) -> None:
    process = start("sim_robot_node", realtime_factor="2.0")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "realtime_factor 2.0 wants use_sim_time" in output

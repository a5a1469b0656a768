"""The launch files: what they declare, what they start, and that it works when started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_share_directory
from support.launch_recorder import LaunchRefusedError, Recording, record
from support.ros_probe import Probe

from thor_policy_ros.backends.registry import BACKENDS, REMOTE
from thor_policy_ros.msg import ActionChunk, EpisodeResult

SHARE = Path(get_package_share_directory("thor_policy_ros"))
POLICY, DEMO = SHARE / "launch" / "policy.launch.py", SHARE / "launch" / "demo.launch.py"
EXECUTOR = SHARE / "launch" / "executor.launch.py"
WANTED = {"backend", "checkpoint", "config", "namespace", "use_sim_time", "instruction", "respawn"}


@pytest.mark.parametrize("file", [POLICY, DEMO, EXECUTOR])
def test_every_argument_has_a_description_and_a_default_among_its_choices(file: Path) -> None:
    recording = record(file)
    assert set(recording.arguments) >= WANTED
    for name, argument in recording.arguments.items():
        assert argument.description, name
        assert argument.default_value is not None, name
        assert argument.choices is None or argument.default_value in argument.choices, name


def test_choices_are_those_of_the_registry() -> None:
    assert record(POLICY).arguments["backend"].choices == [*BACKENDS, REMOTE.name]
    with pytest.raises(LaunchRefusedError, match="backend:=no_such"):
        record(POLICY, backend="no_such")


def test_by_default_the_policy_watches_and_moves_nothing() -> None:
    recording = record(POLICY, checkpoint="/checkpoints/mine")
    assert [node.name for node in recording.nodes] == ["policy_node"]
    policy = recording.node("policy_node")
    assert policy.values() == {
        "backend": "pytorch",
        "checkpoint": "/checkpoints/mine",
        "autostart": True,
        "use_sim_time": False,
    }
    assert policy.parameters[0].path == str(SHARE / "config" / "policy.yaml")
    assert not policy.respawn and policy.additional_env == {}


def test_with_security_on_each_node_gets_its_enclave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    recording = record(DEMO, namespace="left", viewer="true")
    found = {node.name: node.ros_arguments[-2:] for node in recording.nodes}
    names = ("policy_node", "chunk_executor_node", "chunk_viewer_node", "sim_robot_node")
    assert found == {name: ["--enclave", f"/left/{name}"] for name in names}


def test_arguments_reach_the_nodes() -> None:
    recording = record(
        POLICY,
        config="pi05_aloha",
        namespace="left",
        use_sim_time="true",
        instruction="pick up the red cube",
        execute="true",
        autostart="false",
        respawn="true",
        large_images="true",
        log_level="debug",
        commands_topic="/forward_position_controller/commands",
    )
    policy, executor = recording.node("policy_node"), recording.node("chunk_executor_node")
    assert policy.values()["instruction"] == "pick up the red cube"
    assert policy.values()["autostart"] is False
    assert policy.values()["recover_after_s"] > 0
    assert policy.values()["state_file"].endswith("parameters.json")
    assert ("action_chunk", "policy_node/action_chunk") in executor.remappings
    assert ("~/commands", "/forward_position_controller/commands") in executor.remappings
    assert [old for old, _ in executor.remappings if old == "~/joint_trajectory"] == []
    for node in (policy, executor):
        assert node.values()["use_sim_time"] is True
        assert (node.namespace, node.respawn) == ("left", True)
        assert node.parameters[0].path.endswith("config/pi05_aloha.yaml")
        assert node.ros_arguments == ["--log-level", "debug"]
        assert "LARGE_DATA" in node.additional_env["FASTDDS_BUILTIN_TRANSPORTS"]


def test_on_two_hosts_one_launch_starts_the_policy_and_the_other_the_executor() -> None:
    here = record(POLICY, config="demo", peers="10.0.0.2")
    there = record(EXECUTOR, config="demo", peers="10.0.0.1;10.0.0.3")
    assert [node.name for node in here.nodes] == ["policy_node"]
    assert [node.name for node in there.nodes] == ["chunk_executor_node"]
    assert here.nodes[0].additional_env == {"ROS_STATIC_PEERS": "10.0.0.2"}
    assert there.nodes[0].additional_env == {"ROS_STATIC_PEERS": "10.0.0.1;10.0.0.3"}
    assert ("heartbeat", "policy_node/heartbeat") in there.nodes[0].remappings


def test_a_launch_that_would_start_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="starts nothing"):
        record(EXECUTOR, execute="false")


def test_config_is_a_path_or_a_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("{}")
    assert record(POLICY, config=str(mine)).nodes[0].parameters[0].path == str(mine)
    for file in (SHARE / "config").glob("*.yaml"):
        assert file.stem in record(POLICY).arguments["config"].description
    with pytest.raises(FileNotFoundError, match="neither a file nor one of: demo, pi05_aloha"):
        record(POLICY, config="no_such_robot")


def test_the_demo_adds_the_robot_and_ends_with_it() -> None:
    recording = record(DEMO, episodes="3", speed="0.1", namespace="r1", backend="pytorch")
    names = ["policy_node", "chunk_executor_node", "sim_robot_node"]
    assert [node.name for node in recording.nodes] == names
    robot = recording.node("sim_robot_node")
    assert (robot.values()["episodes"], robot.values()["speed"]) == (3, 0.1)
    assert robot.namespace == "r1" and robot.on_exit is not None
    assert ("commands", "chunk_executor_node/commands") in robot.remappings
    policy = recording.node("policy_node")
    assert policy.values()["checkpoint"] == str(SHARE / "checkpoints" / "demo")


class Started:
    """The processes of a recording, as launch would start them."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.logs = {node.name: folder / f"{node.name}.log" for node in recording.nodes}
        self.processes = {
            node.name: subprocess.Popen(
                node.argv(folder),
                stdout=self.logs[node.name].open("wb"),
                stderr=subprocess.STDOUT,
                env={**os.environ, **node.additional_env},
            )
            for node in recording.nodes
        }

    def require_alive(self) -> None:
        for name, process in self.processes.items():
            assert process.poll() in (None, 0), f"{name} died:\n{self.logs[name].read_text()}"

    def stop(self) -> dict[str, int]:
        for process in self.processes.values():
            process.terminate()
        try:
            return {name: process.wait(20) for name, process in self.processes.items()}
        finally:
            for process in self.processes.values():
                process.kill()


@pytest.fixture
def started(arm_checkpoint: Path, tmp_path: Path) -> Iterator[Started]:
    """The demo in simulated time, twice as fast as real: two episodes that run out of time."""
    recording = record(
        DEMO,
        checkpoint=str(arm_checkpoint),
        namespace="r1",
        episodes="2",
        use_sim_time="true",
        realtime_factor="2.0",
    )
    processes = Started(recording, tmp_path)
    yield processes
    processes.stop()


@pytest.mark.node
def test_the_demo_started_as_launched_runs_its_episodes(probe: Probe, started: Started) -> None:
    chunks = probe.listen(ActionChunk, "/r1/policy_node/action_chunk")
    results = probe.listen(EpisodeResult, "/r1/episode_result")
    probe.alive = started.require_alive
    probe.wait(lambda: len(results) == 2, "two episodes", patience_s=90.0)
    assert [result.episode for result in results] == [0, 1]
    assert all(result.outcome for result in results)
    assert chunks and {chunk.action_dim for chunk in chunks} == {5}
    assert {result.instruction for result in results} <= {chunk.instruction for chunk in chunks}
    assert chunks[-1].observed_at.sec < 1000, "simulated time, as use_sim_time says"
    robot = started.processes["sim_robot_node"]
    probe.wait(lambda: robot.poll() is not None, "the robot's own end")
    assert started.stop() == dict.fromkeys(started.processes, 0)
    for name, log in started.logs.items():
        assert "Traceback" not in log.read_text(), f"{name}:\n{log.read_text()}"


@pytest.mark.node
@pytest.mark.skipif(
    find_spec("launch_testing") is None, reason="launch is not part of the PyPI wheels of ROS 2"
)
def test_the_real_launch_brings_the_policy_to_active(arm_checkpoint: Path) -> None:
    file = Path(__file__).with_name("launched_policy.py")
    argv = [sys.executable, "-m", "launch_testing.launch_test", str(file)]
    done = subprocess.run(
        [*argv, f"checkpoint:={arm_checkpoint}"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The nodes for a user without rights or a home, on a system that can only be read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from std_msgs.msg import Float64MultiArray
from support.fake_robot import FakeRobot
from support.ros_probe import Probe
from support.unprivileged import CHECKOUT, NOBODY, as_nobody, refusal

from thor_policy_ros.model.checksums import write_checksums
from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros.diagnostics import WARN
from thor_policy_ros.ros.node_processes import EXECUTOR_REMAPS, NodeCommand, NodeProcesses

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(bool(why := refusal()), reason=f"not run: {why}"),
]

POLICY, EXECUTOR = "policy_node", "chunk_executor_node"
CONFIG = CHECKOUT / "config" / "demo.yaml"
HOMELESS = ("env", *(f"--unset={name}" for name in ("HOME", "USER", "ROS_LOG_DIR", "ROS_HOME")))
NO_PLACE = "/var/lib/thor_policy"
KEPT_NOWHERE = (
    ("state_file", f"{NO_PLACE}/state.json"),
    ("verification_report_dir", f"{NO_PLACE}/reports"),
    ("engine_cache_dir", f"{NO_PLACE}/engines"),
)
LOG_MOVED = re.compile(
    r"ROS logs cannot be written to ~/\.ros/log \(HOME is not set\): they are in"
    r" /tmp/thor_policy_ros_log_\w+; set ROS_LOG_DIR"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's, with checksums."""
    folder = tmp_path_factory.mktemp("read_only") / "demo"
    shutil.copytree(CHECKOUT / "checkpoints" / "demo", folder)
    write_checksums(folder)
    return folder


@pytest.fixture
def start(probe: Probe, checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., NodeProcesses]]:
    """Nodes as nobody; their logs are what they print."""
    with NodeProcesses(tmp_path / "printed") as processes:

        def start(temporary: bool, *modules: str) -> NodeProcesses:
            prefix = (*as_nobody([checkpoint], temporary), *HOMELESS)
            loaded = (("checkpoint", str(checkpoint)), ("require_checksums", "true"))
            nodes = (
                NodeCommand(POLICY, (CONFIG,), (*loaded, *KEPT_NOWHERE), prefix=prefix),
                NodeCommand(EXECUTOR, (CONFIG,), remaps=EXECUTOR_REMAPS, prefix=prefix),
            )
            processes.start([node for node in nodes if node.module in modules])
            probe.alive = processes.require_alive
            return processes

        yield start


def printed(processes: NodeProcesses, module: str) -> str:
    return processes.log_path(module).read_text()


def rights(pid: int) -> dict[str, list[str]]:
    """Of the process as the kernel tells them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, rest in (line.split(":", 1) for line in lines)}


def test_the_robot_moves_although_nothing_can_be_written(
    probe: Probe, start: Callable[..., NodeProcesses]
) -> None:
    FakeRobot(probe)
    chunks = probe.listen(ActionChunk, f"{POLICY}/action_chunk")
    commands = probe.listen(Float64MultiArray, f"{EXECUTOR}/commands")
    processes = start(False, POLICY, EXECUTOR)
    probe.wait(lambda: len(chunks) > 2, "chunks")
    probe.wait(lambda: len(commands) > 10, "commands")
    for module in (POLICY, EXECUTOR):
        found = rights(processes.pid(module))
        assert found["Uid"] == [str(NOBODY)] * 4 and found["Groups"] == []
        assert int(found["CapEff"][0], 16) == int(found["CapBnd"][0], 16) == 0
        assert "none is kept in files" in printed(processes, module)
    said = printed(processes, POLICY)
    assert "4 files agree with checksums.json" in said
    assert "the verification report is not written: [Errno 30] Read-only file system" in said
    assert probe.set_parameter(POLICY, "num_denoise_steps", 4).successful
    probe.diagnosis(f"{POLICY}: lifecycle", WARN, "state_file is not written: [Errno")
    seen = len(chunks)
    probe.wait(lambda: len(chunks) > seen + 2, "chunks after the change")


def test_logs_move_to_a_temporary_folder_where_there_is_one(
    probe: Probe, start: Callable[..., NodeProcesses]
) -> None:
    processes = start(True, EXECUTOR)
    probe.wait(lambda: LOG_MOVED.search(printed(processes, EXECUTOR)), "where the logs are")

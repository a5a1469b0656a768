"""A group of processes: one that dies is named with its last words, and none outlives the group."""

import os
import time

import pytest

from thor_policy_ros.ros import node_processes
from thor_policy_ros.ros.node_processes import NodeCommand, NodeDiedError, NodeProcesses


class ShellCommand(NodeCommand):
    """Stands in for a node: `module` names it, the first parameter is its program."""

    def argv(self) -> list[str]:
        return ["sh", "-c", self.parameters[0][1]]


def shell(name: str, program: str) -> ShellCommand:
    return ShellCommand(name, parameters=(("program", program),))


def wait_for(condition, limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


def test_arguments_become_ros_arguments(tmp_path) -> None:
    command = NodeCommand(
        "policy_node", (tmp_path / "demo.yaml",), (("backend", "pytorch"),), (("a", "b"),)
    )
    assert command.argv()[1:] == [
        "-m",
        "thor_policy_ros.ros.policy_node",
        "--ros-args",
        "--params-file",
        str(tmp_path / "demo.yaml"),
        "-p",
        "backend:=pytorch",
        "-r",
        "a:=b",
    ]


def test_a_node_that_dies_is_named_with_its_status_and_last_words(tmp_path) -> None:
    with NodeProcesses(tmp_path) as processes:
        processes.start([shell("fine", "sleep 60"), shell("broken", "echo no camera; exit 3")])
        with pytest.raises(NodeDiedError, match=r"broken ended with status 3(.|\n)*no camera"):
            wait_for(lambda: processes.require_alive())


def test_leaving_the_block_ends_every_process_even_a_stubborn_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node_processes, "STOP_GRACE_S", 0.3)
    program = "trap '' INT; echo $$; while :; do sleep 0.1; done"
    with NodeProcesses(tmp_path) as processes:
        processes.start([shell("stubborn", program)])
        log = processes.log_path("stubborn")
        wait_for(lambda: log.read_text().strip() != "")
        pid = int(log.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

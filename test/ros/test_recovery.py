"""What survives a crash."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from rcl_interfaces.srv import GetParameters
from support.ros_probe import Probe

from thor_policy_ros.ros.node_processes import NodeCommand, NodeProcesses
from thor_policy_ros.ros.recovery import keep_state, read_state


def test_parameters_outlive_the_process_and_the_newest_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    assert read_state(path) == {}
    assert keep_state(path, {"backend": "pytorch_pipelined", "num_denoise_steps": 4}) == ""
    assert keep_state(path, {"num_denoise_steps": 2}) == ""
    assert read_state(path) == {"backend": "pytorch_pipelined", "num_denoise_steps": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_disk_that_cannot_be_written_is_told_and_changes_nothing(tmp_path: Path) -> None:
    assert "not written" in keep_state(str(tmp_path / "absent" / "state.json"), {"a": 1})
    assert keep_state("", {"a": 1}) == ""


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for text in ("not json", "[1]"):
        path = tmp_path / "state.json"
        path.write_text(text)
        with pytest.raises(ValueError, match="remove it"):
            read_state(str(path))
        assert "remove it" in keep_state(str(path), {"a": 1})


@pytest.mark.node
def test_a_killed_policy_node_comes_back_with_the_parameters_that_were_set(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    parameters = (("autostart", "false"), ("state_file", str(state)))
    command = NodeCommand("policy_node", parameters=parameters)
    with NodeProcesses(tmp_path) as processes, Probe() as probe:
        processes.start([command])
        for name, value in (("num_denoise_steps", 4), ("backend", "pytorch_pipelined")):
            assert probe.set_parameter("policy_node", name, value).successful
        os.kill(processes.pid("policy_node"), signal.SIGKILL)
        probe.wait(lambda: not processes.alive("policy_node"), "the end of the process")
        probe.diagnostics.clear()
        processes.start([command])
        probe.wait(lambda: "policy_node: lifecycle" in probe.diagnostics, "the next process")
        request = GetParameters.Request(names=["num_denoise_steps", "backend"])
        values = probe.call(GetParameters, "policy_node/get_parameters", request).values
    assert (values[0].integer_value, values[1].string_value) == (4, "pytorch_pipelined")

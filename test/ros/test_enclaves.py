"""The table of what nodes may say and hear is what the running nodes do, and no node starts
without the security that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.ros_probe import Probe

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.enclaves import CAMERAS, Enclave, enclaves, full_name
from thor_policy_ros.ros.demo import share_dir
from thor_policy_ros.ros.node_processes import EXECUTOR_REMAPS, NodeCommand, NodeProcesses

pytestmark = pytest.mark.node

NODES = ("policy_node", "chunk_executor_node", "chunk_viewer_node", "sim_robot_node")
INFOS = [topic.replace("image_raw", "camera_info") for topic in CAMERAS]
SOMETIMES = {"/clock", *(f"/{topic}" for topic in (*CAMERAS, *INFOS))}
"""/clock with use_sim_time; the viewer hears one camera, whichever it is."""
ALONE = "TEST_ENCLAVES_ALONE"
WITHOUT = "This Fast DDS version doesn't have the security libraries"


def commands() -> list[NodeCommand]:
    share = share_dir()
    config = (share / "config" / "demo.yaml",)
    checkpoint = str((share / "checkpoints" / "demo").resolve())
    once = ("verification_observations", "1")
    of_policy = tuple((t, f"policy_node/{t}") for t in ("action_chunk", "frame_latency"))
    return [
        NodeCommand("policy_node", config, (("checkpoint", checkpoint), once)),
        NodeCommand("chunk_executor_node", config, (("output", "both"),), EXECUTOR_REMAPS),
        NodeCommand("chunk_viewer_node", config, (("robot_description_file", "''"),), of_policy),
        NodeCommand("sim_robot_node", config, (), (("commands", "chunk_executor_node/commands"),)),
    ]


def names_by(ask: Callable[[str, str], Any], node: str) -> set[str]:
    return {name for name, _ in ask(node, "/")}


def expected(names: tuple[str, ...], enclave: Enclave) -> set[str]:
    return {full_name(name, enclave.node, "/") for name in names}


def test_the_table_is_what_the_running_nodes_do(request: pytest.FixtureRequest) -> None:
    """In a process and a domain of its own: behind hundreds of nodes of other tests this process
    was seen, time and again, not to hear of some services of a new one."""
    if ALONE not in os.environ:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command.append(f"{__file__}::{request.node.name}")
        environment = {**os.environ, ALONE: "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-4000:]
        return
    folder = request.getfixturevalue("tmp_path")
    with NodeProcesses(folder) as processes, Probe() as probe:
        probe.alive = processes.require_alive
        processes.start(commands())
        unused = unused_by(probe)
    assert not unused, "nodes may more than they do"


def unused_by(probe: Probe) -> dict[str, set[str]]:
    """By node, what it may and does not do as far as is known after a while. AssertionError where
    one does what it may not."""

    def complete() -> bool:
        found = {name for name, _ in probe.get_node_names_and_namespaces()}
        return set(NODES) <= found and probe.count_subscribers(CAMERAS[1]) > 0

    def unused() -> dict[str, set[str]]:
        return {
            enclave.node: rest
            for enclave, _, found, wanted in compared(probe)
            if (rest := wanted - found - SOMETIMES)
        }

    probe.wait(complete, "all nodes, the policy configured", 90.0)
    probe.spin_for(2.0)
    with suppress(AssertionError):  # a busy machine hears late of what its nodes do
        probe.wait(lambda: not unused(), "everything that the table has", 10.0)
    for enclave, kind, found, wanted in compared(probe):
        assert found <= wanted, f"{enclave.node} would be refused to {kind}"
    return unused()


def compared(probe: Probe) -> Iterator[tuple[Enclave, str, set[str], set[str]]]:
    """Of each running node and kind: what it does, and what it may."""
    for enclave in enclaves():
        if enclave.node not in NODES:
            continue
        for kind, ask, listed in (
            ("publish", probe.get_publisher_names_and_types_by_node, enclave.publish),
            ("subscribe", probe.get_subscriber_names_and_types_by_node, enclave.subscribe),
            ("serve", probe.get_service_names_and_types_by_node, enclave.serve),
            ("request", probe.get_client_names_and_types_by_node, enclave.request),
        ):
            yield enclave, kind, names_by(ask, enclave.node), expected(listed, enclave)


def started_with_security(keystore: Path, node: str) -> tuple[int | None, str]:
    """Exit status (None where it runs after 20 s) and what was said."""
    environment = {
        **os.environ,
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(keystore),
    }
    command = [sys.executable, "-m", f"thor_policy_ros.ros.{node}"]
    command += ["--ros-args", "--enclave", f"/{node}", "-p", "joint_names:=[a]"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until_s = time.monotonic() + 20.0
    while process.poll() is None and time.monotonic() < until_s:
        time.sleep(0.1)
    status = process.poll()
    if status is None:
        process.terminate()
    return status, process.communicate(timeout=20.0)[0]


def test_without_its_keys_no_node_starts(tmp_path: Path) -> None:
    status, said = started_with_security(tmp_path / "absent", "chunk_executor_node")
    assert status not in (None, 0) and "refused to start" in said and "SECURITY ERROR" in said


def test_a_dds_without_security_starts_nothing_that_should_be_secure(tmp_path: Path) -> None:
    """As with the wheels; where Fast DDS was built with security the node runs."""
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    assert main(["security", "--out", str(tmp_path / "keystore"), "--domain", domain]) == 0
    status, said = started_with_security(tmp_path / "keystore", "chunk_executor_node")
    if status is None:
        pytest.skip("this ROS has DDS security: the node runs with its enclave")
    assert status != 0 and "refused to start" in said and WITHOUT in said

"""Policy and robot on two hosts (network namespaces): the demo runs, faults leave the arm safe,
and nothing is left of the hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from thor_policy_ros.ros.link_fault_scenarios import LINKS
from thor_policy_ros.ros.two_host_nodes import split
from thor_policy_ros.ros.two_host_run import nodes
from thor_policy_ros.ros.two_hosts import ADDRESSES, POLICY, ROBOT, TwoHosts, refusal

VETH, RELAYED = refusal(), refusal(relayed=True)
hosts_wanted = pytest.mark.skipif(bool(VETH), reason=VETH)
relay_wanted = pytest.mark.skipif(bool(RELAYED), reason=RELAYED)
FAULTS = ["link_cut_2_s", "link_loses_5_percent", "link_delays_50_ms"]
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9000))
print("ready", flush=True)
while True:
    data, sender = s.recvfrom(2000)
    s.sendto(data, sender)
"""
ASK = f"""
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.4)
heard, ms = 0, []
for _ in range(5):
    began = time.perf_counter()
    try:
        s.sendto(b"x", ("{ADDRESSES[POLICY]}", 9000))
        s.recv(100)
        heard += 1
        ms.append((time.perf_counter() - began) * 1e3)
    except OSError:
        pass
print(heard, min(ms, default=0.0))
"""


def asked(hosts: TwoHosts) -> tuple[int, float]:
    """Answers out of 5 from the policy's host to the robot's, and the fastest in ms."""
    argv = [*hosts.prefix(ROBOT), sys.executable, "-c", ASK]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    return int(said[0]), float(said[1])


def echoing(hosts: TwoHosts) -> subprocess.Popen[str]:
    argv = [*hosts.prefix(POLICY), sys.executable, "-c", ECHO]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def wait_until_gone(pid: int, what: str) -> None:
    deadline_s = time.monotonic() + 10.0
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, f"{what} is still there"
        time.sleep(0.05)


@relay_wanted
def test_a_cable_is_cut_and_mended_and_slow_and_lossy() -> None:
    with TwoHosts(relayed=True) as hosts, echoing(hosts) as echo:
        assert asked(hosts)[0] == 5
        hosts.cut()
        assert asked(hosts)[0] == 0
        hosts.mend()
        assert asked(hosts)[0] == 5
        hosts.impair(delay_s=0.05)
        heard, fastest_ms = asked(hosts)
        assert heard == 5 and fastest_ms >= 100.0, "50 ms each way"
        hosts.impair(loss=1.0)
        assert asked(hosts)[0] == 0
        echo.kill()


@hosts_wanted
def test_hosts_have_names_and_memory_of_their_own_and_go_with_their_block() -> None:
    with TwoHosts() as hosts:
        there = hosts.prefix(POLICY)
        name = subprocess.run([*there, "hostname"], capture_output=True, text=True, check=True)
        assert name.stdout.strip() == POLICY
        listed = subprocess.run([*there, "ls", "/dev/shm"], capture_output=True, check=True)
        assert listed.stdout == b""
        sleeper = subprocess.Popen([*there, "sleep", "60"])
        with pytest.raises(ValueError, match="relayed=True"):
            hosts.impair(loss=0.1)
        assert hosts.crossed()[0] >= 0
        keeper = int(there[1].split("/")[2])
        sleeper.kill()
        sleeper.wait()
    assert not Path(f"/proc/{keeper}").exists()


@relay_wanted
def test_nothing_outlives_a_process_that_is_killed() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from thor_policy_ros.ros.two_hosts import POLICY, TwoHosts\n"
        "with TwoHosts(relayed=True) as hosts:\n"
        "    there = hosts.prefix(POLICY)\n"
        "    command = [*there, 'sh', '-c', 'echo ready; exec sleep 60']\n"
        "    sleeper = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "    sleeper.stdout.readline()  # it is under way, and knows whose end is its own\n"
        "    relay = hosts._relay.pid\n"
        "    print(there[1].split('/')[2], sleeper.pid, relay, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 3
    process.kill()
    process.wait()
    process.stdout.close()
    for pid, what in zip(pids, ("the namespace", "a process in it", "the relay"), strict=True):
        wait_until_gone(pid, what)


@hosts_wanted
def test_the_policy_alone_runs_on_its_host_and_takes_compressed_images() -> None:
    with TwoHosts() as hosts:
        policy, executor, robot = split(nodes(1, 0), hosts, "jpeg", 80)
        assert (
            policy.argv()[0] == "nsenter" and "camera.base.transport:=compressed" in policy.argv()
        )
        assert executor.argv()[0] == robot.argv()[0] == sys.executable
        assert {"camera_transport:=jpeg", "jpeg_quality:=80"} <= set(robot.argv())
        raw = split(nodes(1, 0), hosts, "raw")[0]
        assert "camera.base.transport:=compressed" not in raw.argv()


def run(module: str, *arguments: str, found: Path) -> dict[str, Any]:
    argv = [sys.executable, "-m", f"thor_policy_ros.ros.{module}", *arguments]
    ended = subprocess.run(
        [*argv, "--json", str(found)],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(found.read_text())  # type: ignore[no-any-return]


@hosts_wanted
@pytest.mark.node
@pytest.mark.slow
def test_the_demo_runs_on_two_hosts_and_every_hop_is_told(tmp_path: Path) -> None:
    found = run("two_host_run", "--episodes", "1", found=tmp_path / "run.json")["runs"][0]
    assert found["episodes"] == 1 and found["frames"] >= 10
    for hop in ("camera_transport", "camera_decode", "camera_wait", "chunk_transport",
                "chunk_handover", "feedback_transport", "observation_to_command"):  # fmt: skip
        assert 0.0 < found["ms"][hop]["p50"] < 1000.0, hop
    assert found["ms"]["observation_to_command"]["p50"] > found["ms"]["total"]["p50"] * 0.5
    # Two cameras of JPEG and the joints; raw images would be 700 kB/s.
    assert 20.0 < found["robot_sends_kB_per_s"] < 500.0
    assert found["image_bytes"] < 64 * 64 * 3 / 2


@relay_wanted
@pytest.mark.node
@pytest.mark.slow
def test_faults_of_the_link_leave_the_robot_safe(tmp_path: Path) -> None:
    """A fault that is met under way: nothing exceeds a limit, and nobody restarts anything."""
    assert set(FAULTS) <= {scenario.name for scenario in LINKS}
    document = run("faults", "--only", *FAULTS, found=tmp_path / "faults.json")
    rows = {row["name"]: row for row in document["faults"]}
    assert sorted(rows) == sorted(FAULTS) and document["not_run"] == {}
    for row in rows.values():
        assert row["commands"] > 50 and row["recovered_s"] is not None
    cut = rows["link_cut_2_s"]
    assert "heartbeat" in cut["saw"] or "chunk" in cut["saw"], cut["saw"]
    assert cut["saw_s"] < 5.0

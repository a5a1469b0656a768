"""Two hosts on one machine: a network namespace each, joined by a cable of their own.

For the tests and the fault run. Nothing outlives the process that made them, however it ends: a
namespace is there as long as somebody is in it, its keeper ends with the pipe from here, and
what was started there is killed when this process is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROBOT, POLICY = "robot", "policy"
ADDRESSES = {ROBOT: "10.77.0.1", POLICY: "10.77.0.2"}
INTERFACE = "link0"
# Its own memory too: middleware that finds the other's shared memory would not use the network.
UNSHARE = ("unshare", "--net", "--uts", "--mount", "--ipc")
KEEPER = 'mount -t tmpfs tmpfs /dev/shm && hostname "$0" && echo ready && exec cat'
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "hostname")
TUN = Path("/dev/net/tun")
CLONE_NEWNET = 0x40000000
PATIENCE_S = 5.0


class NoNamespacesError(RuntimeError):
    """This machine does not let us make hosts; the text says why."""


def refusal(relayed: bool = False) -> str:
    """Why there can be no hosts here; '' where there can. relayed: with a cable that has faults."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"two hosts want {', '.join(missing)}: apt install iproute2 util-linux hostname"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces are not permitted (root may): {tried.stderr.strip()}"
    if relayed and not os.access(TUN, os.R_OK | os.W_OK):
        return f"a cable with faults wants {TUN}, which cannot be opened"
    return ""


class TwoHosts:
    """`robot` and `policy`, for the length of a `with` block.

    relayed: the cable is a process that can delay and lose frames, else a veth pair, which is
    faster. Raises NoNamespacesError where the machine refuses.
    """

    def __init__(self, relayed: bool = False) -> None:
        self._relayed = relayed
        self._keepers: dict[str, subprocess.Popen[str]] = {}
        self._relay: subprocess.Popen[str] | None = None

    def __enter__(self) -> TwoHosts:
        reason = refusal(self._relayed)
        if reason:
            raise NoNamespacesError(reason)
        try:
            for host in (ROBOT, POLICY):
                keeper = self._keepers[host] = _piped([*UNSHARE, "sh", "-c", KEEPER, host])
                _await_ready(keeper, f"the keeper of {host}")
            self._lay_cable()
            for host, address in ADDRESSES.items():
                self._ip(host, "address", "add", f"{address}/24", "dev", INTERFACE)
                self._ip(host, "link", "set", "lo", "up")
                self._set_link(host, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The cable first; then the keepers, with whom the namespaces go."""
        for process in (self._relay, *self._keepers.values()):
            if process is not None:
                assert process.stdin is not None
                process.stdin.close()
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        self._relay, self._keepers = None, {}

    # The cable

    def cut(self) -> None:
        """The interface of the robot's host goes down, as when its plug is pulled."""
        self._set_link(ROBOT, "down")

    def mend(self) -> None:
        self._set_link(ROBOT, "up")
        if self._relayed:
            self.impair()

    def impair(self, loss: float = 0.0, delay_s: float = 0.0) -> None:
        """Of every frame, each way. loss: share that is lost, 0 to 1. Raises ValueError for a
        veth pair, which has no faults, and for what is out of range."""
        if self._relay is None:
            raise ValueError("a cable with loss or delay wants TwoHosts(relayed=True)")
        if not (0.0 <= loss <= 1.0 and 0.0 <= delay_s <= 5.0):
            raise ValueError(f"wanted a loss of 0 to 1 and 0 to 5 s, got {loss} and {delay_s}")
        assert self._relay.stdin is not None
        self._relay.stdin.write(f"{loss} {delay_s}\n")
        self._relay.stdin.flush()

    def crossed(self) -> tuple[int, int]:
        """Bytes that the robot's host sent and received through the cable so far."""
        found = subprocess.run(
            [*self.prefix(ROBOT), "cat", "/proc/self/net/dev"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        line = next(row for row in found.splitlines() if row.strip().startswith(INTERFACE))
        figures = line.partition(":")[2].split()
        return int(figures[8]), int(figures[0])

    # Being there

    def prefix(self, host: str) -> tuple[str, ...]:
        """What to put before a command so that it runs on that host, and ends with us."""
        keeper = self._keepers[host].pid
        spaces = [f"--{kind}=/proc/{keeper}/ns/{file}" for kind, file in
                  (("net", "net"), ("uts", "uts"), ("mount", "mnt"), ("ipc", "ipc"))]  # fmt: skip
        return ("nsenter", *spaces, "setpriv", "--pdeathsig", "KILL", "--")

    @contextlib.contextmanager
    def entered(self, host: str) -> Iterator[None]:
        """This thread, and what it starts meanwhile, has that host's network and no other."""
        with Path("/proc/thread-self/ns/net").open("rb") as before:
            with Path(f"/proc/{self._keepers[host].pid}/ns/net").open("rb") as wanted:
                _set_network(wanted.fileno())
            try:
                yield
            finally:
                _set_network(before.fileno())

    def _set_link(self, host: str, state: str) -> None:
        self._ip(host, "link", "set", INTERFACE, state)
        if state == "up":  # goes with the interface
            self._ip(host, "route", "replace", "224.0.0.0/4", "dev", INTERFACE)

    def _ip(self, host: str, *words: str) -> None:
        _run([*self.prefix(host), "ip", *words])

    def _lay_cable(self) -> None:
        if not self._relayed:
            peer = str(self._keepers[POLICY].pid)
            self._ip(ROBOT, "link", "add", INTERFACE, "type", "veth",
                     "peer", "name", INTERFACE, "netns", peer)  # fmt: skip
            return
        # In a namespace of its own until each end is on its host.
        module = [sys.executable, "-m", "thor_policy_ros.ros.cable_relay"]
        self._relay = _piped(["unshare", "--net", *module, *ADDRESSES])
        _await_ready(self._relay, "the relay")
        there = f"--net=/proc/{self._relay.pid}/ns/net"
        for host, keeper in self._keepers.items():
            move = ["ip", "link", "set", host, "netns", str(keeper.pid), "name", INTERFACE]
            _run(["nsenter", there, *move])


def _set_network(descriptor: int) -> None:
    """setns(2) of this thread; os.setns came with Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _piped(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _await_ready(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if said != "ready":
        raise NoNamespacesError(f"{what} did not start; it said {said!r}")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespacesError(f"{' '.join(command)}: {done.stderr.strip()}")

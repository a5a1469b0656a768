"""The faults run's bench on two hosts: robot, executor and operator on one, policy on the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import rclpy

from thor_policy_ros.ros.fault_rig import POLICY, FaultRig, commands
from thor_policy_ros.ros.two_host_nodes import networked, split
from thor_policy_ros.ros.two_hosts import ROBOT, TwoHosts


class LinkFaultRig(FaultRig):
    """Also has the cable in its hand. Made in the robot host's network."""

    def __init__(self, folder: Path, hosts: TwoHosts) -> None:
        self.hosts, self._gone = hosts, False
        super().__init__(folder, sim_time=False, nodes=split(commands(folder, False), hosts))

    def lose_policy_host(self) -> None:
        """Its power goes: no process, no link, and nothing that says goodbye."""
        self.hosts.cut()
        self.kill(POLICY)
        self._gone = True

    def bring_policy_host_back(self) -> None:
        self._gone = False
        self.hosts.mend()

    def respawns(self, module: str) -> bool:
        return not (self._gone and module == POLICY)


@contextlib.contextmanager
def two_host_rig(folder: Path) -> Iterator[LinkFaultRig]:
    """Raises NoNamespacesError where there can be no hosts."""
    with TwoHosts(relayed=True) as hosts, networked(), hosts.entered(ROBOT):
        rclpy.init(args=[])
        try:
            yield LinkFaultRig(folder, hosts)
        finally:
            rclpy.try_shutdown()

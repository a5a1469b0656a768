"""The faults run's bench on two hosts: robot, executor and operator on one, policy on the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from thor_policy_ros.ros.conversions import seconds
from thor_policy_ros.ros.fault_rig import EXECUTOR, POLICY, FaultRig, commands
from thor_policy_ros.ros.two_host_nodes import networked, split
from thor_policy_ros.ros.two_hosts import ROBOT, TwoHosts


class LinkFaultRig(FaultRig):
    """Also has the cable in its hand. Made in the robot host's network."""

    def __init__(self, folder: Path, hosts: TwoHosts) -> None:
        self.hosts, self._gone = hosts, False
        self._behind_s = time.time() - time.monotonic()
        super().__init__(folder, sim_time=False, nodes=split(commands(folder, False), hosts))
        topic = f"{EXECUTOR}/commanded_state"
        self.create_subscription(JointState, topic, self._on_commanded, QoSProfile(depth=2000))

    def _on_command(self, message: Float64MultiArray) -> None:
        """Commands carry no stamp, and one that a busy rig misses looks like a leap: the same
        positions come with their stamps, all of them."""

    def _on_commanded(self, message: JointState) -> None:
        self.log.add(seconds(message.header.stamp) - self._behind_s, message.position)

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

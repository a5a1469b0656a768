"""Which node runs on which of the two hosts, and what it needs there.

The executor is on the robot's host: it must hold and stop the robot when the other host, or the
network to it, is gone, and its commands must not wait for a network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from thor_policy_ros.ros.node_processes import NodeCommand
from thor_policy_ros.ros.two_hosts import POLICY, TwoHosts

CAMERAS = ("base", "wrist")
# Discovery by multicast, as two hosts of one network do it.
NETWORKED = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}
COMPRESSED = tuple(
    pair
    for name in CAMERAS
    for pair in (
        (f"camera.{name}.topic", f"camera_{name}/image_raw/compressed"),
        (f"camera.{name}.transport", "compressed"),
    )
)


def split(
    nodes: Sequence[NodeCommand], hosts: TwoHosts, transport: str = "jpeg", quality: int = 90
) -> list[NodeCommand]:
    """The policy on its host, the others where they are started. transport: raw, jpeg or png."""
    camera = (("camera_transport", transport), ("jpeg_quality", str(quality)))
    result = []
    for node in nodes:
        if "policy" in node.module:
            images = () if transport == "raw" else COMPRESSED
            node = replace(
                node, prefix=hosts.prefix(POLICY), parameters=(*node.parameters, *images)
            )
        elif node.module == "sim_robot_node":
            node = replace(node, parameters=(*node.parameters, *camera))
        result.append(node)
    return result


@contextlib.contextmanager
def networked() -> Iterator[None]:
    """The environment of a node on two hosts; what was set comes back."""
    before = {name: os.environ.get(name) for name in NETWORKED}
    os.environ.update(NETWORKED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

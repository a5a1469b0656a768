"""What the ROS graph shows of a policy's inputs, as JSON.

`python -m thor_policy_ros.ros.graph_facts` listens for a few seconds and ends. The inputs are
those of the running policy node, or of a parameter file where none runs. Nothing is judged here;
`thor-policy doctor` does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import rclpy
import yaml
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import (
    QoSCompatibility,
    QoSProfile,
    qos_check_compatible,
)
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CompressedImage, Image, JointState

from thor_policy_ros.ros.conversions import seconds
from thor_policy_ros.ros.inputs import JOINT_STATES, sensor_qos
from thor_policy_ros.ros.parameter_tables import CAMERA, POLICY

KINDS = {
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/JointState": JointState,
}
GENERAL = (
    "cameras", "joint_names", "image_reliability", "backend", "checkpoint", "tokenizer",
    "policy_config", "control_rate_hz", "max_input_age_s", "engine_cache_dir",
)  # fmt: skip
ANSWER_S = 2.0
DISCOVERY_S = 1.0
OURS = ("policy_node", "chunk_executor_node")


@dataclass
class Input:
    """A topic that the policy wants, and what came on it.

    publishers: 'node (type, reliability)'. other_types: types published that are not `kind`.
    mismatches: publishers whose QoS cannot feed our subscription, with the reason.
    ages_s: of the messages by their stamps, None for a zero stamp.
    """

    name: str
    topic: str
    kind: str
    reliability: str
    publishers: list[str] = field(default_factory=list)
    other_types: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    received: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    ages_s: list[float | None] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        fields = asdict(self)
        ages = [age for age in fields.pop("ages_s") if age is not None]
        first_s, last_s = fields.pop("first_s"), fields.pop("last_s")
        spans = self.received - 1
        rate_hz = spans / (last_s - first_s) if spans > 0 and last_s > first_s else 0.0
        zero_stamps = self.received - len(ages)
        age_s = statistics.median(ages) if ages else None
        return {**fields, "rate_hz": rate_hz, "age_s": age_s, "zero_stamps": zero_stamps}


def inputs_of(values: Mapping[str, Any]) -> list[Input]:
    """The inputs that these parameters of a policy node ask for."""
    reliability = values["image_reliability"]
    found = []
    for camera in values["cameras"]:
        compressed = values[f"camera.{camera}.transport"] == "compressed"
        kind = "sensor_msgs/msg/" + ("CompressedImage" if compressed else "Image")
        topic = values[f"camera.{camera}.topic"]
        found.append(Input(f"camera {camera}", topic, kind, reliability))
    if values["joint_names"]:
        found.append(Input("state", JOINT_STATES, "sensor_msgs/msg/JointState", reliability))
    return found


def values_of_file(path: Path) -> dict[str, Any]:
    """Parameters of policy_node in a file, with the defaults of those it leaves out."""
    sections = yaml.safe_load(path.read_text()) or {}
    given: dict[str, Any] = {}
    for name, section in sections.items():
        if name.rsplit("/", 1)[-1] in ("policy_node", "**"):
            given.update(section.get("ros__parameters", {}))
    return with_defaults(given)


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for cameras that are no list of names."""
    rows = {row.name: row for row in POLICY}
    values = {name: given.get(name, rows[name].default) for name in GENERAL}
    cameras = values["cameras"]
    if not isinstance(cameras, (list, tuple)):
        raise ValueError(f"cameras wants a list of names, got {cameras!r}")
    for camera in cameras:
        for row in (row.for_item(camera) for row in CAMERA):
            values[row.name] = given.get(row.name, row.default)
    return values


class Listener(Node):
    """Asks a policy node for its parameters, and hears the inputs."""

    def __init__(self) -> None:
        super().__init__("thor_policy_doctor", start_parameter_services=False)
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)

    def spin_for(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._spinner.spin_once(timeout_sec=min(0.05, left_s))

    def values_of_node(self, node: str) -> dict[str, Any] | None:
        """The parameters of a running policy node; None where none answers."""
        general = self._ask(node, GENERAL)
        if general is None:
            return None
        cameras = general["cameras"] or ()
        of_cameras = [row.for_item(camera).name for camera in cameras for row in CAMERA]
        return {**general, **(self._ask(node, of_cameras) or {})}

    def _ask(self, node: str, names: Sequence[str]) -> dict[str, Any] | None:
        client = self.create_client(GetParameters, f"{node}/get_parameters")
        try:
            if not client.wait_for_service(timeout_sec=ANSWER_S):
                return None
            future = client.call_async(GetParameters.Request(names=list(names)))
            self._spinner.spin_until_future_complete(future, timeout_sec=ANSWER_S)
            answer = future.result() if future.done() else None
        finally:
            self.destroy_client(client)
        if answer is None or len(answer.values) != len(names):
            return None
        found = map(parameter_value_to_python, answer.values)
        return dict(zip(names, found, strict=True))

    def listen(self, inputs: Iterable[Input]) -> None:
        for one in inputs:
            kind, qos = KINDS[one.kind], sensor_qos("best_effort")  # hears every publisher
            self.create_subscription(kind, one.topic, partial(self._count, one), qos)

    def _count(self, one: Input, message: Any) -> None:
        one.last_s = time.monotonic()
        one.first_s = one.first_s or one.last_s
        one.received += 1
        stamp_s = seconds(message.header.stamp)
        now_s = self.get_clock().now().nanoseconds * 1e-9
        one.ages_s.append(now_s - stamp_s if stamp_s else None)

    def look_at(self, one: Input) -> None:
        """Publishers of an input: types, and whether their QoS can feed our subscription."""
        ours = sensor_qos(one.reliability)
        for endpoint in self.get_publishers_info_by_topic(one.topic):
            name = full_name(endpoint)
            reliability = endpoint.qos_profile.reliability.name.lower()
            one.publishers.append(f"{name} ({endpoint.topic_type}, {reliability})")
            if endpoint.topic_type != one.kind:
                one.other_types.append(f"{name} publishes {endpoint.topic_type}")
            elif reason := incompatibility(endpoint.qos_profile, ours):
                one.mismatches.append(f"{name}: {reason}")

    def mismatches(self) -> list[str]:
        """Every pair of a publisher and a subscription of our nodes that cannot talk."""
        found = []
        for topic, _ in self.get_topic_names_and_types():
            for ours in self.get_subscriptions_info_by_topic(topic):
                if ours.node_name not in OURS:
                    continue
                for theirs in self.get_publishers_info_by_topic(topic):
                    reason = incompatibility(theirs.qos_profile, ours.qos_profile)
                    if reason:
                        pair = f"{full_name(theirs)} to {full_name(ours)}"
                        found.append(f"{topic}, {pair}: {reason}")
        return found


def full_name(endpoint: TopicEndpointInfo) -> str:
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


def incompatibility(publisher: QoSProfile, subscription: QoSProfile) -> str:
    """Why messages do not get through, or ''."""
    compatible, reason = qos_check_compatible(publisher, subscription)
    return reason if compatible == QoSCompatibility.ERROR else ""


def gather(node: str, config: Path | None, duration_s: float) -> dict[str, Any]:
    """All facts; rclpy is initialised. node: full name of the policy node."""
    listener = Listener()
    listener.spin_for(DISCOVERY_S)
    values = listener.values_of_node(node)
    source = node if values is not None else str(config or "")
    if values is None and config is not None:
        values = values_of_file(config)
    inputs = inputs_of(values) if values is not None else []
    namespace = node.rsplit("/", 1)[0]
    for one in inputs:
        if not one.topic.startswith("/"):
            one.topic = f"{namespace}/{one.topic}"
    listener.listen(inputs)
    listener.spin_for(duration_s)
    for one in inputs:
        listener.look_at(one)
    return {
        **surroundings(),
        "nodes": sorted(
            f"{space.rstrip('/')}/{name}"
            for name, space in listener.get_node_names_and_namespaces()
            if name != listener.get_name()
        ),
        "policy_node": source if source == node else "",
        "parameters_of": source,
        "parameters": {name: (values or {}).get(name) for name in GENERAL},
        "inputs": [one.facts() for one in inputs],
        "mismatches": listener.mismatches(),
    }


def surroundings() -> dict[str, Any]:
    """Distribution, middleware and what the environment says of discovery."""
    return {
        "distribution": os.environ.get("ROS_DISTRO") or _distribution_of_wheels(),
        "rmw": rclpy.get_rmw_implementation_identifier(),
        "domain_id": os.environ.get("ROS_DOMAIN_ID", "0"),
        "discovery_range": os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", ""),
        "transports": os.environ.get("FASTDDS_BUILTIN_TRANSPORTS", ""),
    }


def _distribution_of_wheels() -> str:
    for package in metadata.distributions():
        named = re.fullmatch(r"ros-([a-z]+)-rclpy", package.name)
        if named:
            return f"{named.group(1)} (wheels, rclpy {package.version})"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", default="/policy_node", help="full name of the policy node")
    parser.add_argument("--config", type=Path, help="parameter file, where no policy node runs")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to listen")
    arguments = parser.parse_args(argv)
    rclpy.init(args=[])
    try:
        facts = gather(arguments.node, arguments.config, arguments.seconds)
    finally:
        rclpy.try_shutdown()
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

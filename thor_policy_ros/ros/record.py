"""Records a policy node's inputs and outputs as an MCAP bag, until Ctrl-C or --seconds.

`python -m thor_policy_ros.ros.record -o BAG`, or `thor-policy record`. Cameras, joint states,
instruction; chunks, latencies, what each frame was computed from, diagnostics. The node's
parameters are in the bag's metadata. A second line of output is JSON with the counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from ament_index_python.packages import get_package_share_directory
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

import thor_policy_ros
from thor_policy_ros.msg import ActionChunk, ChunkFeedback, FrameInputs, FrameLatency
from thor_policy_ros.ros.bag_writer import MB, PACKAGE, BagWriter, Bounds, typestore
from thor_policy_ros.ros.chunk_answers import TOPIC as FEEDBACK
from thor_policy_ros.ros.inputs import JOINT_STATES, LATCHED

DEPTH = 200
DISCOVERY_S, ANSWER_S, ASKED = 10.0, 5.0, 3


@dataclass(frozen=True)
class Wanted:
    """A topic to record. needed: without it there is nothing to replay."""

    topic: str
    kind: Any
    needed: bool = True
    latched: bool = False

    @property
    def type_name(self) -> str:
        package = self.kind.__module__.split(".")[0]
        return f"{package}/msg/{self.kind.__name__}"


def wanted_topics(node: str, values: Mapping[str, Any]) -> list[Wanted]:
    """Of a policy node with these parameters; topics are absolute."""
    space = node.rsplit("/", 1)[0]

    def absolute(topic: str) -> str:
        return topic if topic.startswith("/") else f"{space}/{topic}"

    found = []
    for camera in values["cameras"]:
        compressed = values[f"camera.{camera}.transport"] == "compressed"
        kind = CompressedImage if compressed else Image
        found.append(Wanted(absolute(values[f"camera.{camera}.topic"]), kind))
    if values["joint_names"]:
        found.append(Wanted(absolute(JOINT_STATES), JointState))
    return [
        *found,
        Wanted(absolute("instruction"), String, needed=False, latched=True),
        Wanted(f"{node}/action_chunk", ActionChunk),
        Wanted(f"{node}/frame_latency", FrameLatency),
        Wanted(f"{node}/frame_inputs", FrameInputs),
        Wanted(absolute(FEEDBACK), ChunkFeedback, needed=False),
        Wanted("/diagnostics", DiagnosticArray, needed=False),
    ]


class Recorder(Node):
    """Takes serialised messages as they come; nothing is decoded here."""

    def __init__(self) -> None:
        super().__init__("thor_policy_recorder", start_parameter_services=False)
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)

    def spin_once(self, limit_s: float = 0.1) -> None:
        self._spinner.spin_once(timeout_sec=limit_s)

    def parameters_of(self, node: str) -> dict[str, Any]:
        """Of a running policy node. Raises ValueError where none answers."""
        listed = self._ask(node, ListParameters, "list_parameters", [ListParameters.Request()])
        names = listed[0].result.names
        # One by one: a parameter that is not set makes rclpy's node answer nothing at all.
        requests = [GetParameters.Request(names=[name]) for name in names]
        answers = self._ask(node, GetParameters, "get_parameters", requests)
        found = zip(names, answers, strict=True)
        return {name: _plain(answer.values[0]) for name, answer in found if answer.values}

    def _answer(self, client: Any, request: Any) -> Any:
        """A server drops the answer to a client that it has not discovered: asked again."""
        for _ in range(ASKED):
            future = client.call_async(request)
            self._spinner.spin_until_future_complete(future, timeout_sec=ANSWER_S)
            if future.done():
                return future.result()
        return None

    def _ask(self, node: str, kind: Any, service: str, requests: Sequence[Any]) -> list[Any]:
        client = self.create_client(kind, f"{node}/{service}")
        try:
            if client.wait_for_service(timeout_sec=DISCOVERY_S):
                answers = [self._answer(client, request) for request in requests]
                if None not in answers:
                    return answers
        finally:
            self.destroy_client(client)
        raise ValueError(
            f"no policy node answers as {node}; start it, name it with --node, or compare "
            "ROS_DOMAIN_ID"
        )

    def missing(self, topics: Sequence[Wanted], limit_s: float) -> list[str]:
        """Needed topics that nobody has begun to publish within the limit."""
        end_s = time.monotonic() + limit_s
        while True:
            absent = [t.topic for t in topics if t.needed and not self.count_publishers(t.topic)]
            if not absent or time.monotonic() > end_s:
                return absent
            self.spin_once()

    def listen(self, wanted: Wanted, writer: BagWriter) -> None:
        """As reliably as all its publishers offer it."""
        offers = self.get_publishers_info_by_topic(wanted.topic)
        best_effort = any(
            offer.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for offer in offers
        )
        reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
        qos = LATCHED if wanted.latched else QoSProfile(depth=DEPTH, reliability=reliability)
        self.create_subscription(
            wanted.kind, wanted.topic, partial(_put, writer, wanted.topic), qos, raw=True
        )


def _put(writer: BagWriter, topic: str, data: bytes) -> None:
    writer.put(topic, time.time_ns(), data)


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    plain = parameter_value_to_python(value)
    if isinstance(plain, (str, bool, int, float)) or plain is None:
        return plain
    return list(plain)


def machine() -> dict[str, Any]:
    """The computer that records, often the robot's own."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "ros_distro": os.environ.get("ROS_DISTRO", ""),
        "rmw": rclpy.get_rmw_implementation_identifier(),
    }


def record(arguments: argparse.Namespace, recorder: Recorder) -> int:
    """0, or 1 when the recording ended early or lacks what a replay needs."""
    values = recorder.parameters_of(arguments.node)
    topics = wanted_topics(arguments.node, values)
    absent = recorder.missing(topics, arguments.wait)
    if absent:
        raise ValueError(
            f"nobody publishes {', '.join(absent)}; start what does, or look at the camera.*.topic "
            "parameters"
        )
    bounds = Bounds(arguments.queue_mb * MB, arguments.keep_free_mb * MB)
    writer: BagWriter
    known = {
        "version": thor_policy_ros.__version__,
        "node": arguments.node,
        "parameters": values,
        "recorder": machine(),
    }

    def facts() -> dict[str, Any]:
        return {**known, "dropped": dict(writer.dropped)}

    store = typestore(Path(get_package_share_directory(PACKAGE)) / "msg")
    writer = BagWriter(arguments.output, store, facts, bounds, known)
    for wanted in topics:
        writer.add_topic(wanted.topic, wanted.type_name)
    writer.start()
    for wanted in topics:
        recorder.listen(wanted, writer)
    sys.stdout.write(f"recording {len(topics)} topics to {arguments.output}; Ctrl-C ends it\n")
    sys.stdout.flush()
    begun_s = time.monotonic()
    _wait(recorder, writer, arguments.seconds)
    failure = writer.close()
    empty = [t.topic for t in topics if t.needed and not writer.counts[t.topic]]
    summary = {
        "bag": str(arguments.output),
        "seconds": round(time.monotonic() - begun_s, 3),
        "messages": dict(writer.counts),
        "dropped": dict(writer.dropped),
        "failure": failure or (f"no message came on {', '.join(empty)}" if empty else ""),
    }
    sys.stdout.write(json.dumps(summary) + "\n")
    if summary["failure"]:
        sys.stderr.write(f"error: {summary['failure']}\n")
    return 1 if summary["failure"] else 0


def _wait(recorder: Recorder, writer: BagWriter, seconds: float) -> None:
    """Until it is told to end, the time is over or the disk is full."""
    asked: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: asked.append(number))
    end_s = time.monotonic() + seconds
    while not asked and not writer.failure and time.monotonic() < end_s:
        try:
            recorder.spin_once(min(0.1, max(end_s - time.monotonic(), 0.0)))
        except ExternalShutdownException:
            return


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    rclpy.init(args=[], signal_handler_options=rclpy.SignalHandlerOptions.NO)
    try:
        return record(arguments, Recorder())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        rclpy.try_shutdown()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the new bag")
    parser.add_argument("--node", default="/policy_node", help="full name of the policy node")
    parser.add_argument("--seconds", type=float, default=math.inf, help="default: until Ctrl-C")
    parser.add_argument("--wait", type=float, default=5.0, help="seconds for topics to appear")
    parser.add_argument("--queue-mb", type=int, default=256, help="messages that may wait")
    parser.add_argument("--keep-free-mb", type=int, default=500, help="left on the disk")


if __name__ == "__main__":
    raise SystemExit(main())

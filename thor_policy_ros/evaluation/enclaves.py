"""What each node may say and hear under DDS security: one table, which test/ros holds against the
running nodes. Everything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

POLICY, EXECUTOR, VIEWER = "policy_node", "chunk_executor_node", "chunk_viewer_node"
ROBOT, OPERATOR = "sim_robot_node", "operator"
CAMERAS = ("camera_base/image_raw", "camera_wrist/image_raw")

_OF_EVERY_NODE = ("/rosout", "/parameter_events")
_PARAMETERS = tuple(
    f"~/{name}"
    for name in (
        "describe_parameters",
        "get_parameter_types",
        "get_parameters",
        "get_type_description",
        "list_parameters",
        "set_parameters",
        "set_parameters_atomically",
    )
)
_LIFECYCLE = tuple(
    f"~/{name}"
    for name in (
        "change_state",
        "get_available_states",
        "get_available_transitions",
        "get_state",
        "get_transition_graph",
    )
)
_STOPS = ("~/reset", "~/enable", "~/estop", "~/reset_estop")


@dataclass(frozen=True)
class Enclave:
    """Names as in ROS: `~/x` of the node itself, `/x` absolute, `x` in the namespace.

    node: also the last part of the enclave's path. serve, request: services.
    """

    node: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    serve: tuple[str, ...] = _PARAMETERS
    request: tuple[str, ...] = ()


def _beside(topic: str, name: str) -> str:
    """As image_transport has it: `camera/camera_info` of `camera/image_raw`."""
    folder, slash, _ = topic.rpartition("/")
    return f"{folder}{slash}{name}"


def enclaves(
    cameras: Sequence[str] = CAMERAS,
    commands: str = f"{EXECUTOR}/commands",
    trajectory: str = f"{EXECUTOR}/joint_trajectory",
) -> tuple[Enclave, ...]:
    """Of the package's nodes as the launch files start them, and `operator` for people's tools:
    it may stop the robot, set parameters and give words, and cannot publish a chunk.

    cameras: topics of the policy's cameras; camera_info is beside each. commands, trajectory:
    where the executor's go.
    """
    of_policy = tuple(f"{POLICY}/{t}" for t in ("action_chunk", "frame_latency", "heartbeat"))
    chunks, latency, heartbeat = of_policy
    joints, words, feedback = "joint_states", "instruction", "chunk_feedback"
    infos = tuple(dict.fromkeys(_beside(topic, "camera_info") for topic in cameras))
    commanded = f"{EXECUTOR}/commanded_state"
    inputs, transitions = f"{POLICY}/frame_inputs", f"{POLICY}/transition_event"
    drawn = ("annotated_image", "joint_trajectory", "markers", "path")
    policy_services = (*_PARAMETERS, *_LIFECYCLE, "~/reset")
    executor_services = (*_PARAMETERS, *_STOPS)
    return (
        Enclave(
            POLICY,
            (*_OF_EVERY_NODE, "/diagnostics", *of_policy, inputs, transitions),
            ("/clock", *cameras, joints, words, feedback),
            policy_services,
        ),
        Enclave(
            EXECUTOR,
            (*_OF_EVERY_NODE, "/diagnostics", commands, trajectory, commanded, feedback),
            ("/clock", chunks, heartbeat, joints),
            executor_services,
        ),
        Enclave(
            VIEWER,
            (*_OF_EVERY_NODE, *(f"{VIEWER}/{topic}" for topic in drawn)),
            ("/clock", *cameras, *infos, chunks, latency, "robot_description"),
        ),
        Enclave(
            ROBOT,
            (
                *(*_OF_EVERY_NODE, "/diagnostics", "/clock", *cameras, *infos),
                *(joints, words, "episode_result"),
            ),
            (commands,),
            request=(f"{POLICY}/reset", f"{EXECUTOR}/reset"),
        ),
        Enclave(
            OPERATOR,
            (*_OF_EVERY_NODE, words),
            (
                *_OF_EVERY_NODE,
                *("/clock", "/diagnostics", *cameras, joints, words, feedback),
                *(*of_policy, inputs, transitions, commands, trajectory, commanded),
            ),
            serve=(),
            request=(
                *(name.replace("~", POLICY) for name in policy_services),
                *(name.replace("~", EXECUTOR) for name in executor_services),
            ),
        ),
    )


def full_name(name: str, node: str, namespace: str) -> str:
    """As ROS resolves it; `namespace` is '/' or begins with it."""
    prefix = namespace.rstrip("/")
    if name.startswith("~/"):
        return f"{prefix}/{node}/{name[2:]}"
    return name if name.startswith("/") else f"{prefix}/{name}"


def enclave_path(enclave: Enclave, namespace: str) -> str:
    """Of `--enclave`: the namespace and the node."""
    return f"{namespace.rstrip('/')}/{enclave.node}"


def enclave_arguments(node: str, namespace: str, environ: Mapping[str, str]) -> list[str]:
    """For a launch file: ROS arguments that give the node its enclave where security is on."""
    if environ.get("ROS_SECURITY_ENABLE") != "true":
        return []
    return ["--enclave", full_name(node, node, f"/{namespace.strip('/')}")]


@dataclass(frozen=True)
class DdsTopics:
    """The same rights in the names of DDS: `rt/` topics, `rq/` requests, `rr/` replies."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def dds_topics(enclave: Enclave, namespace: str) -> DdsTopics:
    """With what rmw itself says to find the nodes."""

    def named(prefix: str, names: Sequence[str], ending: str) -> list[str]:
        return [f"{prefix}{full_name(n, enclave.node, namespace)}{ending}" for n in names]

    publish = named("rt", enclave.publish, "") + named("rr", enclave.serve, "Reply")
    subscribe = named("rt", enclave.subscribe, "") + named("rq", enclave.serve, "Request")
    publish += named("rq", enclave.request, "Request")
    subscribe += named("rr", enclave.request, "Reply")
    own = ["ros_discovery_info"]
    return DdsTopics(tuple(own + sorted(publish)), tuple(own + sorted(subscribe)))


def policy_xml(chosen: Sequence[Enclave], namespace: str) -> str:
    """The table as `ros2 security create_permission` reads it."""
    policy = ElementTree.Element("policy", version="0.2.0")
    rows = ElementTree.SubElement(policy, "enclaves")
    for enclave in chosen:
        row = ElementTree.SubElement(rows, "enclave", path=enclave_path(enclave, namespace))
        profiles = ElementTree.SubElement(row, "profiles")
        profile = ElementTree.SubElement(profiles, "profile", ns=namespace, node=enclave.node)
        for kind, right, names in (
            ("topic", "publish", enclave.publish),
            ("topic", "subscribe", enclave.subscribe),
            ("service", "reply", enclave.serve),
            ("service", "request", enclave.request),
        ):
            if names:
                group = ElementTree.SubElement(profile, f"{kind}s", {right: "ALLOW"})
                for name in names:
                    ElementTree.SubElement(group, kind).text = name
    ElementTree.indent(policy)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(policy, "unicode")

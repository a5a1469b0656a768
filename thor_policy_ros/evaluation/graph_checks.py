"""Judges the ROS graph for `thor-policy doctor`, from what `ros.graph_facts` saw of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thor_policy_ros.evaluation.checks import Check, fine, note, wrong

RATE_MARGIN = 0.9
FUTURE_S = 0.05  # as the node takes it: runtime.latest_frames.CLOCK_TOLERANCE_S

Facts = Mapping[str, Any]


def check_graph(facts: Facts) -> list[Check]:
    """ROS itself, the nodes, every input, and QoS."""
    return [
        *check_surroundings(facts),
        check_nodes(facts),
        *(check_input(one, facts["parameters"], bool(facts["nodes"])) for one in facts["inputs"]),
        check_qos(facts["mismatches"]),
    ]


def check_surroundings(facts: Facts) -> list[Check]:
    if not facts["distribution"]:
        ros = note("ros", "runs, but ROS_DISTRO is not set", "source /opt/ros/jazzy/setup.bash")
    else:
        ros = fine("ros", str(facts["distribution"]))
    says = f"{facts['rmw']}, domain {facts['domain_id']}"
    if facts["discovery_range"]:
        says += f", discovery {facts['discovery_range']}"
    if facts["transports"] and facts["discovery_range"] == "LOCALHOST":
        middleware = note(
            "rmw",
            f"{says}: LOCALHOST undoes FASTDDS_BUILTIN_TRANSPORTS, large images get lost",
            "unset ROS_AUTOMATIC_DISCOVERY_RANGE",
        )
    else:
        middleware = fine("rmw", says)
    return [ros, middleware]


def check_nodes(facts: Facts) -> Check:
    nodes = facts["nodes"]
    if facts["policy_node"]:
        return fine("policy node", f"{facts['policy_node']} answers; {len(nodes)} nodes seen")
    seen = f"{len(nodes)} other nodes seen" if nodes else "no node seen in this domain"
    return note(
        "policy node",
        f"none answers; {seen}; inputs as {facts['parameters_of'] or 'nobody'} names them",
        "ros2 launch thor_policy_ros policy.launch.py checkpoint:=FOLDER",
    )


def check_input(one: Facts, parameters: Facts, anybody: bool) -> Check:
    """One topic. anybody: other nodes are up, so a silent topic is wrong, not only absent."""
    subject, topic = str(one["name"]), str(one["topic"])
    if one["other_types"]:
        kind = one["kind"].rsplit("/", 1)[-1]
        return wrong(
            subject,
            f"{topic}: {'; '.join(one['other_types'])}, wanted {one['kind']}",
            f"set the camera's topic, or its transport: {kind} is what was asked for",
        )
    if one["mismatches"]:
        return wrong(
            subject,
            f"{topic}: QoS does not match: {'; '.join(one['mismatches'])}",
            "set image_reliability: best_effort, or make the driver reliable",
        )
    if not one["publishers"]:
        judge = wrong if anybody else note
        return judge(subject, f"{topic}: nobody publishes", "start the driver; ros2 topic list -t")
    if not one["received"]:
        return wrong(
            subject,
            f"{topic}: {one['publishers'][0]} publishes, nothing arrives",
            f"ros2 topic hz {topic}; for large images, large_images:=true and the same transport "
            "at the driver",
        )
    return _check_news(subject, one, parameters)


def _check_news(subject: str, one: Facts, parameters: Facts) -> Check:
    rate_hz, age_s = one["rate_hz"], one["age_s"]
    says = f"{one['topic']}: {rate_hz:.1f} Hz"
    if one["zero_stamps"]:
        return wrong(
            subject,
            f"{says}, {one['zero_stamps']} of {one['received']} stamps are zero",
            "make the driver stamp its messages, or set accept_zero_stamps: true",
        )
    says += f", {age_s * 1e3:.0f} ms old on arrival"
    limit_s = parameters["max_input_age_s"]
    if age_s < -FUTURE_S:
        return wrong(subject, f"{says}: stamped in the future", "synchronise the clocks: chrony")
    if age_s > limit_s:
        return wrong(
            subject,
            f"{says}, at most {limit_s:g} s is taken",
            "synchronise the clocks (chrony), shorten the driver's queue, or raise "
            "max_input_age_s; with simulated time run this with the same /clock",
        )
    if rate_hz < RATE_MARGIN * parameters["control_rate_hz"]:
        return note(
            subject,
            f"{says}: slower than control_rate_hz {parameters['control_rate_hz']:g}",
            "raise the driver's rate, or lower control_rate_hz",
        )
    return fine(subject, says)


def check_qos(mismatches: Sequence[str]) -> Check:
    if mismatches:
        return wrong("qos", "; ".join(mismatches), "make publisher and subscription agree")
    return fine("qos", "no publisher is shut out from our nodes")


def no_graph(reason: str) -> Check:
    """The subprocess gave no facts."""
    return wrong("ros", reason, "source .venv/setup.bash (or your workspace's install/setup.bash)")

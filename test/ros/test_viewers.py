"""The shipped layouts are valid, name what the code publishes, and are started by the launch."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from ament_index_python.packages import get_package_share_directory
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path as PathMsg
from sensor_msgs.msg import Image
from std_msgs.msg import String
from support.launch_recorder import LaunchRefusedError, Recording, record
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

import thor_policy_ros
from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros.chunk_viewer_node import ChunkViewerNode
from thor_policy_ros.ros.policy_node import PolicyNode

ROOT = Path(thor_policy_ros.__file__).resolve().parents[1]
LAYOUTS = ROOT / "config" / "viewers"
LAUNCH = Path(get_package_share_directory("thor_policy_ros")) / "launch"
POLICY, VIEWERS = LAUNCH / "policy.launch.py", LAUNCH / "viewers.launch.py"
KINDS = {
    "/diagnostics": DiagnosticArray,
    "/policy_node/frame_latency": FrameLatency,
    "/policy_node/action_chunk": ActionChunk,
    "/chunk_viewer_node/path": PathMsg,
    "/chunk_viewer_node/markers": MarkerArray,
    "/chunk_viewer_node/annotated_image": Image,
    "/chunk_viewer_node/joint_trajectory": JointTrajectory,
}
FROM_ELSEWHERE = {"/robot_description": String}  # robot_state_publisher's
RVIZ = {"Path": PathMsg, "MarkerArray": MarkerArray, "Image": Image, "RobotModel": String}


@pytest.fixture(scope="module")
def published(ros: None) -> Iterator[dict[str, list[str]]]:
    """Topics of the real nodes, with their types."""
    nodes: list[Any] = [PolicyNode(), ChunkViewerNode()]
    found: dict[str, list[str]] = {}
    for node in nodes:
        names = node.get_publisher_names_and_types_by_node(node.get_name(), "/")
        found.update(dict(names))
    yield found
    for node in nodes:
        node.close()
        node.destroy_node()


def test_the_nodes_publish_what_the_layouts_rely_on(published: dict[str, list[str]]) -> None:
    for topic, kind in KINDS.items():
        package, name = kind.__module__.split(".")[0], kind.__name__
        assert published[topic] == [f"{package}/msg/{name}"], topic


def require_field(path: str) -> None:
    """`/node/topic/field` or `/node/topic.field` names a plain field of the topic's message."""
    topic = next((t for t in KINDS if path.startswith((f"{t}/", f"{t}."))), None)
    assert topic is not None, f"{path}: no such topic"
    field = path[len(topic) + 1 :]
    kinds = KINDS[topic].get_fields_and_field_types()
    assert kinds.get(field) in ("float", "double", "string", "uint32", "uint64", "boolean"), path


def test_rviz() -> None:
    config = yaml.safe_load((LAYOUTS / "thor_policy.rviz").read_text())
    manager = config["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == "base_link"
    shown = set()
    for display in manager["Displays"]:
        package, _, kind = display["Class"].partition("/")
        assert package == "rviz_default_plugins"
        topic = display.get("Topic", display.get("Description Topic"))
        if topic is None:
            assert kind in ("Grid", "TF")
            continue
        known = {**KINDS, **FROM_ELSEWHERE}
        assert known[topic["Value"]] is RVIZ[kind], display
        assert topic["Reliability Policy"] in ("Reliable", "Best Effort")
        assert topic["Durability Policy"] in ("Volatile", "Transient Local")
        shown.add(kind)
    assert {"Path", "MarkerArray", "Image"} <= shown


def test_foxglove() -> None:
    layout = json.loads((LAYOUTS / "foxglove_layout.json").read_text())
    panels = layout["configById"]
    assert sorted(leaves(layout["layout"])) == sorted(panels)
    for name, panel in panels.items():
        kind = name.partition("!")[0]
        if kind in ("Plot", "StateTransitions"):
            assert panel["paths"]
            for path in panel["paths"]:
                require_field(path["value"])
        elif kind == "Image":
            assert KINDS[panel["imageMode"]["imageTopic"]] is Image
        elif kind == "3D":
            assert {KINDS[topic] for topic in panel["topics"]} == {PathMsg, MarkerArray}
        else:
            assert kind == "DiagnosticSummary" and panel["topicToRender"] == "/diagnostics"


def leaves(layout: Any) -> list[str]:
    """Panels of a tree that splits in two everywhere."""
    if isinstance(layout, str):
        return [layout]
    assert layout["direction"] in ("row", "column") and 0 < layout["splitPercentage"] < 100
    return leaves(layout["first"]) + leaves(layout["second"])


def test_rqt() -> None:
    perspective = json.loads((LAYOUTS / "thor_policy.perspective").read_text())
    manager = perspective["groups"]["pluginmanager"]
    running = ast.literal_eval(manager["keys"]["running-plugins"]["repr"])
    for plugin, numbers in running.items():
        for number in numbers:
            assert f"plugin__{plugin.replace('/', '__')}__{number}" in manager["groups"]
    assert len(running) == len(manager["groups"])
    plot = manager["groups"]["plugin__rqt_plot__Plot__1"]["groups"]["plugin"]["keys"]
    for path in ast.literal_eval(plot["topics"]["repr"]):
        require_field(path)
    image = manager["groups"]["plugin__rqt_image_view__ImageView__1"]["groups"]["plugin"]["keys"]
    assert KINDS[ast.literal_eval(image["topic"]["repr"])] is Image


def test_plotjuggler() -> None:
    root = ElementTree.parse(LAYOUTS / "plotjuggler_layout.xml").getroot()
    curves = [curve.get("name", "") for curve in root.iter("curve")]
    assert len(curves) > 8
    for name in curves:
        require_field(name)
    subscribed = {topic.get("name", "") for topic in root.iter("topic")}
    assert subscribed <= set(KINDS)
    assert {name.rpartition("/")[0] for name in curves} <= subscribed
    for splitter in root.iter("DockSplitter"):
        sizes = splitter.get("sizes", "").split(";")
        assert len(sizes) == int(splitter.get("count", "0")) == len(splitter.findall("DockArea"))


ALL = {"rviz": "rviz2", "rqt": "rqt_gui", "foxglove": "foxglove_bridge"}


def names(recording: Recording) -> set[str]:
    return {node.name for node in recording.nodes}


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *packages: str) -> None:
    """As the ament index shows packages."""
    index = folder / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    for package in packages:
        (index / package).touch()
    paths = os.pathsep.join([str(folder), os.environ["AMENT_PREFIX_PATH"]])
    monkeypatch.setenv("AMENT_PREFIX_PATH", paths)


def test_by_default_no_viewer_is_started() -> None:
    recording = record(POLICY)
    assert names(recording) == {"policy_node"} and recording.said == []


def test_a_viewer_that_is_missing_is_said_to_be_and_the_rest_starts() -> None:
    recording = record(POLICY, rviz="true", rqt="true", foxglove="true")
    assert names(recording) == {"policy_node", "chunk_viewer_node"}
    assert len(recording.said) == 3
    for argument, package in ALL.items():
        (line,) = [line for line in recording.said if line.startswith(f"{argument}:=true")]
        assert f"{package} is not installed" in line
        assert re.search(rf"apt install ros-\w+-{package.replace('_', '-')}$", line)


def test_viewers_that_are_installed_start_with_their_layouts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, *ALL.values(), "diagnostic_aggregator")
    recording = record(POLICY, rviz="true", rqt="true", foxglove="true", namespace="left")
    assert {"rviz2", "rqt", "foxglove_bridge", "analyzers", "chunk_viewer_node"} < names(recording)
    for name, flag in (("rviz2", "-d"), ("rqt", "--perspective-file")):
        node = recording.node(name)
        assert node.arguments[0] == flag and Path(node.arguments[1]).is_file()
        moved = dict(node.remappings)
        assert moved["/chunk_viewer_node/path"] == "/left/chunk_viewer_node/path"
        assert set(moved) == set(KINDS) - {"/diagnostics"}
    assert Path(recording.node("analyzers").parameters[0].path).is_file()
    assert any("8765" in line and "foxglove_layout.json" in line for line in recording.said)
    viewer = recording.node("chunk_viewer_node")
    assert viewer.namespace == "left"
    assert ("action_chunk", "policy_node/action_chunk") in viewer.remappings


def test_without_the_aggregator_rqt_starts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "rqt_gui")
    recording = record(VIEWERS, rqt="true")
    assert "rqt" in names(recording) and "analyzers" not in names(recording)
    assert "diagnostic-aggregator" in recording.said[0]


def test_the_chunk_viewer_can_be_started_or_left_out_by_hand() -> None:
    assert names(record(VIEWERS, viewer="true", config="demo")) == {"chunk_viewer_node"}
    assert names(record(VIEWERS, viewer="false", rviz="true")) == set()
    with pytest.raises(LaunchRefusedError):
        record(VIEWERS, rviz="yes")

"""What the chunk viewer shows: joint trajectory, path and markers in the right frame, words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nav_msgs.msg import Path as PathMsg
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image
from support.ros_probe import RELIABLE, Probe
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from thor_policy_ros.msg import ActionChunk as ActionChunkMsg
from thor_policy_ros.msg import FrameLatency
from thor_policy_ros.ros.chunk_viewer_node import ChunkViewerNode, description_file
from thor_policy_ros.ros.conversions import camera_info_msg, image_from_rgb, seconds
from thor_policy_ros.ros.markers import (
    BAND_HEIGHT,
    annotated,
    caption,
    marker_array,
    path_msg,
    trajectory_msg,
)
from thor_policy_ros.runtime.camera_images import image_to_rgb
from thor_policy_ros.runtime.urdf import Urdf
from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.sim.kinematics import tip_position
from thor_policy_ros.types import ActionChunk

JOINTS = ("base_yaw", "shoulder", "elbow", "wrist", "suction")
ROWS = np.linspace([0.0, 0.1, 1.2, 0.4, 0.0], [0.6, 0.5, 1.6, 0.9, 1.0], 10).astype(np.float32)
IN_VIEW = np.linspace([-0.3, 0.3, 1.9, 0.9, 0.0], [0.3, 0.5, 1.7, 0.8, 1.0], 10).astype(np.float32)
"""Rows that the simulated camera above the table sees."""
CHUNK = ActionChunk(ROWS, dt_s=0.1, observed_at_s=100.0)
NODE = "chunk_viewer_node"


def message(rows: np.ndarray = ROWS) -> ActionChunkMsg:
    made = ActionChunkMsg(
        joint_names=list(JOINTS), horizon=10, action_dim=5, dt=0.1, instruction="pick up the cube"
    )
    made.backend = "pytorch"
    made.observed_at.sec = 100
    made.actions = rows.ravel().tolist()
    return made


def test_the_demo_arms_urdf_is_the_simulated_arm() -> None:
    chain = Urdf(description_file("demo_arm.urdf").read_text()).chain("tip", JOINTS)
    assert chain.root == "base_link"
    joints = np.random.default_rng(0).uniform(-1.2, 1.2, (50, 5))
    np.testing.assert_allclose(chain.positions(joints), tip_position(joints[:, :4]), atol=1e-12)


def test_a_trajectory_holds_every_row_at_its_time() -> None:
    found = trajectory_msg(CHUNK, JOINTS)
    assert tuple(found.joint_names) == JOINTS and seconds(found.header.stamp) == 100.0
    times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in found.points]
    np.testing.assert_allclose(times, np.arange(10) * 0.1, atol=1e-9)
    np.testing.assert_allclose([p.positions for p in found.points], ROWS)


def test_path_and_markers_are_in_the_frame_that_was_given() -> None:
    points = tip_position(ROWS[:, :4])
    path = path_msg(points, CHUNK, "base_link")
    assert path.header.frame_id == "base_link" and len(path.poses) == 10
    assert seconds(path.poses[3].header.stamp) == pytest.approx(100.3)
    assert all(pose.pose.orientation.w == 1.0 for pose in path.poses)
    line, balls, words = marker_array(points, message(), 100.0, "base_link", 0.005).markers
    assert (line.type, balls.type) == (Marker.LINE_STRIP, Marker.SPHERE_LIST)
    assert len(line.points) == len(line.colors) == 10 and line.scale.x == 0.005
    assert line.colors[0].g > line.colors[-1].g and line.colors[-1].r > line.colors[0].r
    assert words.text == "pick up the cube\npytorch" and words.type == Marker.TEXT_VIEW_FACING
    assert {marker.header.frame_id for marker in (line, balls, words)} == {"base_link"}
    assert len({marker.id for marker in (line, balls, words)}) == 3


def test_words_stand_above_and_below_and_hide_nothing() -> None:
    image = np.full((96, 160, 3), 128, np.uint8)
    frame = FrameLatency(backend="pytorch", total_ms=12.34, decision="refill: age")
    above, below = caption(message(), frame)
    assert (above, below) == ("pick up the cube", "pytorch 12.3 ms | refill: age")
    shown = annotated(image, above, below)
    assert shown.shape == (2 * 96 + 2 * BAND_HEIGHT, 2 * 160, 3)
    assert (shown[BAND_HEIGHT:-BAND_HEIGHT] == 128).all(), "nothing of the image is hidden"
    assert shown[:BAND_HEIGHT].any() and shown[-BAND_HEIGHT:].any()
    assert not annotated(image, above, "")[-BAND_HEIGHT:].any()
    wide = np.full((10, 640, 3), 128, np.uint8)
    assert annotated(wide, "Ω 拿起 " + "long " * 200, "\n\x00two\nlines").shape[1] == 640
    assert annotated(np.zeros((4, 4, 3), np.uint8), "words", "words").shape[1] == 320
    late = FrameLatency(backend="b", deadline_missed=True)
    assert "LATE" in caption(None, late)[1] and caption(None, None) == ("no chunk yet", "")


@pytest.fixture
def make(probe: Probe) -> Iterator[Callable[..., ChunkViewerNode]]:
    made: list[ChunkViewerNode] = []

    def make(hook: Any = None, **values: Any) -> ChunkViewerNode:
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = ChunkViewerNode(hook, parameter_overrides=overrides)
        probe.host(node)
        made.append(node)
        return node

    yield make
    for node in made:
        probe.release(node)


def heard(probe: Probe, kind: Any, topic: str, again: Callable[[], None]) -> Any:
    found = probe.listen(kind, f"{NODE}/{topic}")
    timer = probe.create_timer(0.1, again)
    probe.wait(lambda: found, topic)
    probe.destroy_timer(timer)
    return found[-1]


def test_a_chunk_becomes_path_and_markers_with_a_urdf(
    probe: Probe, make: Callable[..., ChunkViewerNode]
) -> None:
    make(robot_description_file="demo_arm.urdf", tip_link="tip")
    chunks = probe.create_publisher(ActionChunkMsg, "action_chunk", RELIABLE)
    path = heard(probe, PathMsg, "path", lambda: chunks.publish(message()))
    assert path.header.frame_id == "base_link"
    last = path.poses[-1].pose.position
    np.testing.assert_allclose([last.x, last.y, last.z], tip_position(ROWS[-1, :4]), atol=1e-6)
    markers = heard(probe, MarkerArray, "markers", lambda: chunks.publish(message()))
    assert len(markers.markers) == 3


def test_without_a_urdf_the_joint_trajectory_is_shown_alone(
    probe: Probe, make: Callable[..., ChunkViewerNode]
) -> None:
    make()
    chunks = probe.create_publisher(ActionChunkMsg, "action_chunk", RELIABLE)
    paths = probe.listen(PathMsg, f"{NODE}/path")
    found = heard(probe, JointTrajectory, "joint_trajectory", lambda: chunks.publish(message()))
    assert len(found.points) == 10
    assert paths == []


def test_a_hook_for_forward_kinematics_takes_a_urdfs_place(
    probe: Probe, make: Callable[..., ChunkViewerNode]
) -> None:
    make(lambda joints, names: joints[:, :3] * len(names), frame_id="world")
    chunks = probe.create_publisher(ActionChunkMsg, "action_chunk", RELIABLE)
    path = heard(probe, PathMsg, "path", lambda: chunks.publish(message()))
    assert path.header.frame_id == "world"
    assert path.poses[-1].pose.position.x == pytest.approx(5 * ROWS[-1, 0])


def test_the_camera_is_annotated_while_somebody_looks(
    probe: Probe, make: Callable[..., ChunkViewerNode]
) -> None:
    make(camera_topic="camera")
    images = probe.create_publisher(Image, "camera", RELIABLE)
    frames = probe.create_publisher(FrameLatency, "frame_latency", RELIABLE)
    grey = image_from_rgb(np.full((64, 96, 3), 128, np.uint8), 5.0, "optical")

    def again() -> None:
        frames.publish(FrameLatency(backend="pytorch", total_ms=12.0))
        images.publish(grey)

    shown = heard(probe, Image, "annotated_image", again)
    assert shown.header.frame_id == "optical" and shown.width == 4 * 96
    assert (image_to_rgb(shown)[0] == 0).all() and (image_to_rgb(shown)[BAND_HEIGHT] == 128).all()


def seen_by_the_simulated_camera() -> np.ndarray:
    """f64[10,2], pixels: by the renderer's own projection, not by ours."""
    arm = TabletopArm()
    camera = arm._cameras["base_0_rgb"]
    return camera.project(arm._data, tip_position(IN_VIEW[:, :4])) * 64 - 0.5


def test_the_chunk_is_drawn_where_the_camera_sees_it(
    probe: Probe, make: Callable[..., ChunkViewerNode]
) -> None:
    """The URDF says where the simulated camera is, camera_info how it sees."""
    node = make(robot_description_file="demo_arm.urdf", tip_link="tip", camera_topic="camera")
    chunks = probe.create_publisher(ActionChunkMsg, "action_chunk", RELIABLE)
    images = probe.create_publisher(Image, "camera", RELIABLE)
    infos = probe.create_publisher(CameraInfo, "camera_base/camera_info", RELIABLE)
    info = camera_info_msg(TabletopArm().intrinsics()["base_0_rgb"], (64, 64), 5.0, "camera_base")
    grey = np.full((64, 64, 3), 128, np.uint8)

    def again() -> None:
        infos.publish(info)
        chunks.publish(message(IN_VIEW))
        images.publish(image_from_rgb(grey, 5.0, "camera_base"))

    expected = seen_by_the_simulated_camera()
    assert ((expected > 0) & (expected < 63)).all()
    for _ in range(20):
        shown = image_to_rgb(heard(probe, Image, "annotated_image", again))
        if (shown[BAND_HEIGHT:-BAND_HEIGHT] != 128).any():
            break
    found = node._in_image(grey, node._now_s())
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=0.02)
    inside = shown[BAND_HEIGHT:-BAND_HEIGHT]
    drawn = np.argwhere((inside != 128).any(axis=2))[:, ::-1]
    distance = np.linalg.norm(drawn[:, None] - (expected + 0.5) * 5, axis=2)
    assert distance.min(axis=0).max() < 4, "through every row"
    assert distance.min(axis=1).max() < 5 * np.linalg.norm(np.diff(expected, axis=0), axis=1).max()
    x, y = ((expected[0] + 0.5) * 5).round().astype(int)
    assert inside[y, x, 1] > inside[y, x, 0], "it begins green"


def test_without_a_calibrated_camera_or_its_place_nothing_is_drawn(
    make: Callable[..., ChunkViewerNode],
) -> None:
    node = make(robot_description_file="demo_arm.urdf", tip_link="tip")
    image = np.zeros((64, 64, 3), np.uint8)
    node._on_chunk(message())
    now_s = node._now_s()
    assert node._in_image(image, now_s) is None
    k = TabletopArm().intrinsics()["base_0_rgb"]
    node._on_info(camera_info_msg(0 * k, (64, 64), 5.0, "camera_base"))
    assert node._in_image(image, now_s) is None
    node._on_info(camera_info_msg(k, (64, 64), 5.0, "nowhere"))
    assert node._in_image(image, now_s) is None
    node._on_info(camera_info_msg(k, (64, 64), 5.0, "camera_base"))
    assert node._in_image(image, now_s) is not None
    assert node._in_image(image, now_s + 3.0) is None, "of a chunk that is old"
    given = make(lambda joints, names: joints[:, :3], frame_id="world", camera_pose=[0.0] * 6)
    given._on_chunk(message())
    given._on_info(camera_info_msg(k, (64, 64), 5.0, "anything"))
    assert given._in_image(image, now_s) is not None


def test_wrong_parameters_are_refused_with_the_choices(tmp_path: Path) -> None:
    def refused(hook: Any = None, **values: Any) -> str:
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        with pytest.raises(ValueError) as error:
            ChunkViewerNode(hook, parameter_overrides=overrides)
        return str(error.value)

    assert "neither a file" in refused(robot_description_file="no.urdf", tip_link="tip")
    demo = {"robot_description_file": "demo_arm.urdf"}
    assert "the URDF's links are: camera_base, column" in refused(tip_link="hand", **demo)
    assert "got 2 values" in refused(camera_pose=[1.0, 2.0])
    assert "set frame_id" in refused(lambda joints, names: joints)

"""Shows what the policy is about to do: for rviz2, Foxglove and rqt.

A process of its own, without torch: it takes nothing from the policy's time, and may run on
another computer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ament_index_python.packages import get_package_share_directory
from nav_msgs.msg import Path as PathMsg
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from thor_policy_ros.msg import ActionChunk, FrameLatency
from thor_policy_ros.ros.conversions import chunk_from_msg, image_from_rgb, seconds
from thor_policy_ros.ros.inputs import LATCHED, sensor_qos
from thor_policy_ros.ros.markers import (
    ForwardKinematics,
    annotated,
    caption,
    marker_array,
    path_msg,
    trajectory_msg,
)
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.process import run_node
from thor_policy_ros.ros.viewer_parameters import VIEWER
from thor_policy_ros.runtime.camera_images import MessageError, compressed_to_rgb, image_to_rgb
from thor_policy_ros.runtime.pinhole import F64, Pinhole
from thor_policy_ros.runtime.urdf import Urdf, UrdfError, pose_of
from thor_policy_ros.types import U8

SHOWN_S = 2.0
"""A chunk that is older is not drawn into the image; rviz's markers live as long."""
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class ChunkViewerNode(Node):
    """Subscribes `action_chunk`, `frame_latency`, a camera and `robot_description`; publishes
    `~/joint_trajectory`, `~/path`, `~/markers` and `~/annotated_image`.

    forward_kinematics: of a robot that has no URDF; it wants frame_id. Raises ValueError for a
    URDF that cannot be read or lacks tip_link.
    """

    def __init__(self, forward_kinematics: ForwardKinematics | None = None, **kwargs: Any) -> None:
        super().__init__("chunk_viewer_node", **kwargs)
        self.parameters = NodeParameters(self, VIEWER)
        self.parameters.start()
        self._kinematics = forward_kinematics
        self._urdf: Urdf | None = None
        self._chunk: ActionChunk | None = None
        self._frame: FrameLatency | None = None
        self._image_at_s = self._points_at_s = -np.inf
        self._info: CameraInfo | None = None
        self._points = np.zeros((0, 3))
        self._first_row = np.zeros((1, 0))
        if forward_kinematics is not None and not self.parameters["frame_id"]:
            raise ValueError("set frame_id: the frame in which forward_kinematics gives positions")
        self._trajectories = self.create_publisher(JointTrajectory, "~/joint_trajectory", RELIABLE)
        self._paths = self.create_publisher(PathMsg, "~/path", RELIABLE)
        self._markers = self.create_publisher(MarkerArray, "~/markers", RELIABLE)
        self._images = self.create_publisher(Image, "~/annotated_image", RELIABLE)
        self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, RELIABLE)
        self.create_subscription(FrameLatency, "frame_latency", self._on_latency, RELIABLE)
        pose = self.parameters["camera_pose"]
        if len(pose) not in (0, 6):
            raise ValueError(f"camera_pose wants x, y, z, roll, pitch, yaw; got {len(pose)} values")
        self._subscribe_camera()
        self._find_description()

    def close(self) -> bool:
        """Nothing to free."""
        return True

    def _subscribe_camera(self) -> None:
        topic = self.parameters["camera_topic"]
        if not topic:
            return
        compressed = self.parameters["camera_transport"] == "compressed"
        kind = CompressedImage if compressed else Image
        self.create_subscription(kind, topic, self._on_image, sensor_qos("best_effort"))
        info = self.parameters["camera_info_topic"]
        if info:
            self.create_subscription(CameraInfo, info, self._on_info, sensor_qos("best_effort"))

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def _find_description(self) -> None:
        name, tip = self.parameters["robot_description_file"], self.parameters["tip_link"]
        if not tip:
            return
        if name:
            self._describe(description_file(name).read_text())
        else:
            self.create_subscription(String, "robot_description", self._on_description, LATCHED)

    def _describe(self, text: str) -> None:
        urdf = Urdf(text)
        links = {joint.child for joint in urdf.joints.values()}
        if self.parameters["tip_link"] not in links:
            raise UrdfError(
                f"tip_link is {self.parameters['tip_link']!r}; the URDF's links are: "
                + ", ".join(sorted(links))
            )
        self._urdf = urdf

    def _on_description(self, message: String) -> None:
        try:
            self._describe(message.data)
        except UrdfError as error:
            self.get_logger().error(f"robot_description is of no use: {error}")

    def _on_latency(self, message: FrameLatency) -> None:
        self._frame = message

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            chunk = chunk_from_msg(message)
        except MessageError as error:
            self._warn(f"chunk refused: {error}")
            return
        self._chunk = message
        self._trajectories.publish(trajectory_msg(chunk, message.joint_names))
        try:
            points, frame_id = self._tool_path(chunk.actions, message.joint_names)
        except UrdfError as error:
            self._warn(f"no path is shown: {error}")
            return
        self._points, self._points_at_s = points, self._now_s()
        self._first_row = chunk.actions[:1].astype(np.float64)
        if len(points):
            stamp_s, width_m = seconds(message.header.stamp), self.parameters["line_width_m"]
            self._paths.publish(path_msg(points, chunk, frame_id))
            self._markers.publish(marker_array(points, message, stamp_s, frame_id, width_m))

    def _tool_path(self, actions: Any, joint_names: Any) -> tuple[Any, str]:
        """Where the tool will be, f64[H,3], and in which frame; no rows where that is unknown."""
        frame_id, joints = self.parameters["frame_id"], actions.astype(np.float64)
        if self._kinematics is not None:
            return self._kinematics(joints, joint_names), frame_id
        if self._urdf is None:
            return np.zeros((0, 3)), ""
        chain = self._urdf.chain(self.parameters["tip_link"], joint_names)
        return chain.positions(joints), frame_id or chain.root

    def _on_image(self, message: Any) -> None:
        now_s = self._now_s()
        due = abs(now_s - self._image_at_s) >= 1.0 / self.parameters["image_rate_hz"]
        if not due or not self._images.get_subscription_count():
            return
        self._image_at_s = now_s
        decode = compressed_to_rgb if isinstance(message, CompressedImage) else image_to_rgb
        try:
            image = decode(message, self.parameters["camera_rotate_180"])
        except MessageError as error:
            self._warn(f"image refused: {error}")
            return
        shown = annotated(image, *caption(self._chunk, self._frame), self._in_image(image, now_s))
        stamp_s, frame_id = seconds(message.header.stamp), message.header.frame_id
        self._images.publish(image_from_rgb(shown, stamp_s, frame_id))

    def _in_image(self, image: U8, now_s: float) -> F64 | None:
        """The path as the camera sees it, f64[N,2] pixels; None where that is not known."""
        if self._info is None or not len(self._points) or now_s - self._points_at_s > SHOWN_S:
            return None
        height, width = image.shape[:2]
        try:
            pinhole = Pinhole.of(self._info.k, self._info.width, self._info.height)
            seen = pinhole.sized(width, height).project(self._points, self._camera_pose())
        except ValueError as error:
            self._warn(f"the chunk is not drawn into the image: {error}")
            return None
        if self.parameters["camera_rotate_180"]:
            seen = np.array([width - 1, height - 1]) - seen
        return seen

    def _camera_pose(self) -> F64:
        """f64[4,4] in the frame of the path. A camera that the arm carries: where the chunk
        begins. Raises UrdfError where nothing says it.
        """
        given = self.parameters["camera_pose"]
        if given:
            return pose_of(given[:3], given[3:])
        link = self._info.header.frame_id if self._info is not None else ""
        if self._urdf is None or self._chunk is None:
            raise UrdfError("set camera_pose: there is no URDF that says where the camera is")
        chain = self._urdf.chain(link, self._chunk.joint_names)
        pose: F64 = chain.poses(self._first_row)[0]
        return pose

    def _now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds * 1e-9)

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=5.0)


def description_file(name: str) -> Path:
    """A path, or a file of the package's config/viewers. Raises ValueError where there is none."""
    shipped = Path(get_package_share_directory("thor_policy_ros")) / "config" / "viewers" / name
    for path in (Path(name), shipped):
        if path.is_file():
            return path
    raise ValueError(f"robot_description_file {name!r} is neither a file nor {shipped}")


def main() -> int:
    return run_node(ChunkViewerNode)


if __name__ == "__main__":
    raise SystemExit(main())

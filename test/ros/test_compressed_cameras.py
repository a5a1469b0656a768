"""The simulated robot's cameras as JPEG and PNG, as image_transport publishes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from support.ros_probe import Probe

from thor_policy_ros.ros.conversions import compressed_from_rgb, seconds
from thor_policy_ros.ros.sim_robot_node import SimRobotNode
from thor_policy_ros.runtime.camera_images import (
    compressed_to_rgb,
    image_to_rgb,
    rgb_to_compressed,
)

ALONE = {"policy_node": "", "executor_node": ""}
SMOOTH = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)


def robot_with(**values: Any) -> SimRobotNode:
    given = {**ALONE, **values}
    return SimRobotNode(parameter_overrides=[Parameter(k, value=v) for k, v in given.items()])


def test_a_png_is_the_image_and_a_jpeg_nearly() -> None:
    np.testing.assert_array_equal(
        compressed_to_rgb(compressed_from_rgb(SMOOTH, 1.0, "c", "png", 90)), SMOOTH
    )
    message = compressed_from_rgb(SMOOTH, 1.5, "c", "jpeg", 95)
    assert message.format == "rgb8; jpeg compressed bgr8" and seconds(message.header.stamp) == 1.5
    assert np.abs(compressed_to_rgb(message).astype(int) - SMOOTH).mean() < 8.0


def test_less_quality_is_fewer_bytes_and_other_formats_are_refused() -> None:
    sizes = [len(rgb_to_compressed(SMOOTH, "jpeg", quality)) for quality in (30, 90, 100)]
    assert sizes[0] < sizes[1] < sizes[2] < SMOOTH.size
    with pytest.raises(ValueError, match="choose jpeg or png"):
        rgb_to_compressed(SMOOTH, "webp")


@pytest.mark.node
def test_a_robot_with_png_cameras_sends_the_same_images_compressed(probe: Probe) -> None:
    robot = robot_with(camera_transport="png")
    probe.host(robot)
    try:
        small = probe.listen(CompressedImage, "camera_wrist/image_raw/compressed")
        probe.wait(lambda: len(small) > 2, "compressed images")
        whole = probe.listen(Image, "camera_wrist/image_raw")
        probe.wait(lambda: common(small, whole), "a raw and a compressed image of one stamp")
        pair = common(small, whole)
        np.testing.assert_array_equal(compressed_to_rgb(pair[0]), image_to_rgb(pair[1]))
        assert pair[0].header.frame_id == pair[1].header.frame_id == "camera_wrist"
    finally:
        probe.release(robot)


@pytest.mark.node
def test_nobody_who_listens_means_no_raw_image_is_made(probe: Probe) -> None:
    robot = robot_with(camera_transport="jpeg", jpeg_quality=40)
    made: list[type] = []
    robot._send = recording(robot._send, made)  # type: ignore[method-assign]
    probe.host(robot)
    try:
        probe.wait(lambda: CompressedImage in made, "compressed images")
        assert Image not in made
    finally:
        probe.release(robot)


def recording(send: Callable[..., None], made: list[type]) -> Callable[..., None]:
    def sent(publisher: Any, message: Any, delay_s: float) -> None:
        made.append(type(message))
        send(publisher, message, delay_s)

    return sent


def common(small: list[CompressedImage], whole: list[Image]) -> tuple[Any, ...]:
    """The first two of one stamp, () while there are none."""
    at = {seconds(message.header.stamp): message for message in whole}
    found = [(m, at[seconds(m.header.stamp)]) for m in small if seconds(m.header.stamp) in at]
    return found[0] if found else ()

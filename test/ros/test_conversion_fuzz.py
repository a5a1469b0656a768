"""Whatever a message holds, it is converted or refused; nothing else is raised."""

from __future__ import annotations

import array

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image, JointState

from thor_policy_ros.msg import ActionChunk
from thor_policy_ros.ros.conversions import chunk_from_msg, joint_positions
from thor_policy_ros.runtime.camera_images import MessageError, compressed_to_rgb, image_to_rgb

u32 = st.integers(0, 2**32 - 1) | st.integers(0, 8)
encodings = st.sampled_from(["rgb8", "bgr8", "rgba8", "mono8", "16UC1", ""]) | st.text(max_size=8)
numbers = st.floats() | st.floats(-3, 3)
names = st.lists(st.sampled_from("abcd") | st.text(max_size=4), max_size=6)
# Beginnings of real files, then anything.
starts = st.sampled_from(
    [b"", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", b"\xff\xd8\xff\xe0\x00\x10JFIF"]
)


@settings(deadline=None)
@given(u32, u32, u32, encodings, st.binary(max_size=256), st.booleans())
def test_images(height, width, step, encoding, data, turned) -> None:
    message = Image(height=height, width=width, step=step, encoding=encoding)
    message.data = array.array("B", data)
    try:
        pixels = image_to_rgb(message, turned)
    except MessageError as refusal:
        assert str(refusal)
    else:
        assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8


@settings(deadline=None)
@given(starts, st.binary(max_size=256), st.text(max_size=8))
def test_compressed_images(start, data, kind) -> None:
    message = CompressedImage(format=kind, data=array.array("B", start + data))
    try:
        assert compressed_to_rgb(message).ndim == 3
    except MessageError as refusal:
        assert str(refusal)


@given(names, st.lists(numbers, max_size=6), st.lists(st.sampled_from("abc"), unique=True))
def test_joint_states(given_names, values, wanted) -> None:
    message = JointState(name=given_names, position=array.array("d", values))
    try:
        positions = joint_positions(message, wanted)
    except MessageError as refusal:
        assert str(refusal)
    else:
        assert positions.shape == (len(wanted),) and np.isfinite(positions).all()


@given(u32, u32, numbers, st.lists(st.floats(width=32), max_size=16))
def test_chunks(horizon, width, dt_s, values) -> None:
    message = ActionChunk(horizon=horizon, action_dim=width, dt=dt_s)
    message.actions = array.array("f", values)
    try:
        chunk = chunk_from_msg(message)
    except MessageError as refusal:
        assert str(refusal)
    else:
        assert chunk.actions.shape == (horizon, width) and chunk.dt_s > 0

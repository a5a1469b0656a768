"""Messages to arrays: exact for every encoding and step, refused with a reason otherwise."""

from __future__ import annotations

import array
import io

import numpy as np
import pytest
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image, JointState

from thor_policy_ros.msg import ActionChunk as ActionChunkMsg
from thor_policy_ros.ros.conversions import (
    chunk_from_msg,
    chunk_to_msg,
    commands_msg,
    image_from_rgb,
    joint_positions,
    seconds,
    time_msg,
)
from thor_policy_ros.runtime.camera_images import (
    ENCODINGS,
    MessageError,
    compressed_to_rgb,
    image_to_rgb,
)
from thor_policy_ros.types import ActionChunk

HEIGHT, WIDTH = 5, 7
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def in_memory(encoding: str, rgb: np.ndarray) -> np.ndarray:
    """The pixels as the encoding's name says they lie in memory."""
    if encoding == "mono8":
        return rgb[..., :1]
    layers = {"r": rgb[..., 0], "g": rgb[..., 1], "b": rgb[..., 2], "a": rgb[..., 0] // 2}
    return np.stack([layers[letter] for letter in encoding.removesuffix("8")], -1)


def image(encoding: str, pixels: np.ndarray, padding: int = 0) -> Image:
    height, width, channels = pixels.shape
    rows = np.zeros((height, width * channels + padding), np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    rows[:, width * channels :] = 99
    message = Image(encoding=encoding, height=height, width=width, step=rows.shape[1])
    message.data = array.array("B", rows.tobytes())
    return message


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_and_step_gives_rgb(encoding: str, padding: int, rotate: bool) -> None:
    grey = np.repeat(RGB[..., :1], 3, axis=2)
    expected = grey if encoding == "mono8" else RGB
    decoded = image_to_rgb(image(encoding, in_memory(encoding, RGB), padding), rotate)
    np.testing.assert_array_equal(decoded, expected[::-1, ::-1] if rotate else expected)
    assert decoded.flags.c_contiguous


def test_the_last_row_may_come_without_its_padding() -> None:
    message = image("rgb8", RGB, padding=3)
    message.data = message.data[:-3]
    np.testing.assert_array_equal(image_to_rgb(message), RGB)


@pytest.mark.parametrize(
    "encoding", ["mono16", "rgb16", "16UC1", "32FC1", "8UC3", "bayer_rggb8", "yuv422", ""]
)
def test_other_encodings_are_refused_and_the_choices_named(encoding: str) -> None:
    message = image("rgb8", RGB)
    message.encoding = encoding
    with pytest.raises(MessageError, match=r"not supported; publish one of: rgb8, bgr8"):
        image_to_rgb(message)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": array.array("B", b"\0" * 10)}, "data holds 10 bytes"),
        ({"data": array.array("B")}, "data holds 0 bytes"),
        ({"data": array.array("B", b"\0" * (HEIGHT * WIDTH * 3 + 1))}, "data holds 106 bytes"),
        ({"step": WIDTH * 3 - 1}, "step 20 is below 21 bytes"),
        ({"width": WIDTH + 1}, "step 21 is below 24 bytes"),
        ({"height": HEIGHT + 1}, "data holds 105 bytes"),
        ({"height": 0}, "empty"),
        ({"width": 0}, "empty"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object], reason: str) -> None:
    message = image("rgb8", RGB)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(MessageError, match=reason):
        image_to_rgb(message)


def compressed(pixels: np.ndarray, format_name: str) -> CompressedImage:
    file = io.BytesIO()
    PilImage.fromarray(pixels).save(file, format_name)
    return CompressedImage(format=format_name.lower(), data=array.array("B", file.getvalue()))


def test_png_is_exact_and_rotates() -> None:
    message = compressed(RGB, "PNG")
    np.testing.assert_array_equal(compressed_to_rgb(message), RGB)
    np.testing.assert_array_equal(compressed_to_rgb(message, True), RGB[::-1, ::-1])


def test_jpeg_is_close() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (64, 64, 3)).copy()
    decoded = compressed_to_rgb(compressed(pixels, "JPEG"))
    assert np.abs(decoded.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_a_compressed_image_cut_anywhere_is_refused_or_whole(format_name: str) -> None:
    whole = compressed(RGB, format_name)
    expected = compressed_to_rgb(whole)
    refused = 0
    for length in range(len(whole.data)):
        message = CompressedImage(format=whole.format, data=whole.data[:length])
        try:
            np.testing.assert_array_equal(compressed_to_rgb(message), expected)
        except MessageError:
            refused += 1
    assert refused > len(whole.data) // 2


def test_other_compressed_formats_are_refused() -> None:
    with pytest.raises(MessageError, match="neither JPEG nor PNG"):
        compressed_to_rgb(compressed(RGB, "BMP"))
    with pytest.raises(MessageError, match="wanted 8 bits"):
        compressed_to_rgb(compressed(np.zeros((4, 4), np.uint16), "PNG"))


def test_an_image_published_by_the_simulator_comes_back() -> None:
    np.testing.assert_array_equal(image_to_rgb(image_from_rgb(RGB, 1.5, "camera")), RGB)


def joints(names: list[str], positions: list[float]) -> JointState:
    return JointState(name=names, position=array.array("d", positions))


def test_joints_are_taken_by_name() -> None:
    message = joints(["c", "a", "b"], [3.0, 1.0, 2.0])
    np.testing.assert_array_equal(joint_positions(message, ("a", "b", "c")), [1, 2, 3])
    np.testing.assert_array_equal(joint_positions(message, ("b",)), [2])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (joints(["a"], [1.0]), "lacks b, d; it has a"),
        (joints([], []), "lacks a, b, d; it has none"),
        (joints(["a", "b"], [1.0]), "2 names and 1 positions"),
        (joints(["a", "b", "d"], [1.0, float("nan"), float("inf")]), "not finite: b, d"),
        (joints(["a", "b", "d"], [1.0, 1e300, 2.0]), "not finite: b"),
        (joints(["a", "b", "d", "b"], [1.0, 2.0, 3.0, 4.0]), "more than one position of b"),
    ],
)
def test_joint_states_that_cannot_be_used_name_the_joints(message: JointState, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        joint_positions(message, ("a", "b", "d"))


def test_stamps_keep_a_microsecond() -> None:
    for stamp_s in (0.0, 1.999999999, 1_795_000_000.123456):
        assert seconds(time_msg(stamp_s)) == pytest.approx(stamp_s, abs=5e-7)
    assert time_msg(1.9999999999).nanosec == 0


def chunk_message() -> tuple[ActionChunk, ActionChunkMsg]:
    actions = np.arange(6, dtype=np.float32).reshape(3, 2) / 7
    chunk = ActionChunk(actions, 0.1, 123.25, prefix_reused=True)
    message = chunk_to_msg(
        chunk,
        sequence=4,
        backend="pytorch",
        instruction="pick up the red cube",
        joint_names=("a", "b"),
        prefix_age_s=0.5,
        now_s=123.5,
    )
    return chunk, message


def test_a_chunk_survives_its_message() -> None:
    chunk, message = chunk_message()
    back = chunk_from_msg(message)
    np.testing.assert_array_equal(back.actions, chunk.actions)
    assert (back.dt_s, back.observed_at_s, back.prefix_reused) == (0.1, 123.25, True)
    assert (message.horizon, message.action_dim, list(message.joint_names)) == (3, 2, ["a", "b"])
    assert seconds(message.header.stamp) == 123.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"horizon": 4}, "holds 6 numbers; horizon 4 x action_dim 2 wants 8"),
        ({"horizon": 0, "actions": array.array("f")}, "horizon 0"),
        ({"dt": 0.0}, "dt 0.0"),
        ({"dt": float("nan")}, "dt nan"),
    ],
)
def test_a_chunk_message_that_contradicts_itself_is_refused(
    change: dict[str, object], reason: str
) -> None:
    _, message = chunk_message()
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(MessageError, match=reason):
        chunk_from_msg(message)


def test_commands_keep_float64() -> None:
    positions = np.array([0.1, 1 / 3])
    assert list(commands_msg(positions).data) == [0.1, 1 / 3]

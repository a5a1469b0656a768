"""Between ROS messages and the arrays of the core. A message that cannot be trusted raises
`MessageError` with the reason; nothing is guessed.
"""

from __future__ import annotations

import array
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time as TimeMsg
from PIL import Image as PilImage
from PIL import UnidentifiedImageError
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header

from thor_policy_ros.msg import ActionChunk as ActionChunkMsg
from thor_policy_ros.msg import FrameLatency
from thor_policy_ros.types import F32, U8, ActionChunk, FrameTiming

NS = 1_000_000_000
LARGEST_F32 = float(np.finfo(np.float32).max)
F64 = npt.NDArray[np.float64]

# Encoding -> channels in memory, and the channels that make RGB.
ENCODINGS: Mapping[str, tuple[int, tuple[int, int, int]]] = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
COMPRESSED_FORMATS = ("JPEG", "PNG")


class MessageError(ValueError):
    """A message that must not be used; the text is the reason, fit for diagnostics."""


def seconds(stamp: TimeMsg) -> float:
    """A stamp as seconds; float64 keeps 0.25 us of today's time."""
    return float(stamp.sec) + stamp.nanosec * 1e-9


def time_msg(stamp_s: float) -> TimeMsg:
    """Seconds as a stamp, rounded to 1 ns of the float."""
    total_ns = round(stamp_s * NS)
    return TimeMsg(sec=total_ns // NS, nanosec=total_ns % NS)


def header(stamp_s: float, frame_id: str = "") -> Header:
    return Header(stamp=time_msg(stamp_s), frame_id=frame_id)


def image_to_rgb(message: Image, rotate_180: bool = False) -> U8:
    """u8[H,W,3], RGB, contiguous.

    Honours `step`: rows may carry padding. Raises MessageError for an encoding that is not
    eight bits of known colour order, and for sizes that do not fit the data.
    """
    if message.encoding not in ENCODINGS:
        raise MessageError(
            f"encoding {message.encoding!r} is not supported; publish one of: "
            + ", ".join(ENCODINGS)
        )
    channels, order = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    row_bytes = width * channels
    if height == 0 or width == 0:
        raise MessageError(f"image is empty: {width}x{height}")
    if step < row_bytes:
        raise MessageError(
            f"step {step} is below {row_bytes} bytes for {width} pixels of {message.encoding}"
        )
    # The last row may come without its padding.
    wanted = step * (height - 1) + row_bytes
    data = np.frombuffer(message.data, np.uint8)
    if data.size < wanted or data.size > step * height:
        raise MessageError(
            f"data holds {data.size} bytes; {width}x{height} {message.encoding} "
            f"with step {step} wants {step * height}"
        )
    pixels = np.lib.stride_tricks.as_strided(
        data, (height, width, channels), (step, channels, 1), writeable=False
    )
    return _oriented(pixels[..., order] if order != (0, 1, 2) else pixels[..., :3], rotate_180)


def compressed_to_rgb(message: CompressedImage, rotate_180: bool = False) -> U8:
    """u8[H,W,3], RGB, of a JPEG or PNG. Raises MessageError for anything else."""
    try:
        with PilImage.open(io.BytesIO(message.data), formats=COMPRESSED_FORMATS) as image:
            mode, pixels = image.mode, np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise MessageError(
            f"compressed image (format {message.format!r}) is neither JPEG nor PNG"
        ) from error
    # Pillow's decoders raise these for broken data, and for sizes made to exhaust memory.
    except (OSError, SyntaxError, ValueError, PilImage.DecompressionBombError) as error:
        raise MessageError(f"compressed image cannot be decoded: {error}") from error
    if mode.startswith("I") or mode == "F":
        raise MessageError(f"compressed image has {mode} pixels; wanted 8 bits a channel")
    return _oriented(pixels, rotate_180)


def _oriented(pixels: U8, rotate_180: bool) -> U8:
    return np.ascontiguousarray(pixels[::-1, ::-1] if rotate_180 else pixels)


def joint_positions(message: JointState, names: Sequence[str]) -> F32:
    """f32[J] in the order of `names`. Raises MessageError naming the joints that are missing,
    there twice or not finite.
    """
    if len(message.position) != len(message.name):
        raise MessageError(
            f"JointState has {len(message.name)} names and {len(message.position)} positions"
        )
    at = dict(zip(message.name, message.position, strict=True))
    missing = [name for name in names if name not in at]
    if missing:
        raise MessageError(
            f"JointState lacks {', '.join(missing)}; it has {', '.join(message.name) or 'none'}"
        )
    if len(at) < len(message.name):
        twice = sorted({name for name in message.name if list(message.name).count(name) > 1})
        raise MessageError(f"JointState has more than one position of {', '.join(twice)}")
    bad = [name for name in names if not abs(at[name]) <= LARGEST_F32]
    if bad:
        raise MessageError(f"JointState position is not finite: {', '.join(bad)}")
    return np.array([at[name] for name in names], np.float32)


def image_from_rgb(pixels: U8, stamp_s: float, frame_id: str) -> Image:
    """u8[H,W,3] as a raw rgb8 image."""
    height, width = pixels.shape[:2]
    message = Image(header=header(stamp_s, frame_id), height=height, width=width)
    message.encoding = "rgb8"
    message.step = 3 * width
    message.data = _bytes_array("B", pixels)
    return message


def chunk_to_msg(
    chunk: ActionChunk,
    *,
    sequence: int,
    backend: str,
    instruction: str,
    joint_names: Sequence[str],
    prefix_age_s: float,
    now_s: float,
) -> ActionChunkMsg:
    message = ActionChunkMsg(header=header(now_s), sequence=sequence, backend=backend)
    message.instruction = instruction
    message.joint_names = list(joint_names)
    message.observed_at = time_msg(chunk.observed_at_s)
    message.dt = float(chunk.dt_s)
    message.horizon, message.action_dim = (int(size) for size in chunk.actions.shape)
    message.actions = _bytes_array("f", np.asarray(chunk.actions, np.float32))
    message.prefix_reused = chunk.prefix_reused
    message.prefix_age = float(prefix_age_s)
    return message


def chunk_from_msg(message: ActionChunkMsg) -> ActionChunk:
    """The chunk of a message. Raises MessageError when sizes and data disagree."""
    horizon, action_dim = message.horizon, message.action_dim
    if horizon == 0 or len(message.actions) != horizon * action_dim:
        raise MessageError(
            f"chunk {message.sequence} holds {len(message.actions)} numbers; "
            f"horizon {horizon} x action_dim {action_dim} wants {horizon * action_dim}"
        )
    if not (math.isfinite(message.dt) and message.dt > 0):
        raise MessageError(f"chunk {message.sequence} has dt {message.dt}; wanted above 0 s")
    actions = np.array(message.actions, np.float32).reshape(horizon, action_dim)
    return ActionChunk(actions, message.dt, seconds(message.observed_at), message.prefix_reused)


def latency_msg(
    timing: FrameTiming, *, wait_ms: float, publish_ms: float, total_ms: float, now_s: float
) -> FrameLatency:
    """The stages of one frame; the caller adds what it alone knows."""
    message = FrameLatency(header=header(now_s))
    message.wait_ms = wait_ms
    message.preprocess_ms = timing.preprocess_ms
    message.vision_ms = timing.vision_ms
    message.prefill_ms = timing.prefill_ms
    message.denoise_ms = timing.denoise_ms
    message.postprocess_ms = timing.postprocess_ms
    message.publish_ms = publish_ms
    message.total_ms = total_ms
    message.prefix_age_ms = timing.prefix_age_ms
    return message


def commands_msg(positions: F32 | F64) -> Float64MultiArray:
    message = Float64MultiArray()
    message.data = _bytes_array("d", np.asarray(positions, np.float64))
    return message


def _bytes_array(typecode: str, values: np.ndarray) -> array.array:  # type: ignore[type-arg]
    """An array.array: rclpy copies one at once, and checks an ndarray element by element."""
    result = array.array(typecode)
    result.frombytes(np.ascontiguousarray(values).tobytes())
    return result

"""Between ROS messages and the arrays of the core. A message that cannot be trusted raises
`MessageError` with the reason; nothing is guessed.
"""

from __future__ import annotations

import array
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time as TimeMsg
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header

from thor_policy_ros.msg import ActionChunk as ActionChunkMsg
from thor_policy_ros.msg import ChunkFeedback, FrameInputs, FrameLatency
from thor_policy_ros.runtime.camera_images import MessageError as MessageError
from thor_policy_ros.runtime.camera_images import rgb_to_compressed
from thor_policy_ros.runtime.frame_hops import Answer
from thor_policy_ros.types import F32, U8, ActionChunk, FrameTiming, Observation, StepResult

NS = 1_000_000_000
LARGEST_F32 = float(np.finfo(np.float32).max)
F64 = npt.NDArray[np.float64]


def seconds(stamp: TimeMsg) -> float:
    """A stamp as seconds; float64 keeps 0.25 us of today's time."""
    return float(stamp.sec) + stamp.nanosec * 1e-9


def time_msg(stamp_s: float) -> TimeMsg:
    """Seconds as a stamp, rounded to 1 ns of the float."""
    total_ns = round(stamp_s * NS)
    return TimeMsg(sec=total_ns // NS, nanosec=total_ns % NS)


def header(stamp_s: float, frame_id: str = "") -> Header:
    return Header(stamp=time_msg(stamp_s), frame_id=frame_id)


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


def camera_info_msg(k: F64, size: tuple[int, int], stamp_s: float, frame_id: str) -> CameraInfo:
    """Of a pinhole without distortion. k: f64[3,3]; size: width and height."""
    message = CameraInfo(header=header(stamp_s, frame_id), distortion_model="plumb_bob")
    message.width, message.height = size
    message.k = k.ravel()
    message.d, message.r = [0.0] * 5, np.eye(3).ravel()
    message.p = np.hstack([k, np.zeros((3, 1))]).ravel()
    return message


def image_from_rgb(pixels: U8, stamp_s: float, frame_id: str) -> Image:
    """u8[H,W,3] as a raw rgb8 image."""
    height, width = pixels.shape[:2]
    message = Image(header=header(stamp_s, frame_id), height=height, width=width)
    message.encoding = "rgb8"
    message.step = 3 * width
    message.data = _bytes_array("B", pixels)
    return message


def compressed_from_rgb(
    pixels: U8, stamp_s: float, frame_id: str, form: str, quality: int
) -> CompressedImage:
    """u8[H,W,3] as a 'jpeg' or a 'png'; `format` is as image_transport writes it."""
    message = CompressedImage(header=header(stamp_s, frame_id))
    message.format = f"rgb8; {form} compressed bgr8"
    message.data = array.array("B", rgb_to_compressed(pixels, form, quality))
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


def answer_of(message: ChunkFeedback, now_s: float) -> Answer:
    """How long the ways of an answered chunk took, by an answer that arrived at `now_s`."""
    return Answer(
        chunk_transport_s=message.transport,
        chunk_handover_s=message.handover,
        feedback_transport_s=now_s - seconds(message.header.stamp),
        observation_to_command_s=message.age if message.taken_up else math.nan,
    )


def inputs_msg(
    observation: Observation, result: StepResult, *, seed: int, tick: int, now_s: float
) -> FrameInputs:
    """What a frame was computed from; the caller adds the sequence and the decision."""
    message = FrameInputs(header=header(now_s), tick=tick, seed=seed)
    message.gave_chunk = result.chunk is not None
    message.denoise_steps, message.guided_rows = result.num_steps, result.guided_rows
    message.instruction = observation.prompt
    message.input_names = list(observation.input_stamps_s)
    message.input_stamps = array.array("d", observation.input_stamps_s.values())
    message.state = _bytes_array("f", observation.state)
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

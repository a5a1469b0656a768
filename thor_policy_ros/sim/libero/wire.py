"""What an evaluation and a simulator's process say to each other, over a socket pair.

One request, one answer; each is a msgpack map after its length in 4 bytes. Nothing is pickled:
what arrives is checked and becomes one of the dataclasses below. Imported by both sides, so it
needs NumPy and msgpack alone.

    hello  {protocol}             -> {protocol, simulator, tasks}
    reset  {task, trial, seed}    -> {seen}
    act    {actions f[n,7]}       -> {seen, steps, success, frames}

An answer {error, kind} instead is the simulator's refusal ('refused': no episode of this
evaluation can be played) or its failure ('failed': this episode cannot go on).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import U8

PROTOCOL = 1
CAMERA_PX = 256
IMAGE_SHAPE = (CAMERA_PX, CAMERA_PX, 3)
ACTION_DIM = 7
MAX_FRAME_BYTES = 64 << 20
REFUSED, FAILED = "refused", "failed"

F64 = npt.NDArray[np.float64]
_LENGTH = struct.Struct(">I")
_POSE = (("eef_position", 3), ("eef_quaternion", 4), ("gripper", 2))


class SimulatorWireError(ValueError):
    """A message is not what this protocol knows."""


@dataclass(frozen=True)
class Task:
    """language: what the policy is told. trials: how many beginnings there are; 0: any number."""

    name: str
    language: str
    trials: int = 0


@dataclass(frozen=True)
class Seen:
    """What the simulator shows after a step, as it gives it.

    base, wrist: u8[256,256,3] RGB, upside down as OpenGL renders. eef_position f64[3], m;
    eef_quaternion f64[4], x y z w; gripper f64[2], m.
    """

    base: U8
    wrist: U8
    eef_position: F64
    eef_quaternion: F64
    gripper: F64


@dataclass(frozen=True)
class Moved:
    """After some actions. steps: executed, fewer than asked for when the task was solved.

    frames: base camera after each of the steps but the last, which is `seen`.
    """

    seen: Seen
    steps: int
    success: bool
    frames: tuple[U8, ...]


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """OSError when the other side is gone or takes longer than the socket's timeout."""
    frame = msgpack.packb(dict(message))
    connection.sendall(_LENGTH.pack(len(frame)) + frame)


def receive(connection: socket.socket) -> dict[str, Any]:
    """The next message. EOFError when the other side is gone, TimeoutError after the socket's
    timeout, SimulatorWireError for what is no message."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise SimulatorWireError(f"a message of {length} bytes; wanted at most {MAX_FRAME_BYTES}")
    try:
        message = msgpack.unpackb(_exactly(connection, length))
    except ValueError as error:
        raise SimulatorWireError(f"{length} bytes that are not msgpack: {error}") from error
    if not isinstance(message, dict):
        raise SimulatorWireError(f"wanted a map, got {type(message).__name__}")
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the other side closed the connection")
        parts += part
    return bytes(parts)


def tasks_to_wire(tasks: Sequence[Task]) -> list[list[Any]]:
    return [[task.name, task.language, task.trials] for task in tasks]


def tasks_from_wire(found: Any) -> tuple[Task, ...]:
    kinds = [str, str, int]
    if not isinstance(found, list) or not all(
        isinstance(row, list) and [type(one) for one in row] == kinds for row in found
    ):
        raise SimulatorWireError(f"wanted rows of name, language, trials, got {str(found)[:80]}")
    return tuple(Task(*row) for row in found)


def seen_to_wire(seen: Seen) -> dict[str, Any]:
    message: dict[str, Any] = {
        "base": _image_bytes(seen.base, "base"),
        "wrist": _image_bytes(seen.wrist, "wrist"),
    }
    for name, size in _POSE:
        message[name] = _numbers([float(one) for one in getattr(seen, name)], name, size).tolist()
    return message


def seen_from_wire(found: Any) -> Seen:
    if not isinstance(found, dict):
        raise SimulatorWireError(f"wanted what was seen, got {type(found).__name__}")
    return Seen(
        image_from_wire(found.get("base")),
        image_from_wire(found.get("wrist")),
        *(_numbers(found.get(name), name, size) for name, size in _POSE),
    )


def moved_from_wire(found: Mapping[str, Any]) -> Moved:
    steps, success, frames = found.get("steps"), found.get("success"), found.get("frames")
    if type(steps) is not int or not isinstance(success, bool) or not isinstance(frames, list):
        raise SimulatorWireError(f"wanted steps, success and frames, got {sorted(found)}")
    seen = seen_from_wire(found.get("seen"))
    return Moved(seen, steps, success, tuple(image_from_wire(one) for one in frames))


def actions_from_wire(found: Any) -> F64:
    """f64[n,7]."""
    if not isinstance(found, list) or not found:
        raise SimulatorWireError(f"wanted a list of actions, got {str(found)[:80]}")
    return np.stack([_numbers(row, "an action", ACTION_DIM) for row in found])


def image_from_wire(found: Any) -> U8:
    size = CAMERA_PX * CAMERA_PX * 3
    if not isinstance(found, bytes) or len(found) != size:
        got = f"{len(found)} bytes" if isinstance(found, bytes) else type(found).__name__
        raise SimulatorWireError(f"wanted an image of {size} bytes, got {got}")
    return np.frombuffer(found, np.uint8).reshape(IMAGE_SHAPE)


def _image_bytes(image: U8, name: str) -> bytes:
    if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
        raise SimulatorWireError(
            f"camera {name}: wanted uint8 {list(IMAGE_SHAPE)}, got {image.dtype} "
            f"{list(image.shape)}"
        )
    return image.tobytes()


def _numbers(found: Any, name: str, size: int) -> F64:
    if not isinstance(found, list) or [type(one) for one in found] != [float] * size:
        raise SimulatorWireError(f"{name}: wanted {size} floats, got {str(found)[:80]}")
    return np.array(found, np.float64)

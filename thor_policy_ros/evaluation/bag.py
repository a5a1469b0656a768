"""A recording of the policy node: its frames, with the inputs that each was computed from.

Read without ROS: the bag holds the definitions of its messages. Images are read as frames ask for
them, and kept no longer than a frame still wants them.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.serde import SerdeError

from thor_policy_ros.runtime.camera_images import compressed_to_rgb, image_to_rgb
from thor_policy_ros.types import F32, U8, Closing, Observation

PACKAGE = "thor_policy_ros"
STATE = "state"
FACTS_FILE = "recording.json"
"""What the recorder knew when it began, beside the bag: all that a cut recording leaves."""
NS = 1e-9
LATE_S = 2.0
"""An image may lie in the bag by this much after the frame that was computed from it."""


BROKEN = (
    *(AnyReaderError, SerdeError, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, EOFError, ArithmeticError, struct.error, yaml.YAMLError, RecursionError),
    MemoryError,
)
"""What the readers of other libraries raise for bytes that are no bag."""


class BagError(ValueError):
    """A bag that cannot be read, or holds no recording of ours; the text says what to do."""


@dataclass(frozen=True)
class RecordedChunk:
    """actions: f32[H,A], robot units. observed_at_s: of its prefix."""

    actions: F32
    joint_names: tuple[str, ...]
    observed_at_s: float
    backend: str


@dataclass(frozen=True)
class RecordedFrame:
    """One frame. at_s: in the bag. latency: the figures of FrameLatency by name, {} where none
    was recorded. stamps_s: of the inputs, by camera slot or 'state'.
    """

    at_s: float
    sequence: int
    tick: int
    decision: str
    seed: int
    num_steps: int
    guided_rows: int
    instruction: str
    state: F32
    stamps_s: Mapping[str, float]
    chunk: RecordedChunk | None = None
    latency: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Camera:
    slot: str
    topic: str
    compressed: bool
    rotate_180: bool


class Bag(Closing):
    """Use as a context manager. BagError for what is no bag, is truncated or is not ours.

    allow_cut: a bag without its end is read as far as it is whole, and `cut` says why it is not.
    """

    def __init__(self, path: Path, *, allow_cut: bool = False) -> None:
        self.path = path
        self.cut = ""
        self._reader: Any
        try:
            self._reader = _opened(path)
        except BagError as error:
            if not allow_cut:
                raise
            self.cut = str(error)
            self._reader = _opened_cut(path)
        try:
            self.facts = self._read_facts()
            self.parameters: dict[str, Any] = dict(self.facts["parameters"])
            self.node = str(self.facts["node"])
        except BaseException as error:
            self._reader.close()
            if isinstance(error, BagError) or not isinstance(error, BROKEN):
                raise
            raise BagError(
                f"{path}: its metadata is not that of `thor-policy record`:"
                f" {type(error).__name__}: {error}"
            ) from error

    def close(self) -> None:
        self._reader.close()

    def _read_facts(self) -> dict[str, Any]:
        early, text = self.path / FACTS_FILE, None
        if self.cut and early.is_file():
            text = early.read_text()
        elif self.cut and not (self.path / "metadata.yaml").is_file():
            raise BagError(f"{self.path} has neither metadata.yaml nor {FACTS_FILE}")
        else:
            metadata = yaml.safe_load((self.path / "metadata.yaml").read_text())
            text = (metadata["rosbag2_bagfile_information"]["custom_data"] or {}).get(PACKAGE)
        if text is None:
            raise BagError(f"{self.path} was not made by `thor-policy record`")
        facts: dict[str, Any] = json.loads(text)
        return facts

    @property
    def message_count(self) -> int:
        return int(self._reader.message_count)

    @cached_property
    def duration_s(self) -> float:
        return float(self._reader.duration * NS)

    @cached_property
    def start_s(self) -> float:
        return float(self._reader.start_time * NS)

    def frames(self) -> list[RecordedFrame]:
        """Every frame, in the order of time, with its chunk and latencies."""
        inputs = list(self._messages(f"{self.node}/frame_inputs"))
        chunks = _by_sequence(self._messages(f"{self.node}/action_chunk"))
        latencies = _by_sequence(self._messages(f"{self.node}/frame_latency"))
        found = []
        for at_ns, message in inputs:
            gave = message.gave_chunk
            chunk = _nearest(chunks, message.sequence, at_ns) if gave else None
            latency = _nearest(latencies, message.sequence, at_ns, message.decision)
            found.append(_frame(at_ns, message, chunk, latency))
        return found

    def diagnostics(self) -> Iterator[tuple[float, Any]]:
        """Time and DiagnosticArray."""
        for at_ns, message in self._messages("/diagnostics"):
            yield at_ns * NS, message

    def observations(
        self, frames: list[RecordedFrame]
    ) -> Iterator[tuple[RecordedFrame, Observation | str]]:
        """Each frame with what it was computed from, or why that is not in the bag.

        frames: in the order of time.
        """
        cameras = self._cameras()
        users: dict[tuple[str, float], int] = defaultdict(int)
        for frame in frames:
            for camera in cameras:
                users[camera.slot, frame.stamps_s.get(camera.slot, -1.0)] += 1
        held: dict[tuple[str, float], U8] = {}
        stream = self._images(cameras, users)
        for frame in frames:
            wanted = {camera.slot: frame.stamps_s.get(camera.slot, -1.0) for camera in cameras}
            while any(key not in held for key in wanted.items()):
                at_s, key, image = next(stream, (np.inf, None, None))
                if key is not None and image is not None:
                    held[key] = image
                if at_s > frame.at_s + LATE_S:
                    break
            absent = [slot for slot, stamp in wanted.items() if (slot, stamp) not in held]
            if absent:
                yield frame, f"the image of {', '.join(absent)} is not in the bag"
            else:
                images = {key[0]: held[key] for key in wanted.items()}
                stamp_s = min(frame.stamps_s.values())
                yield frame, Observation(images, frame.state, frame.instruction, stamp_s)
            for key in wanted.items():
                users[key] -= 1
                if not users[key]:
                    held.pop(key, None)

    def _images(
        self, cameras: tuple[_Camera, ...], users: Mapping[tuple[str, float], int]
    ) -> Iterator[tuple[float, tuple[str, float] | None, U8 | None]]:
        by_topic = {camera.topic: camera for camera in cameras}
        connections = [c for c in self._reader.connections if c.topic in by_topic]
        for connection, at_ns, raw in self._read(connections):
            camera = by_topic[connection.topic]
            message = self._message(connection, raw)
            if message is None:
                continue
            stamp_s = _seconds(message.header.stamp)
            if not users.get((camera.slot, stamp_s)):
                yield at_ns * NS, None, None
                continue
            decode = compressed_to_rgb if camera.compressed else image_to_rgb
            try:
                image = decode(message, camera.rotate_180)
            except ValueError:  # the node refused it too
                continue
            yield at_ns * NS, (camera.slot, stamp_s), image

    def _cameras(self) -> tuple[_Camera, ...]:
        try:
            return self._recorded_cameras()
        except (LookupError, TypeError, AttributeError) as error:
            raise BagError(
                f"{self.path}: no cameras in its parameters: {type(error).__name__}: {error}"
            ) from error

    def _recorded_cameras(self) -> tuple[_Camera, ...]:
        values, space = self.parameters, self.node.rsplit("/", 1)[0]
        found = []
        for name in values["cameras"]:
            topic = values[f"camera.{name}.topic"]
            found.append(
                _Camera(
                    slot=values[f"camera.{name}.slot"] or name,
                    topic=topic if topic.startswith("/") else f"{space}/{topic}",
                    compressed=values[f"camera.{name}.transport"] == "compressed",
                    rotate_180=values[f"camera.{name}.rotate_180"],
                )
            )
        return tuple(found)

    def _messages(self, topic: str) -> Iterator[tuple[int, Any]]:
        connections = [c for c in self._reader.connections if c.topic == topic]
        for connection, at_ns, raw in self._read(connections):
            message = self._message(connection, raw)
            if message is not None:
                yield at_ns, message

    def _message(self, connection: Any, raw: bytes) -> Any:
        """None for a message that is spoilt, in a bag that is known to be."""
        try:
            return self._reader.deserialize(raw, connection.msgtype)
        except BROKEN as error:
            if self.cut:
                return None
            raise BagError(f"{self.path}: a message of {connection.topic}: {error!r}") from error

    def _read(self, connections: list[Any]) -> Iterator[tuple[Any, int, bytes]]:
        if not connections:
            return
        try:
            yield from self._reader.messages(connections)
        except BROKEN as error:
            raise BagError(f"{self.path} cannot be read: {error}") from error


def _opened(path: Path) -> AnyReader:
    if not (path / "metadata.yaml").is_file():
        raise BagError(
            f"{path} has no metadata.yaml: it is no bag, or its recording did not end well"
        )
    try:
        reader = AnyReader([path])
        reader.open()
    except BROKEN as error:
        raise BagError(
            f"{path} cannot be read, it may be truncated: {type(error).__name__}: {error}"
        ) from error
    return reader


def _opened_cut(path: Path) -> Any:
    try:
        from thor_policy_ros.evaluation.cut_bag import CutReader
    except ModuleNotFoundError as error:
        raise BagError(
            f"{path} was cut short, and reading it wants {error.name}: pip install mcap"
        ) from error
    try:
        return CutReader(path)
    except (OSError, ValueError) as error:
        raise BagError(str(error)) from error


Stamped = dict[int, list[tuple[int, Any]]]


def _by_sequence(messages: Iterator[tuple[int, Any]]) -> Stamped:
    found: Stamped = defaultdict(list)
    for at_ns, message in messages:
        found[message.sequence].append((at_ns, message))
    return found


def _nearest(found: Stamped, sequence: int, at_ns: int, decision: str | None = None) -> Any:
    """With this sequence, and nearest in time: a node that was activated anew counts from 1."""
    fitting = [
        (abs(at - at_ns), message)
        for at, message in found.get(sequence, ())
        if decision is None or message.decision == decision
    ]
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _frame(at_ns: int, message: Any, chunk: Any, latency: Any) -> RecordedFrame:
    stamps = dict(zip(message.input_names, map(float, message.input_stamps), strict=True))
    return RecordedFrame(
        at_s=at_ns * NS,
        sequence=message.sequence,
        tick=message.tick,
        decision=message.decision,
        seed=message.seed,
        num_steps=message.denoise_steps,
        guided_rows=message.guided_rows,
        instruction=message.instruction,
        state=np.asarray(message.state, np.float32),
        stamps_s=stamps,
        chunk=None if chunk is None else _chunk(chunk),
        latency={} if latency is None else _figures(latency),
    )


def _chunk(message: Any) -> RecordedChunk:
    actions = np.asarray(message.actions, np.float32)
    return RecordedChunk(
        actions.reshape(message.horizon, message.action_dim),
        tuple(message.joint_names),
        _seconds(message.observed_at),
        message.backend,
    )


def _figures(message: Any) -> dict[str, Any]:
    names = [name for name in message.__dataclass_fields__ if name not in ("header",)]
    return {name: getattr(message, name) for name in names if not name.startswith("__")}


def _seconds(stamp: Any) -> float:
    """As the node computes it: stamps are compared for equality."""
    return float(stamp.sec) + stamp.nanosec * NS

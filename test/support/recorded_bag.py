"""Bags as `thor-policy record` writes them, of figures that a test knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from thor_policy_ros.ros.bag_writer import MB, BagWriter, Bounds, typestore

NODE = "/policy_node"
START_NS = 1_700_000_000_000_000_000
MESSAGES = Path(__file__).parents[2] / "msg"
PARAMETERS: Mapping[str, Any] = {
    "backend": "pytorch",
    "checkpoint": "/checkpoints/demo",
    "control_rate_hz": 10.0,
    "cameras": ["base"],
    "camera.base.topic": "camera_base/image_raw",
    "camera.base.slot": "base_0_rgb",
    "camera.base.transport": "raw",
    "camera.base.rotate_180": False,
    "joint_names": ["a", "b"],
}


@dataclass(frozen=True)
class FrameRow:
    """A frame as the bag is to hold it; stages in ms by name."""

    total_ms: float
    decision: str = "refill: age"
    stages: Mapping[str, float] = field(default_factory=dict)
    prefix_age_ms: float = 20.0
    deadline_missed: bool = False
    missed_ticks: int = 0
    backend: str = "pytorch"
    instruction: str = "pick up the red cube"
    image: Any = None

    @property
    def gave_chunk(self) -> bool:
        return self.decision.startswith(("refill", "reuse", "pipelined"))


@dataclass(frozen=True)
class StatusRow:
    """One status of one DiagnosticArray, at_s after the begin. level: 0 fine to 3 stale."""

    at_s: float
    name: str
    message: str
    level: int = 0
    values: Mapping[str, str] = field(default_factory=dict)


@cache
def _store() -> Any:
    return typestore(MESSAGES)


class RecordedBag:
    """Frames come every 0.1 s."""

    def __init__(self, path: Path, parameters: Mapping[str, Any] = PARAMETERS) -> None:
        self.store = _store()
        self._slot = parameters["camera.base.slot"]
        facts = {
            "version": "0", "node": NODE, "parameters": dict(parameters), "dropped": {},
            "recorder": {"host": "robot-7", "cpu_count": 2, "python": "3.11"},
        }  # fmt: skip
        self._writer = BagWriter(path, self.store, lambda: facts, Bounds(256 * MB, 0), facts)
        self._sequence = 0
        topics = {
            "/camera_base/image_raw": "sensor_msgs/msg/Image",
            f"{NODE}/action_chunk": "thor_policy_ros/msg/ActionChunk",
            f"{NODE}/frame_latency": "thor_policy_ros/msg/FrameLatency",
            f"{NODE}/frame_inputs": "thor_policy_ros/msg/FrameInputs",
            "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
        }
        self._types = topics
        for topic, kind in topics.items():
            self._writer.add_topic(topic, kind)
        self._writer.start()

    def add(self, frames: Sequence[FrameRow], statuses: Sequence[StatusRow] = ()) -> None:
        for k, frame in enumerate(frames):
            self._add_frame(k, frame)
        for status in statuses:
            self._add_status(status)

    def close(self) -> None:
        assert self._writer.close() == ""

    def _new(self, kind: str, **values: Any) -> Any:
        """A message; figures in ms that are not given are not known."""
        names = (name for name, _ in self.store.fielddefs[kind][1] if name.endswith("_ms"))
        return self.store.types[kind](**(dict.fromkeys(names, float("nan")) | values))

    def _header(self, at_ns: int) -> Any:
        stamp = self._new("builtin_interfaces/msg/Time", sec=at_ns // 10**9, nanosec=at_ns % 10**9)
        return self._new("std_msgs/msg/Header", stamp=stamp, frame_id="")

    def _put(self, topic: str, at_ns: int, message: Any) -> None:
        data = self.store.serialize_cdr(message, self._types[topic])
        self._writer.put(topic, at_ns, bytes(data))

    def _add_frame(self, k: int, frame: FrameRow) -> None:
        at_ns = START_NS + k * 10**8
        seen_ns = at_ns - 3 * 10**7
        image = np.full((64, 64, 3), k % 256, np.uint8) if frame.image is None else frame.image
        self._put("/camera_base/image_raw", seen_ns, self._new(
            "sensor_msgs/msg/Image", header=self._header(seen_ns), height=image.shape[0],
            width=image.shape[1], encoding="rgb8", is_bigendian=0, step=image.shape[1] * 3,
            data=image.ravel(),
        ))  # fmt: skip
        self._sequence += frame.gave_chunk
        if frame.gave_chunk:
            self._add_chunk(at_ns, seen_ns, frame)
        stages = dict.fromkeys(("wait", "preprocess", "vision", "prefill", "denoise",
                                "postprocess", "publish"), 0.0) | dict(frame.stages)  # fmt: skip
        self._put(f"{NODE}/frame_latency", at_ns + 2, self._new(
            "thor_policy_ros/msg/FrameLatency", header=self._header(at_ns),
            sequence=self._sequence, backend=frame.backend,
            **{f"{name}_ms": value for name, value in stages.items()},
            total_ms=frame.total_ms, prefix_age_ms=frame.prefix_age_ms,
            prefix_reused=frame.decision.startswith("reuse"), decision=frame.decision,
            deadline_ms=100.0, deadline_missed=frame.deadline_missed, dropped_frames=0,
            missed_ticks=frame.missed_ticks,
        ))  # fmt: skip
        self._put(f"{NODE}/frame_inputs", at_ns + 3, self._new(
            "thor_policy_ros/msg/FrameInputs", header=self._header(at_ns),
            sequence=self._sequence, gave_chunk=frame.gave_chunk, tick=k, decision=frame.decision,
            seed=k, denoise_steps=3 if frame.gave_chunk else 0, guided_rows=0,
            instruction=frame.instruction, input_names=[self._slot, "state"],
            input_stamps=np.array([seen_ns // 10**9 + seen_ns % 10**9 * 1e-9] * 2),
            state=np.zeros(2, np.float32),
        ))  # fmt: skip

    def _add_chunk(self, at_ns: int, seen_ns: int, frame: FrameRow) -> None:
        observed = self._header(seen_ns).stamp
        values: dict[str, Any] = {
            "header": self._header(at_ns), "observed_at": observed, "sequence": self._sequence,
            "backend": frame.backend, "instruction": frame.instruction,
            "joint_names": ["a", "b"], "horizon": 2, "action_dim": 2,
            "actions": np.zeros(4, np.float32), "dt": 0.1, "prefix_reused": False,
            "prefix_age": 0.02, "blending": "crossfade", "guided_rows": 0,
        }  # fmt: skip
        kind = "thor_policy_ros/msg/ActionChunk"
        self._put(f"{NODE}/action_chunk", at_ns + 1, self._new(kind, **values))

    def _add_status(self, row: StatusRow) -> None:
        at_ns = START_NS + round(row.at_s * 1e9)
        pairs = [
            self._new("diagnostic_msgs/msg/KeyValue", key=key, value=value)
            for key, value in row.values.items()
        ]
        status = self._new("diagnostic_msgs/msg/DiagnosticStatus", level=row.level, name=row.name,
                           message=row.message, hardware_id="robot-7", values=pairs)  # fmt: skip
        self._put("/diagnostics", at_ns, self._new(
            "diagnostic_msgs/msg/DiagnosticArray", header=self._header(at_ns), status=[status]
        ))  # fmt: skip


def write_bag(
    path: Path, frames: Sequence[FrameRow], statuses: Sequence[StatusRow] = (),
    parameters: Mapping[str, Any] = PARAMETERS,
) -> Path:  # fmt: skip
    """A whole recording."""
    bag = RecordedBag(path, parameters)
    bag.add(frames, statuses)
    bag.close()
    return path

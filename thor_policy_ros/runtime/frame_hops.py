"""The way of a frame outside the policy: camera to inference, chunk to the robot's first command.

Stamps of two hosts are compared, so a figure is as true as their clocks agree; a negative one says
that they do not. What is not known is NaN.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass

KEPT = 8  # images of a camera; the one that a frame uses is the newest or the one before


@dataclass(frozen=True)
class Hops:
    """In ms, as FrameLatency has them: the fields are named as there."""

    camera_transport_ms: float = math.nan
    camera_decode_ms: float = math.nan
    camera_wait_ms: float = math.nan
    chunk_transport_ms: float = math.nan
    chunk_handover_ms: float = math.nan
    feedback_transport_ms: float = math.nan
    observation_to_command_ms: float = math.nan

    def known(self) -> dict[str, float]:
        """By name without its unit, those that are."""
        found = {name.removesuffix("_ms"): ms for name, ms in asdict(self).items()}
        return {name: ms for name, ms in found.items() if math.isfinite(ms)}


HOPS = tuple(name.removesuffix("_ms") for name in Hops.__dataclass_fields__)


@dataclass(frozen=True)
class Answer:
    """Of the executor, to one chunk. All in s; observation_to_command_s: NaN for one refused."""

    chunk_transport_s: float
    chunk_handover_s: float
    feedback_transport_s: float
    observation_to_command_s: float


@dataclass(frozen=True)
class _Arrival:
    stamp_s: float
    received_s: float
    decode_s: float

    @property
    def ready_s(self) -> float:
        return self.received_s + self.decode_s


class FrameHops:
    """Collects arrivals and answers; may be called by any thread. Times in s of ROS time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals: dict[str, deque[_Arrival]] = {}
        self._answer: Answer | None = None

    def arrived(self, slot: str, stamp_s: float, received_s: float, decode_s: float) -> None:
        """An image of this camera slot, and how long it took to decode."""
        with self._lock:
            kept = self._arrivals.setdefault(slot, deque(maxlen=KEPT))
            kept.append(_Arrival(stamp_s, received_s, decode_s))

    def answered(self, answer: Answer) -> None:
        with self._lock:
            self._answer = answer

    def of_frame(self, stamps_s: Mapping[str, float], begun_s: float) -> Hops:
        """Of the frame that began then with the inputs of these stamps, by camera slot. An answer
        is told once."""
        with self._lock:
            used = [
                found for slot, stamp_s in stamps_s.items() if (found := self._of(slot, stamp_s))
            ]
            answer, self._answer = self._answer, None
        camera = max(used, key=lambda arrival: arrival.ready_s - arrival.stamp_s, default=None)
        known = {} if camera is None else _camera_ms(camera, begun_s)
        return Hops(**known, **({} if answer is None else _answer_ms(answer)))

    def _of(self, slot: str, stamp_s: float) -> _Arrival | None:
        kept = self._arrivals.get(slot, ())
        return next((arrival for arrival in reversed(kept) if arrival.stamp_s == stamp_s), None)


def _camera_ms(camera: _Arrival, begun_s: float) -> dict[str, float]:
    return {
        "camera_transport_ms": (camera.received_s - camera.stamp_s) * 1e3,
        "camera_decode_ms": camera.decode_s * 1e3,
        "camera_wait_ms": (begun_s - camera.ready_s) * 1e3,
    }


def _answer_ms(answer: Answer) -> dict[str, float]:
    return {f"{name.removesuffix('_s')}_ms": value * 1e3 for name, value in asdict(answer).items()}

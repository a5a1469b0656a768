"""The newest input of every kind, and whether together they make an observation.

Callbacks put, the control timer takes a snapshot; none waits for inference. All methods may
be called from any thread and take O(1) time (O(cameras) for a snapshot).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from thor_policy_ros.runtime.frozen_camera import FrozenWatch, sample
from thor_policy_ros.types import F32, U8, Observation

STATE = "state"
PROMPT = "prompt"
# Stamps of another machine may be ahead by this much before an input counts as from the future.
CLOCK_TOLERANCE_S = 0.05


_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class NotReady:
    """Why there is no observation: one reason per input at fault, each naming it."""

    reasons: tuple[str, ...]


@dataclass
class _Camera:
    image: U8
    stamp_s: float = -math.inf
    unread: bool = False
    drops: int = 0
    watch: FrozenWatch = field(default_factory=FrozenWatch)

    def put(self, image: U8, stamp_s: float) -> None:
        self.drops += self.unread
        self.image, self.stamp_s, self.unread = image, stamp_s, True

    def read(self) -> U8:
        self.unread = False
        return self.image


@dataclass
class _Inputs:
    cameras: dict[str, _Camera]
    state: F32
    state_stamp_s: float = -math.inf
    prompt: str | None = None


class LatestFrames:
    """Holds the newest image per camera slot, the newest state and the prompt.

    slots: the cameras an observation needs, all of them.
    state_dim: length of the state; 0 if the policy wants none.
    max_age_s: an input older than this at the snapshot is stale.
    max_skew_s: two inputs farther apart than this do not show the same moment.
    frozen_after_s: a camera that sends the same picture for so long is frozen; 0: none ever is.
    refuse_frozen: no observation while a camera is frozen.
    All four may be set while running.
    """

    def __init__(
        self, slots: Sequence[str], state_dim: int, max_age_s: float, max_skew_s: float
    ) -> None:
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"latest frames want camera slots, each once; got {tuple(slots)}")
        self.slots = tuple(slots)
        self.state_dim = state_dim
        self._lock = threading.Lock()
        self._max_age_s = _positive("max_age_s", max_age_s)
        self._max_skew_s = _positive("max_skew_s", max_skew_s)
        self.frozen_after_s = 0.0
        self.refuse_frozen = False
        self._held = self._nothing()

    @property
    def max_age_s(self) -> float:
        return self._max_age_s

    @max_age_s.setter
    def max_age_s(self, value: float) -> None:
        self._max_age_s = _positive("max_age_s", value)

    @property
    def max_skew_s(self) -> float:
        return self._max_skew_s

    @max_skew_s.setter
    def max_skew_s(self, value: float) -> None:
        self._max_skew_s = _positive("max_skew_s", value)

    @property
    def drops(self) -> dict[str, int]:
        """Per slot: images that a newer one replaced, or that came late, before any was read."""
        with self._lock:
            return {slot: camera.drops for slot, camera in self._held.cameras.items()}

    @property
    def same_picture_s(self) -> dict[str, float]:
        """Per slot: for how long the newest picture has been coming; NaN before the first, or
        while frozen_after_s is 0."""
        with self._lock:
            return {slot: camera.watch.same_s for slot, camera in self._held.cameras.items()}

    @property
    def frozen(self) -> dict[str, str]:
        """What to say of each camera that is frozen, by slot."""
        with self._lock:
            watches = {slot: camera.watch for slot, camera in self._held.cameras.items()}
            return {slot: watch.words for slot, watch in watches.items() if watch.frozen}

    def reset(self) -> None:
        """Forget inputs, prompt and counters."""
        with self._lock:
            self._held = self._nothing()

    def put_image(self, slot: str, image: U8, stamp_s: float) -> None:
        """Keep `image`, u8[H,W,3] RGB, without copying it: it must not be written to afterwards.

        An image older than the one held is dropped, unless it is so much older that the clock
        must have gone back.
        """
        if slot not in self.slots:
            raise ValueError(f"unknown camera slot {slot!r}; choose one of {self.slots}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"camera {slot!r} wants u8[H,W,3], got {image.dtype}{image.shape}")
        _require_finite_stamp(slot, stamp_s)
        held = image.view()
        held.flags.writeable = False
        after_s = self.frozen_after_s
        sampled = sample(held) if after_s > 0 else b""
        with self._lock:
            camera = self._held.cameras[slot]
            if self._is_late(stamp_s, camera.stamp_s):
                camera.drops += 1
                return
            camera.put(held, stamp_s)
            if after_s > 0:
                camera.watch.add(held, sampled, stamp_s, after_s)
            elif camera.watch.frozen:
                camera.watch = FrozenWatch()

    def put_state(self, state: F32, stamp_s: float) -> None:
        """Keep a copy of `state`, f32[S], robot units; one that is late is ignored."""
        copy = np.array(state, dtype=np.float32)
        if copy.shape != (self.state_dim,):
            raise ValueError(f"state wants shape ({self.state_dim},), got {copy.shape}")
        _require_finite_stamp(STATE, stamp_s)
        copy.flags.writeable = False
        with self._lock:
            if not self._is_late(stamp_s, self._held.state_stamp_s):
                self._held.state, self._held.state_stamp_s = copy, stamp_s

    def set_prompt(self, text: str) -> None:
        """The instruction from now on; '' is an instruction too (a blank one)."""
        with self._lock:
            self._held.prompt = text

    def input_ages_s(self, now_s: float) -> dict[str, float | None]:
        """Age of each input that has come, by slot name or 'state'; None if it has not."""
        with self._lock:
            stamps = self._stamps()
        return {k: now_s - s if math.isfinite(s) else None for k, s in stamps.items()}

    def snapshot(self, now_s: float) -> Observation | NotReady:
        """The observation for `now_s`, or why there is none. Images are shared, not copied."""
        with self._lock:
            prompt = self._held.prompt
            reasons = self._reasons(now_s)
            if reasons or prompt is None:
                return NotReady(reasons)
            images = {slot: camera.read() for slot, camera in self._held.cameras.items()}
            stamps = self._stamps()
            return Observation(images, self._held.state, prompt, min(stamps.values()), stamps)

    def _nothing(self) -> _Inputs:
        cameras = {slot: _Camera(_NO_IMAGE) for slot in self.slots}
        return _Inputs(cameras, np.zeros(self.state_dim, np.float32))

    def _is_late(self, stamp_s: float, held_stamp_s: float) -> bool:
        return held_stamp_s - self._max_age_s <= stamp_s < held_stamp_s

    def _stamps(self) -> dict[str, float]:
        stamps = {slot: camera.stamp_s for slot, camera in self._held.cameras.items()}
        if self.state_dim:
            stamps[STATE] = self._held.state_stamp_s
        return stamps

    def _reasons(self, now_s: float) -> tuple[str, ...]:
        stamps = self._stamps()
        found = [self._fault(name, now_s, stamp_s) for name, stamp_s in stamps.items()]
        if self.refuse_frozen and not any(found):
            found += [self._frozen(slot, camera) for slot, camera in self._held.cameras.items()]
        if not any(found):
            found.append(self._skew(stamps))
        broken = np.nonzero(~np.isfinite(self._held.state))[0].tolist()
        if broken:
            found.append(f"{STATE}: elements {broken} are not finite")
        if self._held.prompt is None:
            found.append(f"{PROMPT}: missing, no instruction has come")
        return tuple(reason for reason in found if reason)

    def _fault(self, name: str, now_s: float, stamp_s: float) -> str:
        age_s = now_s - stamp_s
        if stamp_s == -math.inf:
            return f"{name}: missing, none has come"
        if age_s > self._max_age_s:
            return f"{name}: stale, {age_s:.3f} s old (at most {self._max_age_s:g} s)"
        if age_s < -CLOCK_TOLERANCE_S:
            return f"{name}: future, stamped {-age_s:.3f} s ahead of now; compare the clocks"
        return ""

    def _frozen(self, slot: str, camera: _Camera) -> str:
        if not camera.watch.frozen:
            return ""
        return f"{slot}: {camera.watch.words}"

    def _skew(self, stamps: Mapping[str, float]) -> str:
        oldest, newest = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        skew_s = stamps[newest] - stamps[oldest]
        if skew_s <= self._max_skew_s:
            return ""
        return (
            f"{oldest}: skewed, {skew_s:.3f} s older than {newest} (at most {self._max_skew_s:g} s)"
        )


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} wants a positive number of seconds, got {value}")
    return float(value)


def _require_finite_stamp(name: str, stamp_s: float) -> None:
    if not math.isfinite(stamp_s):
        raise ValueError(f"{name}: wants a finite stamp in s, got {stamp_s}")

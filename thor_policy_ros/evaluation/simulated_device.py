"""A policy that computes what it computes, in the time that another device would take.

The engine runs as it is; a clock of its own is moved by the times of a profile. So a study in
simulated time sees the latency of a robot's GPU, the same on every machine, and device time is
counted exactly, busy machine or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.runtime.prefix_keeper import Policy
from thor_policy_ros.types import (
    F32,
    Backend,
    BackendSpec,
    Bool,
    Guidance,
    KeepsVision,
    ModelInputs,
    Observation,
    PrefixKV,
)


@dataclass(frozen=True)
class DeviceProfile:
    """ms of each stage: one camera's vision, the prefix of all, one denoise step.

    jitter: standard deviation of the logarithm of every time.
    """

    vision_ms: float
    prefill_ms: float
    step_ms: float
    jitter: float = 0.05

    def frame_ms(self, cameras: int, num_steps: int) -> float:
        """Of a full frame, without jitter."""
        return cameras * self.vision_ms + self.prefill_ms + num_steps * self.step_ms


@dataclass
class DeviceUse:
    """What was computed. ms: device time; images: encoded; steps: denoise steps."""

    ms: float = 0.0
    images: int = 0
    prefills: int = 0
    steps: int = 0
    frames: int = 0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class SimulatedDevice:
    """A `Policy` around another one. `clock` is for its runner; `begin` starts an episode."""

    def __init__(self, policy: Policy, profile: DeviceProfile, spec: BackendSpec) -> None:
        self._policy = policy
        self._profile = profile
        self.spec = spec
        self.backend: Backend = _TimedBackend(policy.backend, self)
        self.begin(0)

    def begin(self, seed: int) -> None:
        """The clock and the counters start at 0, the jitter from `seed`."""
        self.now_s = 0.0
        self.use = DeviceUse()
        self._random = np.random.default_rng(seed)

    def clock(self) -> float:
        return self.now_s

    def takes(self, ms: float) -> float:
        """Lets a stage of nominally `ms` pass; its time this time."""
        ms *= float(np.exp(self._random.normal(0.0, self._profile.jitter)))
        self.now_s += ms / 1e3
        self.use.ms += ms
        return ms

    @property
    def profile(self) -> DeviceProfile:
        return self._profile

    @property
    def config(self) -> PolicyConfig:
        return self._policy.config

    def preprocess(self, observation: Observation) -> ModelInputs:
        return self._policy.preprocess(observation)

    def postprocess(self, actions: F32, state: F32) -> F32:
        return self._policy.postprocess(actions, state)

    def normalise(self, actions: F32, state: F32) -> F32:
        return self._policy.normalise(actions, state)


class _TimedBackend:
    """The engine, with every stage told to the device."""

    def __init__(self, engine: Backend, device: SimulatedDevice) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._device = device
        self._times = {"vision": 0.0, "prefill": 0.0, "denoise": 0.0}

    def warmup(self) -> None:
        self._engine.warmup()

    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        self._encode(inputs.image_mask)
        return self._engine.prefill(inputs, observed_at_s)

    def prefill_keeping(self, inputs: ModelInputs, observed_at_s: float, keep: Bool) -> PrefixKV:
        if not isinstance(self._engine, KeepsVision):
            raise ValueError(f"backend {self.spec.name!r} cannot keep vision tokens")
        self._encode(inputs.image_mask & ~keep)
        return self._engine.prefill_keeping(inputs, observed_at_s, keep)

    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        device = self._device
        device.use.steps += num_steps
        device.use.frames += 1
        self._times["denoise"] = device.takes(num_steps * device.profile.step_ms)
        return self._engine.denoise(prefix, noise, num_steps, guidance)

    def stage_times_ms(self) -> Mapping[str, float]:
        return dict(self._times)

    def close(self) -> None:
        self._engine.close()

    def _encode(self, cameras: Bool) -> None:
        device, images = self._device, int(cameras.sum())
        device.use.images += images
        device.use.prefills += 1
        self._times["vision"] = device.takes(images * device.profile.vision_ms)
        self._times["prefill"] = device.takes(device.profile.prefill_ms)

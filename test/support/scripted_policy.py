"""A policy without a model: instant, and as broken as a test wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
from support.arm_checkpoint import arm_policy_config

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.types import F32, BackendSpec, Guidance, ModelInputs, Observation, PrefixKV


class ScriptedBackend:
    """Counts calls and threads; `gate`, where set, holds `denoise` until it is set."""

    spec = BackendSpec(name="pytorch", engine="pytorch")

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.gate: threading.Event | None = None
        self.denoising = threading.Event()
        self.fails: Exception | None = None
        self.steps: list[int] = []
        self.guidance: list[Guidance | None] = []
        self.closed = 0

    def warmup(self) -> None:
        self._called()

    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        self._called()
        return PrefixKV(None, None, None, observed_at_s, 1)

    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        self._called()
        self.steps.append(num_steps)
        self.guidance.append(guidance)
        self.denoising.set()
        if self.gate is not None:
            assert self.gate.wait(30.0)
        if self.fails is not None:
            raise self.fails
        return np.zeros_like(noise)

    def stage_times_ms(self) -> Mapping[str, float]:
        return {"vision": 1.0, "prefill": 2.0, "denoise": 3.0}

    def close(self) -> None:
        self._called()
        self.closed += 1

    def _called(self) -> None:
        self.threads.add(threading.current_thread().name)


class ScriptedPolicy:
    """Commands the state that it saw, `actions` when set."""

    def __init__(self) -> None:
        self.backend = ScriptedBackend()
        self.config: PolicyConfig = arm_policy_config()
        self.spec = self.backend.spec
        self.actions: F32 | None = None
        self.observations: list[Observation] = []
        self.on_observation: Callable[[Observation], None] = lambda observation: None

    def preprocess(self, observation: Observation) -> ModelInputs:
        self.observations.append(observation)
        self.on_observation(observation)
        empty = np.zeros((2, 3, 2, 2), np.float32)
        return ModelInputs(empty, np.ones(2, bool), np.zeros(1, np.int32), np.ones(1, bool))

    def postprocess(self, actions: F32, state: F32) -> F32:
        if self.actions is not None:
            return self.actions
        return np.tile(state, (self.config.model.action_horizon, 1)).astype(np.float32)

    def normalise(self, actions: F32, state: F32) -> F32:
        padded = np.zeros((len(actions), self.config.model.action_dim), np.float32)
        padded[:, : actions.shape[1]] = actions - state
        return padded

    def close(self) -> None:
        self.backend.close()

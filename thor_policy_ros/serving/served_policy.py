"""A policy as the server runs it: several requests in, a chunk or the reason for none for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from thor_policy_ros.backends.batched import can_batch, sample_batch
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.runtime.safety import check_chunk
from thor_policy_ros.runtime.unified_policy import InferenceRefusedError, UnifiedPolicy
from thor_policy_ros.runtime.verification import precision_of
from thor_policy_ros.types import F32, ActionChunk, ModelInputs, Observation

MAX_STEPS = 100


@dataclass(frozen=True)
class Request:
    """One observation to infer on. num_steps: of the flow; noise: f32[H,32], or None to draw."""

    observation: Observation
    num_steps: int
    noise: F32 | None = None


class ServedPolicy(Protocol):
    """What the server needs. One thread makes, calls and closes it."""

    @property
    def config(self) -> PolicyConfig: ...

    @property
    def max_batch(self) -> int:
        """How many requests one call takes."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What clients are told of it: numbers, text, lists."""
        ...

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk | Exception]:
        """For each request a chunk, or what was wrong with it (ValueError, InferenceRefusedError).
        What is wrong with the policy itself is raised."""
        ...

    def close(self) -> None: ...


class LocalPolicy:
    """A `UnifiedPolicy`; requests of the same number of steps share one pass where that engine
    can. batch: the most that share one.
    """

    def __init__(
        self,
        policy: UnifiedPolicy,
        batch: int = 8,
        seed: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._policy = policy
        self._random = np.random.default_rng(seed)
        self._clock = clock
        self.config = policy.config
        self.max_batch = batch if can_batch(policy.backend) else 1

    def facts(self) -> Mapping[str, Any]:
        model = self.config.model
        return {
            "config": self.config.name,
            "backend": self._policy.spec.name,
            "precision": precision_of(self._policy),
            "action_horizon": model.action_horizon,
            "action_dim": self.config.action_dim,
            "action_dt_s": self.config.action_dt_s,
            "noise_shape": [model.action_horizon, model.action_dim],
            "max_batch": self.max_batch,
        }

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk | Exception]:
        if len(requests) == 1:
            return [self._one(requests[0])]
        return self._several(requests)

    def close(self) -> None:
        self._policy.close()

    def _one(self, request: Request) -> ActionChunk | Exception:
        try:
            return self._policy.infer(
                request.observation, request.num_steps, noise=self._noise(request)
            )
        except (ValueError, InferenceRefusedError) as error:
            return error

    def _several(self, requests: Sequence[Request]) -> list[ActionChunk | Exception]:
        """One pass for all whose observation is as it should be."""
        found: list[ModelInputs | Exception] = [self._inputs(request) for request in requests]
        results: list[ActionChunk | Exception] = [
            one if isinstance(one, Exception) else ValueError("not inferred") for one in found
        ]
        good = [(i, one) for i, one in enumerate(found) if isinstance(one, ModelInputs)]
        for steps in sorted({requests[i].num_steps for i, _ in good}):
            group = [(i, one) for i, one in good if requests[i].num_steps == steps]
            noise = np.stack([self._noise(requests[i]) for i, _ in group])
            inputs = [one for _, one in group]
            actions = sample_batch(self._policy.backend, inputs, noise, steps)
            for (i, _), normalised in zip(group, actions, strict=True):
                results[i] = self._chunk(requests[i].observation, normalised)
        return results

    def _inputs(self, request: Request) -> ModelInputs | Exception:
        try:
            return self._policy.preprocess(request.observation)
        except ValueError as error:
            return error

    def _chunk(self, observation: Observation, normalised: F32) -> ActionChunk | Exception:
        dt_s = self.config.action_dt_s
        actions = self._policy.postprocess(normalised, observation.state)
        refused = check_chunk(actions, dt_s, None)
        if refused:
            return InferenceRefusedError(f"no chunk: {refused}")
        return ActionChunk(actions, dt_s, observation.stamp_s)

    def _noise(self, request: Request) -> F32:
        if request.noise is not None:
            return request.noise
        model = self.config.model
        shape = (model.action_horizon, model.action_dim)
        return self._random.standard_normal(shape, dtype=np.float32)

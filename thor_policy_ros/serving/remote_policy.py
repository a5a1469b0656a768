"""A policy that runs on a server of openpi's protocol: observation out, whole chunks back.

There is no prefix here to keep and no flow to guide: the server returns actions in robot units.
What comes back is held to the same checks as a chunk made here; a server that is lost, slow or
wrong costs a bounded time and gives the reason for no chunk, never an exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from thor_policy_ros.backends.registry import REMOTE
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.prefix_keeper import Policy
from thor_policy_ros.runtime.safety import check_chunk
from thor_policy_ros.runtime.stopwatch import Stopwatch
from thor_policy_ros.runtime.unified_policy import InferenceRefusedError
from thor_policy_ros.serving.observation_keys import keys_of, message_of
from thor_policy_ros.serving.openpi_connection import OpenpiConnection, RemoteError
from thor_policy_ros.serving.requests import NOISE, NUM_STEPS
from thor_policy_ros.types import (
    F32,
    ActionChunk,
    BackendSpec,
    FrameTiming,
    JointLimits,
    Observation,
    StepResult,
)

DECISION = "refill: remote"
WHOLE_CHUNKS = "whole chunks of a server: no reuse of a prefix, no real-time chunking"
# What a server may say of itself in its metadata, and what it must not contradict.
_FACTS: tuple[tuple[str, Callable[[PolicyConfig], Any]], ...] = (
    ("config", lambda config: config.name),
    ("action_horizon", lambda config: config.model.action_horizon),
    ("action_dim", lambda config: config.action_dim),
)


class RemoteFacts:
    """Stands where the engine of another policy does. notes, warnings: for diagnostics."""

    def __init__(self, spec: BackendSpec) -> None:
        self.spec = spec
        self.notes: tuple[str, ...] = (WHOLE_CHUNKS,)
        self.warnings: tuple[str, ...] = ()

    def stage_times_ms(self) -> Mapping[str, float]:
        return {"vision": 0.0, "prefill": 0.0, "denoise": 0.0}


class RemotePolicy:
    """The policy `config` on a server. One thread uses it at a time.

    keys: the named config whose observation names the server has, '' for the policy's own.
    Connecting is `warmup`'s; see `OpenpiConnection` for the other arguments.
    """

    def __init__(
        self,
        config: PolicyConfig,
        host: str,
        port: int,
        timeout_s: float = 1.0,
        *,
        token: str = "",
        keys: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.spec: BackendSpec = REMOTE
        self.config = config
        self.keys = keys_of(config, keys)
        self.backend = RemoteFacts(REMOTE)
        self._connection = OpenpiConnection(host, port, timeout_s, token, clock)
        self._takes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Of the server, for people."""
        return self._connection.name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the server says of itself; {} before `warmup`."""
        return self._connection.metadata or {}

    @property
    def takes_noise(self) -> bool:
        """Whether answers can be repeated, and so be compared with a reference."""
        return NOISE in self._takes

    def warmup(self) -> None:
        """Connect. RemoteError where that is not possible; ValueError for another policy."""
        metadata = self._connection.connect()
        wrong = [
            f"{name} is {metadata[name]!r}, wanted {wanted(self.config)!r}"
            for name, wanted in _FACTS
            if name in metadata and metadata[name] != wanted(self.config)
        ]
        if wrong:
            raise ValueError(f"{self.name} serves another policy: {'; '.join(wrong)}")
        optional = metadata.get("optional_keys")
        self._takes = frozenset(optional if isinstance(optional, list) else ())

    def actions(self, observation: Observation, num_steps: int, noise: F32 | None = None) -> F32:
        """f32[H,A], robot units. RemoteError without an answer or for one of another form;
        ValueError for an observation that the server does not take."""
        size = self.config.model.vision.image_size
        message = message_of(observation, self.keys, size)
        if NUM_STEPS in self._takes:
            message[NUM_STEPS] = num_steps
        if noise is not None and self.takes_noise:
            message[NOISE] = noise
        return self._checked(self._connection.ask(message).get("actions"))

    def infer(
        self,
        observation: Observation,
        num_steps: int = 10,
        seed: int | None = None,
        noise: F32 | None = None,
    ) -> ActionChunk:
        """As `UnifiedPolicy.infer`; noise and seed have an effect where the server takes noise."""
        runner = RemoteRunner(self, None, time.perf_counter)
        result = runner.step(observation, observation.stamp_s, 0, num_steps, noise=noise, seed=seed)
        if result.chunk is None:
            raise InferenceRefusedError(
                f"no chunk from backend {self.spec.name!r}: {result.refused}"
            )
        return result.chunk

    def close(self) -> None:
        self._connection.close()

    def _checked(self, actions: Any) -> F32:
        wanted = (self.config.model.action_horizon, self.config.action_dim)
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
            raise RemoteError(f"{self.name}: wanted actions {list(wanted)}, got {_kind(actions)}")
        if actions.shape != wanted:
            raise RemoteError(
                f"{self.name}: wanted actions {list(wanted)}, got {list(actions.shape)}"
            )
        with np.errstate(over="ignore"):  # infinite then, which the check refuses
            return actions.astype(np.float32)


class RemoteRunner(PolicyRunner):
    """Runs a remote policy tick by tick. Every step is a new observation's: `rules` and `chunking`
    have no effect.
    """

    def __init__(
        self,
        policy: RemotePolicy,
        limits: JointLimits | None,
        clock: Callable[[], float],
        *,
        joint_names: Sequence[str] = (),
    ) -> None:
        super().__init__(cast(Policy, policy), limits, clock, joint_names=joint_names)
        self._remote = policy

    def step(
        self,
        observation: Observation,
        now_s: float,
        tick: int,
        num_steps: int = 10,
        *,
        noise: F32 | None = None,
        seed: int | None = None,
        waited_s: float = 0.0,
    ) -> StepResult:
        """Ask the server for one chunk; see `PolicyRunner.step`. The time that the answer took is
        'denoise' of the timing. A server that fails in any way is a refusal."""
        notes = self._count_tick(tick)
        watch = Stopwatch(self._clock)
        if noise is not None or seed is not None:
            noise = self._noise(noise, seed)
        age_ms = (now_s - observation.stamp_s) * 1e3
        try:
            actions = self._remote.actions(observation, num_steps, noise)
        except RemoteError as error:
            watch.lap("denoise")
            return StepResult(None, self._remote_timing(watch, age_ms), DECISION, str(error), notes)
        watch.lap("denoise")
        dt_s = self._remote.config.action_dt_s
        refused = check_chunk(
            actions,
            dt_s,
            self._limits,
            joint_names=self._joint_names,
            tolerance=self._tolerance,
        )
        watch.lap("postprocess")
        timing = self._remote_timing(watch, age_ms)
        if refused:
            return StepResult(None, timing, DECISION, refused, notes, num_steps)
        chunk = ActionChunk(actions, dt_s, observation.stamp_s, False, timing)
        return StepResult(chunk, timing, DECISION, notes=notes, num_steps=num_steps)

    def _remote_timing(self, watch: Stopwatch, age_ms: float) -> FrameTiming:
        return FrameTiming(
            denoise_ms=watch.ms("denoise"),
            postprocess_ms=watch.ms("postprocess"),
            total_ms=watch.elapsed_s * 1e3,
            prefix_age_ms=age_ms,
            missed_ticks=self._missed_ticks,
        )


def _kind(value: Any) -> str:
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__

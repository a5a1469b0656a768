"""One step of the policy: observation in, checked action chunk or the reason for none out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.runtime.reuse import (
    HeldPrefix,
    Late,
    PrefixKey,
    Refill,
    Reuse,
    decide,
    decide_pipelined,
)
from thor_policy_ros.runtime.safety import Tolerance, check_chunk
from thor_policy_ros.types import (
    F32,
    ActionChunk,
    Backend,
    BackendSpec,
    FrameTiming,
    JointLimits,
    ModelInputs,
    Observation,
    PrefixKV,
    StepResult,
)


class Policy(Protocol):
    """What the runner needs of a `UnifiedPolicy`."""

    @property
    def config(self) -> PolicyConfig: ...

    @property
    def spec(self) -> BackendSpec: ...

    @property
    def backend(self) -> Backend: ...

    def preprocess(self, observation: Observation) -> ModelInputs: ...

    def postprocess(self, actions: F32, state: F32) -> F32:
        """Normalised actions, f32[H,32], made from `state` -> robot units, f32[H,A]."""
        ...


@dataclass(frozen=True)
class _Prefix:
    """A prefix, with the state that its actions are relative to."""

    facts: HeldPrefix
    kv: PrefixKV
    state: F32


@dataclass(frozen=True)
class _Choice:
    """use: the prefix of this step. keep: the one for the next, newer if pipelined."""

    use: _Prefix
    keep: _Prefix
    decision: Refill | Reuse | Late

    @property
    def said(self) -> str:
        if isinstance(self.decision, Refill):
            return f"refill: {self.decision.reason}"
        return "reuse" if isinstance(self.decision, Reuse) else "pipelined"


class _Stopwatch:
    """Durations of named stages, in ms, one after the other."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun_s = self._lap_s = clock()
        self._stages: dict[str, float] = {}

    @property
    def elapsed_s(self) -> float:
        """From the beginning to the last lap."""
        return self._lap_s - self._begun_s

    def lap(self, stage: str) -> None:
        now_s = self._clock()
        self._stages[stage] = (now_s - self._lap_s) * 1e3
        self._lap_s = now_s

    def ms(self, stage: str) -> float:
        """0 for a stage that did not run."""
        return self._stages.get(stage, 0.0)


class PolicyRunner:
    """Runs a policy tick by tick. The thread that owns the backend owns the runner.

    limits: of the actions, f32[A] each, or None to check only that they are finite.
    clock: seconds, for the durations of stages alone; `now_s` of a step tells the time.
    joint_names: of the actions, for the reasons of refusals.
    """

    def __init__(
        self,
        policy: Policy,
        limits: JointLimits | None,
        clock: Callable[[], float],
        *,
        tolerance: Tolerance = Tolerance(),  # noqa: B008 (frozen)
        joint_names: Sequence[str] = (),
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._tolerance = tolerance
        self._joint_names = tuple(joint_names)
        self._random = np.random.default_rng()
        self.reset()

    def reset(self) -> None:
        """Forget the prefix and the tick: the next step refills and has missed nothing."""
        self._prefix: _Prefix | None = None
        self._tick: int | None = None
        self._missed_ticks = 0

    def step(
        self,
        observation: Observation,
        now_s: float,
        tick: int,
        num_steps: int = 10,
        *,
        noise: F32 | None = None,
        seed: int | None = None,
    ) -> StepResult:
        """Infer one chunk.

        now_s: the present on the clock of `observation.stamp_s`. tick: counts the control
        ticks, missed ones too. num_steps: of the flow. noise: f32[H,32], or drawn from `seed`,
        or from entropy.

        A pipelined policy launches the prefix of this observation and denoises the one of the
        step before: its chunk is timed by that older observation and relative to its state.

        A chunk that fails the safety check is refused, and the next step refills. What the
        policy raises passes through, and the next step refills too.
        """
        if num_steps < 1:
            raise ValueError(f"a step wants at least 1 denoise step, got {num_steps}")
        noise = self._noise(noise, seed)
        notes = self._count_tick(tick)
        watch = _Stopwatch(self._clock)
        choice = self._choose(observation, tick, watch)
        prefix = choice.use
        age_ms = (now_s + watch.elapsed_s - prefix.facts.observed_at_s) * 1e3
        normalised = self._policy.backend.denoise(prefix.kv, noise, num_steps)
        watch.lap("denoise")
        actions = self._policy.postprocess(normalised, prefix.state)
        watch.lap("postprocess")
        refused = self._check(actions)
        watch.lap("check")
        reused = isinstance(choice.decision, Reuse)
        timing = self._timing(watch, reused, age_ms)
        if refused:
            return StepResult(None, timing, choice.said, refused, notes)
        self._prefix = choice.keep
        chunk = ActionChunk(
            actions, self._policy.config.action_dt_s, prefix.facts.observed_at_s, reused, timing
        )
        return StepResult(chunk, timing, choice.said, notes=notes)

    def _choose(self, observation: Observation, tick: int, watch: _Stopwatch) -> _Choice:
        """The prefix of this step, held or new. Leaves none held, so that a step which fails
        from here on leaves nothing to reuse."""
        held, self._prefix = self._prefix, None
        if self._policy.spec.pipelined:
            return self._choose_pipelined(held, observation, tick, watch)
        inputs = self._inputs_if_key(observation)
        key = _key(observation, inputs)
        facts = held.facts if held else None
        every = self._policy.spec.reuse_every
        decision = decide(facts, key, tick, observation.stamp_s, every)
        if held is not None and isinstance(decision, Reuse):
            watch.lap("decide" if inputs is None else "preprocess")
            return _Choice(held, held, decision)
        made = self._prefill(observation, inputs, key, tick, watch)
        return _Choice(made, made, decision)

    def _choose_pipelined(
        self, held: _Prefix | None, observation: Observation, tick: int, watch: _Stopwatch
    ) -> _Choice:
        """Launches the prefix of this observation, whichever one this step uses."""
        key = _key(observation, None)
        facts = held.facts if held else None
        decision = decide_pipelined(facts, key, tick, observation.stamp_s)
        made = self._prefill(observation, None, key, tick, watch)
        use = held if held is not None and isinstance(decision, Late) else made
        return _Choice(use, made, decision)

    def _prefill(
        self,
        observation: Observation,
        inputs: ModelInputs | None,
        key: PrefixKey,
        tick: int,
        watch: _Stopwatch,
    ) -> _Prefix:
        if inputs is None:
            inputs = self._policy.preprocess(observation)
        watch.lap("preprocess")
        kv = self._policy.backend.prefill(inputs, observation.stamp_s)
        watch.lap("prefill")
        return _Prefix(HeldPrefix(key, tick, observation.stamp_s), kv, observation.state)

    def _inputs_if_key(self, observation: Observation) -> ModelInputs | None:
        """The model's inputs if the decision needs them: the state may be among the tokens.

        Otherwise a step that reuses the prefix is spared resizing images nobody looks at.
        """
        if self._policy.config.state_in_prompt and self._policy.spec.reuse_every > 1:
            return self._policy.preprocess(observation)
        return None

    def _check(self, actions: F32) -> str:
        return check_chunk(
            actions,
            self._policy.config.action_dt_s,
            self._limits,
            joint_names=self._joint_names,
            tolerance=self._tolerance,
        )

    def _count_tick(self, tick: int) -> tuple[str, ...]:
        self._missed_ticks = 0 if self._tick is None else max(tick - self._tick - 1, 0)
        self._tick = tick
        return (f"missed {self._missed_ticks} control ticks",) if self._missed_ticks else ()

    def _timing(self, watch: _Stopwatch, reused: bool, age_ms: float) -> FrameTiming:
        stages = self._policy.backend.stage_times_ms()
        return FrameTiming(
            preprocess_ms=watch.ms("preprocess"),
            vision_ms=0.0 if reused else stages["vision"],
            prefill_ms=0.0 if reused else stages["prefill"],
            denoise_ms=stages["denoise"],
            postprocess_ms=watch.ms("postprocess"),
            total_ms=watch.elapsed_s * 1e3,
            prefix_age_ms=age_ms,
            missed_ticks=self._missed_ticks,
        )

    def _noise(self, noise: F32 | None, seed: int | None) -> F32:
        model = self._policy.config.model
        shape = (model.action_horizon, model.action_dim)
        if noise is None:
            random = self._random if seed is None else np.random.default_rng(seed)
            return random.standard_normal(shape, dtype=np.float32)
        if seed is not None:
            raise ValueError(f"a step wants noise or a seed, got both (seed {seed})")
        if noise.shape != shape:
            raise ValueError(f"a step wants noise of shape {shape}, got {noise.shape}")
        return noise


def _key(observation: Observation, inputs: ModelInputs | None) -> PrefixKey:
    tokens = b"" if inputs is None else inputs.tokens[inputs.token_mask].tobytes()
    return PrefixKey(observation.prompt, frozenset(observation.images), tokens)

"""One step of the policy: observation in, checked action chunk or the reason for none out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from thor_policy_ros.runtime.deadline import Costs, NoFrame
from thor_policy_ros.runtime.flow_guide import guidance_for
from thor_policy_ros.runtime.frame_costs import FrameCosts
from thor_policy_ros.runtime.prefix_keeper import Ask, Choice, Policy, Prefix, PrefixKeeper
from thor_policy_ros.runtime.real_time_chunking import RealTimeChunking
from thor_policy_ros.runtime.reuse import ReuseRules
from thor_policy_ros.runtime.safety import Tolerance, check_chunk
from thor_policy_ros.runtime.stopwatch import Stopwatch
from thor_policy_ros.types import (
    F32,
    ActionChunk,
    FrameTiming,
    Guidance,
    JointLimits,
    Observation,
    StepResult,
)


class PolicyRunner:
    """Runs a policy tick by tick. The thread that owns the backend owns the runner.

    limits: of the actions, f32[A] each, or None to check only that they are finite.
    clock: seconds, for the durations of stages alone; `now_s` of a step tells the time.
    joint_names: of the actions, for the reasons of refusals.

    rules: when the prefix is used again; chunking: what a chunk is to continue, None for nothing.
    Both may be set between two steps.
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
        self._ahead: tuple[int, F32] | None = None  # of a seed
        self._keeper = PrefixKeeper(policy)
        self._costs = FrameCosts()
        self.rules = ReuseRules()
        self.chunking: RealTimeChunking | None = None
        self.reset("no prefix")

    def reset(self, reason: str = "reset") -> None:
        """Forget the prefix and the tick: the next step refills and has missed nothing."""
        self._keeper.forget(reason)
        self._tick: int | None = None
        self._frame_tick: int | None = None
        self._chunk_ends_at_s = -math.inf
        self._missed_ticks = 0

    @property
    def image_changes(self) -> dict[str, float]:
        """By camera, share of full scale, of the last step that measured it."""
        return self._keeper.changes

    @property
    def costs(self) -> Costs:
        """What the parts of a frame are expected to take."""
        return self._costs.costs()

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
        """Infer one chunk, unless `rules` say that the one in hand goes on.

        now_s: the present on the clock of `observation.stamp_s`. tick: counts the control
        ticks, missed ones too. num_steps: of the flow. noise: f32[H,32], or drawn from `seed`,
        or from entropy. waited_s: that went by between the control tick and now.

        A pipelined policy launches the prefix of this observation and denoises the one of the
        step before: its chunk is timed by that older observation and relative to its state.

        A chunk that fails the safety check is refused, and the next step refills. What the
        policy raises passes through, and the next step refills too.
        """
        if num_steps < 1:
            raise ValueError(f"a step wants at least 1 denoise step, got {num_steps}")
        noise = self._noise(noise, seed)
        notes = self._count_tick(tick)
        watch = Stopwatch(self._clock)
        ask = self._ask(observation, now_s, tick, num_steps, waited_s)
        plan = self._keeper.plan(ask, self.rules, self._costs.costs, watch)
        if isinstance(plan, NoFrame):
            return StepResult(None, self._timing_of_none(watch), plan.kind, notes=notes)
        choice = self._keeper.fill(plan, ask, watch)
        prefix = choice.use
        age_ms = (now_s + watch.elapsed_s - prefix.facts.observed_at_s) * 1e3
        guidance = self._guidance(prefix, observation.prompt, now_s)
        normalised = self._policy.backend.denoise(prefix.kv, noise, plan.num_steps, guidance)
        watch.lap("denoise")
        actions = self._policy.postprocess(normalised, prefix.state)
        watch.lap("postprocess")
        refused = self._check(actions)
        watch.lap("check")
        timing = self._timing(watch, choice.reused, age_ms)
        self._costs.add(timing, plan.num_steps, not choice.reused)
        self._frame_tick = tick
        if refused:
            self._keeper.forget("failed check")
            return StepResult(None, timing, choice.said, refused, notes, plan.num_steps)
        chunk = self._chunk(actions, choice, timing)
        guided_rows = 0 if guidance is None else int((guidance.weights > 0).sum())
        return StepResult(
            chunk,
            timing,
            choice.said,
            notes=notes,
            num_steps=plan.num_steps,
            guided_rows=guided_rows,
        )

    def _ask(
        self, observation: Observation, now_s: float, tick: int, num_steps: int, waited_s: float
    ) -> Ask:
        skipped = 0 if self._frame_tick is None else max(tick - self._frame_tick - 1, 0)
        return Ask(
            observation,
            now_s,
            tick,
            num_steps,
            budget_ms=self.rules.deadline_ms - waited_s * 1e3,
            chunk_left_ms=(self._chunk_ends_at_s - now_s) * 1e3,
            skipped_ticks=skipped,
        )

    def _guidance(self, prefix: Prefix, prompt: str, now_s: float) -> Guidance | None:
        observed_at_s = prefix.facts.observed_at_s
        return guidance_for(self.chunking, self._policy, prefix.state, observed_at_s, now_s, prompt)

    def _chunk(self, actions: F32, choice: Choice, timing: FrameTiming) -> ActionChunk:
        """The step's chunk; its prefix may be used again."""
        self._keeper.keep(choice.keep)
        observed_at_s = choice.use.facts.observed_at_s
        dt_s = self._policy.config.action_dt_s
        chunk = ActionChunk(actions, dt_s, observed_at_s, choice.reused, timing)
        self._chunk_ends_at_s = chunk.ends_at_s
        return chunk

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

    def _timing(self, watch: Stopwatch, reused: bool, age_ms: float) -> FrameTiming:
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

    def _timing_of_none(self, watch: Stopwatch) -> FrameTiming:
        return FrameTiming(
            preprocess_ms=watch.ms("preprocess"),
            total_ms=watch.elapsed_s * 1e3,
            missed_ticks=self._missed_ticks,
        )

    def draw_ahead(self, seed: int) -> None:
        """Draws the noise of the next step now; used if that step has this seed."""
        self._ahead = seed, self._drawn(np.random.default_rng(seed))

    def _drawn(self, random: np.random.Generator) -> F32:
        return random.standard_normal(self._noise_shape, dtype=np.float32)

    @property
    def _noise_shape(self) -> tuple[int, int]:
        model = self._policy.config.model
        return model.action_horizon, model.action_dim

    def _noise(self, noise: F32 | None, seed: int | None) -> F32:
        if noise is None:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == seed:
                return ahead[1]
            return self._drawn(self._random if seed is None else np.random.default_rng(seed))
        if seed is not None:
            raise ValueError(f"a step wants noise or a seed, got both (seed {seed})")
        if noise.shape != self._noise_shape:
            raise ValueError(f"a step wants noise of shape {self._noise_shape}, got {noise.shape}")
        return noise

"""Which prefix a step uses: the one it holds, or a new one, and what of the old one is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.runtime.deadline import Costs, Frame, NoFrame, Situation, choose, no_frame
from thor_policy_ros.runtime.image_change import ChangeWatch
from thor_policy_ros.runtime.reuse import (
    Gone,
    HeldPrefix,
    Late,
    Moment,
    PrefixKey,
    Refill,
    Reuse,
    ReuseRules,
    decide,
    decide_pipelined,
)
from thor_policy_ros.runtime.stopwatch import Stopwatch
from thor_policy_ros.types import (
    F32,
    Backend,
    BackendSpec,
    Bool,
    KeepsVision,
    ModelInputs,
    Observation,
    PrefixKV,
)

MAX_KEPT_TICKS = 30
"""How long the vision tokens of a camera that shows nothing new are kept."""
KEPT_FOR_NOTHING = ("time unknown", "time went back", "cameras changed", "policy changed")


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

    def normalise(self, actions: F32, state: F32) -> F32:
        """The inverse of `postprocess`."""
        ...


@dataclass(frozen=True)
class Prefix:
    """A prefix, with the state that its actions are relative to."""

    facts: HeldPrefix
    kv: PrefixKV
    state: F32


@dataclass(frozen=True)
class Ask:
    """One step's question. budget_ms: left of the deadline. chunk_left_ms: that the chunk in
    hand still runs. skipped_ticks: since the last frame."""

    observation: Observation
    now_s: float
    tick: int
    num_steps: int
    budget_ms: float = math.inf
    chunk_left_ms: float = 0.0
    skipped_ticks: int = 0


@dataclass(frozen=True)
class Plan:
    """A frame to compute. inputs: the model's, where the decision already needed them.
    kept: cameras whose vision tokens stay."""

    frame: Frame | Late
    key: PrefixKey
    num_steps: int
    inputs: ModelInputs | None = None
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """use: the prefix of this step. keep: the one for the next, newer if pipelined."""

    use: Prefix
    keep: Prefix
    reused: bool
    said: str


class PrefixKeeper:
    """Holds the prefix between steps. `plan`, then `fill`, then `keep` once the step succeeded:
    a step that fails in between leaves nothing to reuse.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._watch = ChangeWatch()
        self._encoded: dict[str, tuple[int, float]] = {}  # camera -> tick and time
        self.forget("no prefix")

    @property
    def changes(self) -> dict[str, float]:
        """Image change by camera, share of full scale, where it was measured last."""
        return dict(self._watch.scores)

    def forget(self, reason: str) -> None:
        """The next step refills, for this reason."""
        self._held: Prefix | Gone = Gone(reason)

    def keep(self, prefix: Prefix) -> None:
        """The step has succeeded."""
        self._held = prefix

    def plan(
        self, ask: Ask, rules: ReuseRules, costs: Callable[[], Costs], watch: Stopwatch
    ) -> Plan | NoFrame:
        """What this step does. costs: asked for where the rules go by a deadline."""
        spec, facts = self._policy.spec, self._facts()
        if spec.pipelined:
            key = self._key(ask.observation, None)
            late = decide_pipelined(facts, self._moment(ask, key))
            frame = late if isinstance(late, Late) else Frame(late, ask.num_steps)
            return Plan(frame, key, ask.num_steps)
        inputs = self._inputs_if_key(ask.observation, rules)
        watch.lap("preprocess" if inputs is not None else "decide")
        key = self._key(ask.observation, inputs)
        changed = self._changed(ask, rules)
        decision = decide(
            facts, self._moment(ask, key), spec.reuse_every, rules.max_age_ms, changed
        )
        chosen = _chosen(decision, ask, rules, costs)
        watch.lap("decide")
        if isinstance(chosen, NoFrame):
            return chosen
        kept = self._kept(chosen.decision, changed, ask, rules)
        return Plan(chosen, key, chosen.num_steps, inputs, kept)

    def fill(self, plan: Plan, ask: Ask, watch: Stopwatch) -> Choice:
        """The prefix of this step, held or new. Leaves none held."""
        held, self._held = self._held, Gone("failed step")
        if isinstance(plan.frame, Late):
            assert isinstance(held, Prefix)
            return Choice(held, self._prefill(plan, ask, watch), False, "pipelined")
        if isinstance(plan.frame.decision, Reuse):
            assert isinstance(held, Prefix)
            return Choice(held, held, True, _said(plan, ask.num_steps))
        made = self._prefill(plan, ask, watch)
        return Choice(made, made, False, _said(plan, ask.num_steps))

    def _facts(self) -> HeldPrefix | Gone:
        return self._held.facts if isinstance(self._held, Prefix) else self._held

    def _moment(self, ask: Ask, key: PrefixKey) -> Moment:
        return Moment(key, ask.tick, ask.observation.stamp_s, ask.now_s)

    def _inputs_if_key(self, observation: Observation, rules: ReuseRules) -> ModelInputs | None:
        """The model's inputs if the decision needs them: the state may be among the tokens.

        Otherwise a step that reuses the prefix is spared resizing images nobody looks at.
        """
        reuses = self._policy.spec.reuse_every > 1
        if self._policy.config.state_in_prompt and reuses and rules.refresh_on_state:
            return self._policy.preprocess(observation)
        return None

    def _key(self, observation: Observation, inputs: ModelInputs | None) -> PrefixKey:
        spec = self._policy.spec
        tokens = b"" if inputs is None else inputs.tokens[inputs.token_mask].tobytes()
        policy = "/".join((self._policy.config.name, spec.engine, spec.mlp, spec.fp8_scale))
        return PrefixKey(observation.prompt, frozenset(observation.images), tokens, policy)

    def _changed(self, ask: Ask, rules: ReuseRules) -> frozenset[str]:
        """Cameras that show something else than the prefix; none where nobody asked."""
        if isinstance(self._held, Gone) or rules.threshold <= 0:
            self._watch.forget()
        if rules.threshold <= 0:
            return frozenset()
        growth = 1.0
        if rules.mode == "adaptive" and isinstance(self._held, Prefix):
            age = max(ask.tick - self._held.facts.tick, 1)
            growth = (age + 1) / age  # a chunk of this tick is followed until the next
        return self._watch.look(ask.observation.images, rules.threshold, growth)

    def _kept(
        self, decision: Refill | Reuse, changed: Collection[str], ask: Ask, rules: ReuseRules
    ) -> tuple[str, ...]:
        if not isinstance(decision, Refill) or decision.reason in KEPT_FOR_NOTHING:
            return ()
        if isinstance(self._held, Gone) or rules.threshold <= 0:
            return ()
        if not isinstance(self._policy.backend, KeepsVision):
            return ()
        still = set(ask.observation.images) - set(changed)
        return tuple(sorted(slot for slot in still if self._is_young(slot, ask, rules)))

    def _is_young(self, slot: str, ask: Ask, rules: ReuseRules) -> bool:
        if slot not in self._encoded:
            return False
        tick, observed_at_s = self._encoded[slot]
        age_ms = (ask.now_s - observed_at_s) * 1e3
        return ask.tick - tick <= MAX_KEPT_TICKS and not 0 < rules.max_age_ms < age_ms

    def _prefill(self, plan: Plan, ask: Ask, watch: Stopwatch) -> Prefix:
        observation, inputs = ask.observation, plan.inputs
        if inputs is None:
            inputs = self._policy.preprocess(observation)
        watch.lap("preprocess")
        backend, encoded = self._policy.backend, set(observation.images) - set(plan.kept)
        if plan.kept:
            assert isinstance(backend, KeepsVision)
            kv = backend.prefill_keeping(inputs, observation.stamp_s, self._mask(plan.kept))
        else:
            kv = backend.prefill(inputs, observation.stamp_s)
        watch.lap("prefill")
        self._watch.encoded(encoded)
        self._encoded.update(dict.fromkeys(encoded, (ask.tick, observation.stamp_s)))
        return Prefix(HeldPrefix(plan.key, ask.tick, observation.stamp_s), kv, observation.state)

    def _mask(self, cameras: tuple[str, ...]) -> Bool:
        return np.array([slot in cameras for slot in self._policy.config.camera_slots])


def _chosen(
    decision: Refill | Reuse, ask: Ask, rules: ReuseRules, costs: Callable[[], Costs]
) -> Frame | NoFrame:
    """The decision by the rules' mode."""
    must_cover_ms = 2 * rules.deadline_ms if math.isfinite(rules.deadline_ms) else 0.0
    situation = Situation(ask.budget_ms, ask.chunk_left_ms, must_cover_ms, ask.skipped_ticks)
    if rules.mode == "deadline":
        return choose(decision, costs(), situation, ask.num_steps, rules.min_steps)
    if rules.mode == "continue" and isinstance(decision, Reuse):
        going = no_frame(situation)
        return going if going.kind == "continue" else Frame(Refill("chunk ends"), ask.num_steps)
    return Frame(decision, ask.num_steps)


def _said(plan: Plan, wanted_steps: int) -> str:
    """The decision in words, with what is unusual about the frame in brackets."""
    assert isinstance(plan.frame, Frame)
    decision = plan.frame.decision
    steps = f"{plan.num_steps} step{'' if plan.num_steps == 1 else 's'}"
    details = [steps] if plan.num_steps != wanted_steps else []
    details += [f"kept {', '.join(plan.kept)}"] if plan.kept else []
    details += ["late"] if plan.frame.late else []
    said = f"refill: {decision.reason}" if isinstance(decision, Refill) else "reuse"
    return f"{said} ({'; '.join(details)})" if details else said

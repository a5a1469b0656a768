"""A policy whose arithmetic a test writes, with a clock that a test turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from thor_policy_ros.model.config import GemmaConfig, Pi05Config, PolicyConfig, VisionConfig
from thor_policy_ros.types import F32, BackendSpec, Guidance, ModelInputs, Observation, PrefixKV

HORIZON, MODEL_DIM = 5, 4


def policy_config(
    *, action_dim: int = 2, state_in_prompt: bool = False, action_dt_s: float = 0.1
) -> PolicyConfig:
    gemma = GemmaConfig(width=8, depth=1, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=4)
    model = Pi05Config(
        action_dim=MODEL_DIM,
        action_horizon=HORIZON,
        max_token_len=8,
        vocab_size=16,
        num_cameras=1,
        vision=VisionConfig(8, 4, 8, 1, 1, 8),
        language=gemma,
        action_expert=gemma,
    )
    return PolicyConfig(
        name="fake",
        model=model,
        camera_slots=("base",),
        state_dim=2,
        action_dim=action_dim,
        state_in_prompt=state_in_prompt,
        normalisation="quantile",
        action_dt_s=action_dt_s,
        relative_actions=(False,) * action_dim,
        asset_id="fake",
    )


@dataclass
class Clock:
    """Seconds; stands still until a test or the fake policy moves it."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


Flow = Callable[[ModelInputs, F32], F32]


def noise_itself(inputs: ModelInputs, noise: F32) -> F32:
    """A flow that goes nowhere."""
    return noise


@dataclass
class FakeBackend:
    """Remembers what it was called with; every call takes its stage's time on the clock."""

    spec: BackendSpec
    clock: Clock
    flow: Flow = noise_itself
    calls: list[str] = field(default_factory=list)
    prefixes: list[PrefixKV] = field(default_factory=list)
    noises: list[F32] = field(default_factory=list)
    fails: Exception | None = None

    def warmup(self) -> None:
        self.calls.append("warmup")

    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        self._called("prefill", 0.020)
        kv = PrefixKV(inputs, inputs, None, observed_at_s, generation=len(self.prefixes))
        self.prefixes.append(kv)
        return kv

    def denoise(
        self, prefix: PrefixKV, noise: F32, num_steps: int, guidance: Guidance | None = None
    ) -> F32:
        slots = 2 if self.spec.pipelined else 1
        assert prefix.generation >= len(self.prefixes) - slots, "a stale prefix"
        self._called("denoise", 0.010)
        self.noises.append(noise)
        return self.flow(prefix.keys, noise)

    def stage_times_ms(self) -> Mapping[str, float]:
        return {"vision": 8.0, "prefill": 12.0, "denoise": 10.0}

    def close(self) -> None:
        self.calls.append("close")

    def _called(self, stage: str, takes_s: float) -> None:
        self.calls.append(stage)
        self.clock.now_s += takes_s
        if self.fails is not None:
            raise self.fails


Actions = Callable[[F32, F32], F32]


def zeros(normalised: F32, state: F32) -> F32:
    """A chunk of zeros for two joints."""
    return np.zeros((HORIZON, 2), np.float32)


class FakePolicy:
    """A model whose images are one grey value in [-1,1]: the mean of the base camera.

    flow: from the prefix's inputs and noise, f32[H,32], to normalised actions.
    actions: from normalised actions and the prefix's state to f32[H,A], robot units.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        reuse_every: int = 1,
        pipelined: bool = False,
        config: PolicyConfig | None = None,
        actions: Actions = zeros,
        flow: Flow = noise_itself,
    ) -> None:
        self.config = config or policy_config()
        self.spec = BackendSpec("fake", engine="none", reuse_every=reuse_every, pipelined=pipelined)
        self.clock = clock
        self.backend = FakeBackend(self.spec, clock, flow)
        self.actions = actions
        self.preprocessed: list[Observation] = []
        self.states: list[F32] = []

    def preprocess(self, observation: Observation) -> ModelInputs:
        self.clock.now_s += 0.005
        self.preprocessed.append(observation)
        bins = np.round(observation.state).astype(np.int32)
        return ModelInputs(
            images=np.full((1, 3, 8, 8), self._grey(observation), np.float32),
            image_mask=np.array([bool(observation.images)]),
            tokens=np.concatenate([bins, [0, 0]]).astype(np.int32),
            token_mask=np.array([True] * len(bins) + [False] * 2),
        )

    def postprocess(self, actions: F32, state: F32) -> F32:
        self.clock.now_s += 0.001
        self.states.append(state)
        return self.actions(actions, state)

    def normalise(self, actions: F32, state: F32) -> F32:
        """As for a policy of the first joints alone, relative to the state."""
        padded = np.zeros((len(actions), MODEL_DIM), np.float32)
        padded[:, : actions.shape[1]] = actions - state[: actions.shape[1]]
        return padded

    @staticmethod
    def _grey(observation: Observation) -> float:
        base = observation.images.get("base")
        return 0.0 if base is None else float(base.mean()) / 127.5 - 1.0

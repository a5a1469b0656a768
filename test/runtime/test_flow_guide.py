"""Guidance in a runner: what the robot executes becomes a target of the flow, relative and all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.fake_policy import HORIZON, MODEL_DIM, Clock, FakePolicy, policy_config

from thor_policy_ros.runtime.flow_guide import LARGEST_TARGET, guidance_for
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.real_time_chunking import ChunkingRules, RealTimeChunking
from thor_policy_ros.types import ActionChunk, Guidance, Observation

DT_S = 0.1


def chunk(observed_s: float, value: float = 1.0) -> ActionChunk:
    """Two joints that stay at `value` and at half of it."""
    rows = np.tile(np.array([value, value / 2], np.float32), (HORIZON, 1))
    return ActionChunk(rows, DT_S, observed_s)


def chunking(value: float = 1.0, **rules) -> RealTimeChunking:
    made = RealTimeChunking(ChunkingRules(enabled=True, **rules))
    made.sent(1, chunk(0.0, value), "go", 0.0, 0.02)
    made.taken_up(1, 0.1)
    return made


def observation(stamp_s: float, state: tuple[float, float] = (0.2, 0.1)) -> Observation:
    image = np.full((8, 8, 3), 100, np.uint8)
    return Observation({"base": image}, np.array(state, np.float32), "go", stamp_s)


class Rig:
    """A runner, and the guidance that its backend was given at each step."""

    def __init__(self, **policy) -> None:
        self.policy = FakePolicy(Clock(), **policy)
        self.runner = PolicyRunner(self.policy, None, self.policy.clock)
        self.given: list[Guidance | None] = []
        inner = self.policy.backend.denoise

        def denoise(prefix, noise, num_steps, guidance=None):
            self.given.append(guidance)
            return inner(prefix, noise, num_steps, guidance)

        self.policy.backend.denoise = denoise

    def step(self, now_s: float, tick: int, state=(0.2, 0.1)):
        return self.runner.step(observation(now_s, state), now_s, tick, 3, seed=0)


def test_off_or_without_history_nothing_is_guided():
    rig = Rig()
    rig.step(0.2, 1)
    rig.runner.chunking = RealTimeChunking(ChunkingRules(enabled=True))
    rig.step(0.3, 2)
    rig.runner.chunking = chunking()
    rig.runner.chunking.rules = replace(rig.runner.chunking.rules, enabled=False)
    result = rig.step(0.4, 3)
    assert rig.given == [None, None, None] and result.guided_rows == 0


def test_the_target_is_relative_to_the_state_of_the_new_observation():
    rig = Rig()
    rig.runner.chunking = chunking()
    result = rig.step(0.2, 1, state=(0.25, 0.1))
    (guidance,) = rig.given
    reached = guidance.weights > 0
    assert result.guided_rows == reached.sum() == 3  # 0.2, 0.3 (known), 0.4: its chunk ends there
    assert guidance.actions[reached, 0] == pytest.approx(1.0 - 0.25)
    assert guidance.actions[reached, 1] == pytest.approx(0.5 - 0.1)
    assert guidance.actions.shape == (HORIZON, MODEL_DIM)


def test_on_a_reuse_frame_the_target_is_on_the_grid_and_state_of_the_old_prefix():
    rig = Rig(reuse_every=3)
    rig.runner.chunking = chunking()
    rig.step(0.1, 1, state=(0.25, 0.1))
    reused = rig.step(0.2, 2, state=(9.0, 9.0))
    assert reused.chunk.prefix_reused and reused.chunk.observed_at_s == 0.1
    first, second = rig.given
    assert second.actions[0] == pytest.approx(first.actions[0])
    assert (second.weights == 1.0).sum() == (first.weights == 1.0).sum() + 1  # one more is past


def test_pipelined_the_target_is_of_the_prefix_that_is_denoised():
    rig = Rig(pipelined=True)
    rig.runner.chunking = chunking()
    rig.step(0.1, 1, state=(0.25, 0.0))
    late = rig.step(0.2, 2, state=(9.0, 9.0))
    assert late.chunk.observed_at_s == 0.1
    assert rig.given[1].actions[0, 0] == pytest.approx(1.0 - 0.25)


def test_a_constant_dimension_does_not_blow_up_the_flow():
    policy = FakePolicy(Clock())
    found = guidance_for(chunking(value=1e6), policy, np.zeros(2, np.float32), 0.1, 0.1, "go")
    assert np.abs(found.actions).max() <= LARGEST_TARGET


def test_a_checkpoint_that_was_not_trained_for_it_is_refused_by_name():
    rig = Rig()
    rig.runner.chunking = chunking(mode="trained")
    with pytest.raises(ValueError, match="'fake' was not trained with a prefix"):
        rig.step(0.2, 1)


def test_a_trained_checkpoint_is_given_what_will_have_been_executed():
    config = replace(policy_config(), trained_prefix_rows=3)
    policy = FakePolicy(Clock(), config=config)
    found = guidance_for(chunking(mode="trained"), policy, np.zeros(2, np.float32), 0.1, 0.1, "go")
    assert found.clean_rows == 2 and found.weights.tolist() == [1, 1, 0, 0, 0]
    assert found.actions[:2, 0] == pytest.approx(1.0) and not found.actions[2:].any()
    few = FakePolicy(Clock(), config=replace(config, trained_prefix_rows=1))
    found = guidance_for(chunking(mode="trained"), few, np.zeros(2, np.float32), 0.1, 0.1, "go")
    assert found.clean_rows == 1 and found.weights.tolist() == [1, 1, 0, 0, 0]

"""A policy as the server runs it: batches, and what is wrong with one request of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint

from thor_policy_ros.runtime.unified_policy import InferenceRefusedError, UnifiedPolicy
from thor_policy_ros.serving.served_policy import LocalPolicy, Request
from thor_policy_ros.types import ActionChunk, Observation

NOISE = np.random.default_rng(0).standard_normal((4, 6, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnifiedPolicy]:
    with UnifiedPolicy(write_toy_checkpoint(tmp_path_factory.mktemp("toy")), device="cpu") as made:
        yield made


def seen(seed: int, prompt: str = "pick up") -> Observation:
    return dataclasses.replace(toy_observation(seed=seed, stamp_s=seed), prompt=prompt)


def actions_of(result: ActionChunk | Exception) -> np.ndarray:
    assert isinstance(result, ActionChunk)
    return result.actions


def test_requests_of_different_steps_get_the_chunks_that_the_policy_gives(
    policy: UnifiedPolicy,
) -> None:
    requests = [Request(seen(i), steps, NOISE[i]) for i, steps in enumerate((2, 3, 2, 1))]
    results = LocalPolicy(policy).infer(requests)
    for request, result in zip(requests, results, strict=True):
        alone = policy.infer(request.observation, request.num_steps, noise=request.noise)
        assert np.abs(actions_of(result) - alone.actions).max() < 1e-5
        assert isinstance(result, ActionChunk)
        assert result.observed_at_s == request.observation.stamp_s
        assert result.dt_s == TINY.action_dt_s


def test_a_wrong_request_is_refused_alone(policy: UnifiedPolicy) -> None:
    requests = [
        Request(seen(0), 2, NOISE[0]),
        Request(seen(1, "word " * 99), 2),
        Request(seen(2), 2),
    ]
    good, wrong, other = LocalPolicy(policy).infer(requests)
    assert isinstance(wrong, ValueError) and "tokens, the model has room for" in str(wrong)
    assert isinstance(other, ActionChunk)
    assert (
        np.abs(actions_of(good) - actions_of(LocalPolicy(policy).infer(requests[:1])[0])).max()
        < 1e-5
    )
    (alone,) = LocalPolicy(policy).infer(requests[1:2])
    assert isinstance(alone, ValueError)


def test_actions_that_are_not_finite_are_refused_in_a_batch_too(policy: UnifiedPolicy) -> None:
    broken = np.full_like(NOISE[0], 3e38)
    requests = [Request(seen(0), 1, broken), Request(seen(1), 1, NOISE[1])]
    refused, good = LocalPolicy(policy).infer(requests)
    assert isinstance(refused, InferenceRefusedError) and "not finite" in str(refused)
    assert isinstance(good, ActionChunk)


def test_a_seed_repeats_the_noise_that_is_drawn(policy: UnifiedPolicy) -> None:
    one, same, other = (
        actions_of(LocalPolicy(policy, seed=seed).infer([Request(seen(0), 2)])[0])
        for seed in (5, 5, 6)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_engines_that_cannot_batch_take_one_request_at_a_time(tmp_path: Path) -> None:
    with UnifiedPolicy(write_toy_checkpoint(tmp_path), "pytorch_pipelined", device="cpu") as policy:
        served = LocalPolicy(policy, batch=8)
        assert served.max_batch == 1
        assert isinstance(served.infer([Request(seen(0), 2)])[0], ActionChunk)

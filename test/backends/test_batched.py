"""Several observations in one pass: each gets what it would have got alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.golden import TOLERANCE, TOY, toy_config, toy_model_inputs, toy_noise, toy_outputs
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint

from thor_policy_ros.backends.batched import can_batch, sample_batch
from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy


def test_a_batch_of_recorded_inputs_meets_the_recorded_outputs() -> None:
    backend = create_backend("pytorch", TOY, toy_config(), "cpu")
    noise = np.concatenate([toy_noise().numpy()] * 3)
    actions = sample_batch(backend, [toy_model_inputs()] * 3, noise, 10)
    recorded = toy_outputs()["actions_10_steps"].numpy()
    assert np.abs(actions - recorded).max() < TOLERANCE


def test_observations_that_differ_in_cameras_and_words_do_not_touch_each_other(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal((4, TINY.model.action_horizon, 32), dtype=np.float32)
    seen = [toy_observation(seed=seed) for seed in range(4)]
    seen[1] = dataclasses.replace(seen[1], prompt="go")
    seen[2] = dataclasses.replace(seen[2], images={"base_0_rgb": seen[2].images["base_0_rgb"]})
    with UnifiedPolicy(write_toy_checkpoint(tmp_path), device="cpu") as policy:
        inputs = [policy.preprocess(one) for one in seen]
        together = sample_batch(policy.backend, inputs, noise, 4)
        for i, one in enumerate(inputs):
            alone = policy.backend.denoise(policy.backend.prefill(one, 0.0), noise[i], 4)
            assert np.abs(together[i] - alone).max() < 1e-5
    assert np.abs(together[0] - together[3]).max() > 1e-3


def test_a_camera_that_nobody_has_is_left_out() -> None:
    backend = create_backend("pytorch", TOY, toy_config(), "cpu")
    inputs = toy_model_inputs()
    assert not inputs.image_mask[2]
    broken = dataclasses.replace(inputs, images=inputs.images.copy())
    broken.images[2] = np.nan
    assert np.isfinite(sample_batch(backend, [broken], toy_noise().numpy(), 2)).all()


def test_engines_that_take_one_at_a_time_say_so(tmp_path: Path) -> None:
    backend = create_backend("pytorch_pipelined", TOY, toy_config(), "cpu")
    assert not can_batch(backend)
    with pytest.raises(ValueError, match="'pytorch_pipelined' takes one observation at a time"):
        sample_batch(backend, [toy_model_inputs()], toy_noise().numpy(), 2)


def test_noise_is_wanted_for_each() -> None:
    backend = create_backend("pytorch", TOY, toy_config(), "cpu")
    with pytest.raises(ValueError, match=r"batch of 2 wants noise \(2, .*got \(1, "):
        sample_batch(backend, [toy_model_inputs()] * 2, toy_noise().numpy(), 2)
    with pytest.raises(ValueError, match="batch of 0 wants"):
        sample_batch(backend, [], toy_noise().numpy()[:0], 2)

"""Pixels are what they stand for, whoever reads them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fused_engine import fused_backend
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise

from thor_policy_ros.backends.batched import sample_batch
from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.pixels import PIXEL, in_model_range
from thor_policy_ros.types import F32, Backend, ModelInputs


def pixels_and_numbers() -> tuple[ModelInputs, ModelInputs]:
    inputs = toy_model_inputs()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, inputs.images.shape, np.uint8)
    seen = replace(inputs, images=pixels)
    return seen, replace(inputs, images=PIXEL[pixels])


def test_numbers_stay_what_they_are() -> None:
    numbers = np.array([0.25, -1.0], np.float32)
    assert in_model_range(numbers) is numbers
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(in_model_range(every), every.astype(np.float32) / 255 * 2 - 1)


@pytest.mark.parametrize("name", ["pytorch", "pytorch_pipelined", "fused_freq1"])
def test_a_backend_sees_the_same_in_both(name: str) -> None:
    backend: Backend
    if name == "fused_freq1":
        backend = fused_backend()
    else:
        backend = create_backend(name, TOY, toy_config(), "cpu")
    with closing(backend):
        found = [actions_of(backend, inputs) for inputs in pixels_and_numbers()]
    assert np.array_equal(*found)


def actions_of(backend: Backend, inputs: ModelInputs) -> F32:
    return backend.denoise(backend.prefill(inputs, 0.0), toy_noise()[0].numpy(), 3)


def test_a_batch_may_hold_both() -> None:
    noise = torch.cat([toy_noise(), toy_noise()]).numpy()
    with closing(create_backend("pytorch", TOY, toy_config(), "cpu")) as backend:
        found = sample_batch(backend, pixels_and_numbers(), noise, 3)
    assert np.array_equal(*found)


def test_the_model_itself_refuses_pixels() -> None:
    """Nothing may take them for numbers of its range."""
    pixels, _ = pixels_and_numbers()
    with pytest.raises(ValueError, match=r"got torch.uint8: .*in_model_range"):
        load_pi05(TOY, toy_config()).embed_image(torch.from_numpy(pixels.images))

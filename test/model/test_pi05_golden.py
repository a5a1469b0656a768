"""The network computes what openpi's own modules computed, in either key layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.golden import (
    TOLERANCE,
    TOY,
    TOY_LEROBOT,
    largest_error,
    toy_config,
    toy_inputs,
    toy_noise,
    toy_outputs,
)

from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.pi05 import Encoded, Pi05, time_embedding

OUTPUTS = toy_outputs()
VALID = OUTPUTS["prefix_pad_mask"][0]


@pytest.fixture(scope="module", params=[TOY, TOY_LEROBOT], ids=lambda p: p.name)
def model(request: pytest.FixtureRequest) -> Pi05:
    folder: Path = request.param
    return load_pi05(folder, toy_config())


@pytest.fixture(scope="module")
def encoded(model: Pi05) -> Encoded:
    return model.prefill(**toy_inputs())


def test_image_tokens(model: Pi05) -> None:
    image = toy_inputs()["images"][:, 0]
    assert largest_error(model.embed_image(image), OUTPUTS["vision_0"]) < TOLERANCE


def test_prefix_embeddings_hidden_states_keys_and_values(model: Pi05) -> None:
    embeddings, pad_mask = model.embed_prefix(**toy_inputs())
    full = model.encode(embeddings, pad_mask, with_hidden=True)
    assert torch.equal(pad_mask, OUTPUTS["prefix_pad_mask"])
    assert full.hidden is not None
    recorded = OUTPUTS["prefix_embeddings"][:, VALID]
    assert largest_error(embeddings[:, VALID], recorded) < TOLERANCE
    assert largest_error(full.hidden[:, VALID], OUTPUTS["prefix_hidden"][:, VALID]) < TOLERANCE
    assert largest_error(full.keys[..., VALID, :], OUTPUTS["prefix_k"][..., VALID, :]) < TOLERANCE
    assert largest_error(full.values[..., VALID, :], OUTPUTS["prefix_v"][..., VALID, :]) < TOLERANCE


def test_skipping_the_last_layers_hidden_states_leaves_keys_and_values(encoded: Encoded) -> None:
    keys, values = encoded.keys[..., VALID, :], encoded.values[..., VALID, :]
    assert largest_error(keys, OUTPUTS["prefix_k"][..., VALID, :]) < TOLERANCE
    assert largest_error(values, OUTPUTS["prefix_v"][..., VALID, :]) < TOLERANCE
    assert encoded.hidden is None


def test_time_embedding() -> None:
    ours = time_embedding(torch.tensor([0.7]), 48)
    assert largest_error(ours, OUTPUTS["time_embedding_t0.7"]) < 1e-6


@pytest.mark.parametrize("t", [1.0, 0.7, 0.1])
def test_velocity(model: Pi05, encoded: Encoded, t: float) -> None:
    ours = model.denoise_step(
        toy_noise(), torch.tensor([t]), encoded.keys, encoded.values, encoded.pad_mask
    )
    assert largest_error(ours, OUTPUTS[f"velocity_t{t}"]) < TOLERANCE


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_actions(model: Pi05, encoded: Encoded, num_steps: int) -> None:
    ours = model.sample(encoded, toy_noise(), num_steps)
    assert largest_error(ours, OUTPUTS[f"actions_{num_steps}_steps"]) < TOLERANCE

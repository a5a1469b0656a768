"""The network also trains: batches, gradients, several noise draws over one prefix."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.toy_checkpoint import TINY
from torch import Tensor

from thor_policy_ros.model.config import GemmaConfig, VisionConfig
from thor_policy_ros.model.pi05 import Encoded, Pi05, flow_times

BATCH, DRAWS = 3, 4


def batch(model: Pi05) -> dict[str, Tensor]:
    config = model.config
    size, cameras = config.vision.image_size, config.num_cameras
    lengths = torch.tensor([[5], [9], [config.max_token_len]])
    return {
        "images": torch.rand(BATCH, cameras, 3, size, size) * 2 - 1,
        "image_mask": torch.tensor([[True, True], [True, False], [True, True]]),
        "tokens": torch.randint(0, config.vocab_size, (BATCH, config.max_token_len)),
        "token_mask": torch.arange(config.max_token_len)[None] < lengths,
    }


def draws(model: Pi05) -> tuple[Tensor, Tensor]:
    config = model.config
    noise = torch.randn(BATCH, DRAWS, config.action_horizon, config.action_dim)
    return noise, torch.rand(BATCH, DRAWS)


@pytest.fixture
def model() -> Pi05:
    torch.manual_seed(0)
    return Pi05(TINY.model)


def test_draws_over_one_prefix_are_the_single_velocities(model: Pi05) -> None:
    inputs, (x_t, t) = batch(model), draws(model)
    together = model.velocity(model.prefill(**inputs), x_t, t)
    for row in range(BATCH):
        keys, values, pad_mask, _ = model.prefill(**{k: v[row, None] for k, v in inputs.items()})
        for draw in range(DRAWS):
            alone = model.denoise_step(
                x_t[row, draw, None], t[row, draw, None], keys, values, pad_mask
            )
            assert torch.allclose(alone[0], together[row, draw], atol=2e-6)


def test_every_parameter_learns(model: Pi05) -> None:
    encoded = model.prefill(**batch(model), with_hidden=True)
    assert encoded.hidden is not None
    auxiliary = encoded.hidden[encoded.pad_mask].square().mean()
    (model.velocity(encoded, *draws(model)).square().mean() + auxiliary).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_fresh_network_passes_signal_through_every_layer(model: Pi05) -> None:
    """Gates start at 1: with gates at 0 the velocity would not depend on the prefix at all."""
    inputs, (x_t, t) = batch(model), draws(model)
    seen = model.velocity(model.prefill(**inputs), x_t, t)
    blind = model.velocity(model.prefill(**{**inputs, "images": -inputs["images"]}), x_t, t)
    assert torch.isfinite(seen).all()
    assert (seen - blind).abs().max() > 1e-4


def test_padding_and_masked_cameras_change_nothing(model: Pi05) -> None:
    inputs, (x_t, t) = batch(model), draws(model)
    other = dict(inputs)
    other["images"] = torch.where(
        inputs["image_mask"][:, :, None, None, None], inputs["images"], torch.rand(())
    )
    other["tokens"] = torch.where(inputs["token_mask"], inputs["tokens"], 7)
    before = model.velocity(model.prefill(**inputs), x_t, t)
    after = model.velocity(model.prefill(**other), x_t, t)
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("image_size", "patch_size"), [(64, 8), (64, 16)])
def test_other_sizes(num_kv_heads: int, image_size: int, patch_size: int) -> None:
    sizes = dataclasses.replace(
        TINY.model,
        vision=VisionConfig(image_size, patch_size, width=96, depth=2, num_heads=4, mlp_dim=96),
        language=GemmaConfig(96, 2, 64, 4, num_kv_heads, 32),
        action_expert=GemmaConfig(64, 2, 64, 4, num_kv_heads, 32),
    )
    model = Pi05(sizes)
    encoded: Encoded = model.prefill(**batch(model))
    tokens = (image_size // patch_size) ** 2
    prefix = 2 * tokens + sizes.max_token_len
    assert encoded.keys.shape == (2, BATCH, num_kv_heads, prefix, 32)
    assert model.velocity(encoded, *draws(model)).shape == (BATCH, DRAWS, 6, 32)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_flow_times_fall_from_one_in_equal_steps(num_steps: int) -> None:
    times = flow_times(num_steps, torch.device("cpu"))
    expected = 1 - torch.arange(num_steps, dtype=torch.float64) / num_steps
    assert times[0] == 1
    assert torch.allclose(times.double(), expected, atol=1e-6)

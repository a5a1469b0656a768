"""The networks that TensorRT is given, run by torch: the recorded outputs, in every bucket."""

from __future__ import annotations

import pytest
import torch
from support.golden import TOLERANCE, TOY, largest_error, toy_config, toy_inputs, toy_noise
from support.golden import toy_outputs as outputs
from torch import Tensor

from thor_policy_ros.backends.network_ops import TorchOps
from thor_policy_ros.backends.trt_networks import (
    MASKED,
    denoise_network,
    modulation_rows,
    prefix_network,
    vision_network,
)
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.gemma import rope_tables
from thor_policy_ros.model.pi05 import Pi05, flow_times

HORIZON = 10


@pytest.fixture(scope="module", name="model")
def _model() -> Pi05:
    return load_pi05(TOY, toy_config())


@torch.inference_mode()
def vision(model: Pi05, images: Tensor) -> Tensor:
    ops = TorchOps({"images": images})
    vision_network(ops, model)
    return ops.outputs["image_tokens"]


def tables(model: Pi05, begin: int, end: int) -> dict[str, Tensor]:
    rope = rope_tables(torch.arange(begin, end)[None], model.config.language.head_dim)
    return {"cos": rope.cos[0, :, 0], "sin": rope.sin[0, :, 0]}


@torch.inference_mode()
def prefix(model: Pi05, embeddings: Tensor, bucket: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and bias of valid embeddings [n,W] in a bucket with padding."""
    valid = embeddings.shape[0]
    padded = torch.full((bucket, embeddings.shape[1]), 3.0, dtype=embeddings.dtype)
    padded[:valid] = embeddings
    bias = torch.zeros(bucket).index_fill_(0, torch.arange(valid, bucket), MASKED)
    ops = TorchOps({"embeddings": padded, "bias": bias, **tables(model, 0, bucket)})
    prefix_network(ops, model)
    return ops.outputs["keys"], ops.outputs["values"], bias


@torch.inference_mode()
def actions(
    model: Pi05, keys: Tensor, values: Tensor, bias: Tensor, valid: int, steps: int
) -> Tensor:
    x, times = toy_noise()[0], flow_times(steps, torch.device("cpu"))
    for t in times:
        parts = [(m.scale[0], m.shift[0], m.gate[0]) for m in model.modulations(t[None])]
        inputs = {
            "x": x,
            "step": torch.full((1, 1), -1 / steps),
            "modulations": torch.cat([part for norm in parts for part in norm]),
            "keys": keys,
            "values": values,
            "bias": torch.cat((bias, torch.zeros(HORIZON))),
            **tables(model, valid, valid + HORIZON),
        }
        assert inputs["modulations"].shape[0] == modulation_rows(model)
        ops = TorchOps(inputs)
        denoise_network(ops, model)
        x = ops.outputs["next_x"]
    return x


def valid_embeddings(model: Pi05) -> Tensor:
    """Image tokens of present cameras from our network, then the embedded prompt."""
    recorded = toy_inputs()
    images = recorded["images"][0][recorded["image_mask"][0]]
    tokens = recorded["tokens"][0][recorded["token_mask"][0]]
    with torch.inference_mode():
        return torch.cat((vision(model, images), model.language.embed(tokens)))


@pytest.mark.parametrize("cameras", [1, 2, 3])
def test_image_tokens_are_those_of_the_model(model: Pi05, cameras: int) -> None:
    images = toy_inputs()["images"][0, :cameras]
    with torch.inference_mode():
        assert largest_error(vision(model, images), model.embed_image(images).flatten(0, 1)) < 2e-5


@pytest.mark.parametrize("padding", [0, 1, 17])
def test_recorded_keys_and_values(model: Pi05, padding: int) -> None:
    embeddings = valid_embeddings(model)
    valid = embeddings.shape[0]
    keys, values, _ = prefix(model, embeddings, valid + padding)
    kept = outputs()["prefix_pad_mask"][0]
    assert largest_error(keys[:, :, :valid], outputs()["prefix_k"][:, 0][..., kept, :]) < TOLERANCE
    theirs = outputs()["prefix_v"][:, 0][..., kept, :]
    assert largest_error(values[:, :, :valid], theirs) < TOLERANCE
    assert keys.isfinite().all() and values.isfinite().all()


@pytest.mark.parametrize("padding", [0, 17])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_recorded_actions(model: Pi05, steps: int, padding: int) -> None:
    embeddings = valid_embeddings(model)
    valid = embeddings.shape[0]
    keys, values, bias = prefix(model, embeddings, valid + padding)
    ours = actions(model, keys, values, bias, valid, steps)
    assert largest_error(ours, outputs()[f"actions_{steps}_steps"][0]) < TOLERANCE


def test_padding_without_its_bias_shows(model: Pi05) -> None:
    """The mask is what keeps padding out: without it the actions are wrong."""
    embeddings = valid_embeddings(model)
    valid = embeddings.shape[0]
    keys, values, bias = prefix(model, embeddings, valid + 17)
    ours = actions(model, keys, values, torch.zeros_like(bias), valid, 1)
    assert largest_error(ours, outputs()["actions_1_steps"][0]) > 100 * TOLERANCE


def test_bfloat16_stays_close_to_float32(model: Pi05) -> None:
    half = load_pi05(TOY, toy_config(), dtype=torch.bfloat16)
    embeddings = valid_embeddings(half)
    assert embeddings.dtype == torch.bfloat16
    valid = embeddings.shape[0]
    keys, values, bias = prefix(half, embeddings, valid + 5)
    assert keys.dtype == values.dtype == torch.bfloat16
    ours = actions(half, keys, values, bias, valid, 10).flatten()
    theirs = outputs()["actions_10_steps"][0].flatten()
    assert ours.dtype == torch.float32
    assert 0.999 < torch.cosine_similarity(ours, theirs, dim=0) < 1.0


def test_wrong_inputs_and_mixed_types_are_refused(model: Pi05) -> None:
    with pytest.raises(ValueError, match="'images' is missing"):
        vision_network(TorchOps({}), model)
    with pytest.raises(ValueError, match=r"wants float32\[-1, 3, 56, 56\]"):
        vision_network(TorchOps({"images": torch.zeros(3, 56, 56)}), model)
    with pytest.raises(TypeError, match="one dtype and rank"):
        TorchOps({}).add(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bfloat16))

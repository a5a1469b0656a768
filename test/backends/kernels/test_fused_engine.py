"""The fused engine through the Triton kernels: the recorded outputs of openpi, from end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fused_engine import fused_backend, padded
from support.golden import TOLERANCE, largest_error, toy_model_inputs, toy_noise, toy_outputs
from support.kernel_errors import relative_error

from thor_policy_ros.backends import fused_slot
from thor_policy_ros.backends.fp8 import emulated_matmul
from thor_policy_ros.backends.fused import FusedBackend
from thor_policy_ros.backends.fused_network import Tools
from thor_policy_ros.backends.fused_products import DeviceProducts
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.model.pixels import PIXEL

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this engine is on the CPU")


def engine(triton_ops: Ops) -> FusedBackend:
    tools = Tools(triton_ops, DeviceProducts(triton_ops, emulated_matmul))
    execution = replace(
        padded(20),
        make_tools=lambda: tools,
        make_graphs=None,
        step_counts=(3,),
        in_place=True,
    )
    return fused_backend(execution)


@pytest.mark.parametrize("in_reach", [True, False])
def test_pixels_are_the_numbers_that_they_stand_for(
    triton_ops: Ops, in_reach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fused_slot, "pinned_address", lambda images: images.ctypes.data if in_reach else None
    )
    backend, inputs = engine(triton_ops), toy_model_inputs()
    pixels = np.random.default_rng(0).integers(0, 256, inputs.images.shape, np.uint8)
    found = [
        backend.prefill(replace(inputs, images=images), 0.0).keys.clone()
        for images in (pixels, PIXEL[pixels])
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("in_reach", [True, False])
def test_the_recorded_prefix_and_actions(
    triton_ops: Ops, in_reach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bucket larger than the prompt: the valid length alone keeps its padding out. Images
    are read where they lie, or copied where the device would not reach them."""
    monkeypatch.setattr(
        fused_slot, "pinned_address", lambda images: images.ctypes.data if in_reach else None
    )
    backend = engine(triton_ops)
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    valid = toy_outputs()["prefix_pad_mask"][0]
    assert largest_error(prefix.keys, toy_outputs()["prefix_k"][..., valid, :]) < TOLERANCE
    assert largest_error(prefix.values, toy_outputs()["prefix_v"][..., valid, :]) < TOLERANCE
    actions = torch.from_numpy(backend.denoise(prefix, toy_noise()[0].numpy(), 3))
    assert largest_error(actions, toy_outputs()["actions_3_steps"][0]) < TOLERANCE
    assert relative_error(actions, toy_outputs()["actions_3_steps"][0]) < 1e-5

"""The fused engine on the Triton kernels: recorded outputs, buckets and FP8.

In Triton's interpreter where there is no GPU: the same kernels and the same sequence, no graphs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fused_engine import ON_CPU
from support.golden import (
    TOLERANCE,
    TOY,
    largest_error,
    toy_config,
    toy_model_inputs,
    toy_noise,
    toy_outputs,
)

from thor_policy_ros.backends.fp8 import device_matmul, emulated_matmul
from thor_policy_ros.backends.fp8_calibration import ActivationRanges
from thor_policy_ros.backends.fused import FusedBackend
from thor_policy_ros.backends.fused_network import Tools
from thor_policy_ros.backends.fused_products import DeviceProducts
from thor_policy_ros.backends.fused_weights import FusedModel, take_weights
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.target import KernelTarget
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.model.checkpoint import load_pi05

NOISE = toy_noise()[0].numpy()
SPEC = BACKENDS["fused_freq1"]


def engine(model: FusedModel, device: torch.device) -> FusedBackend:
    """In buckets, on kernels whose scratch memory begins as NaN."""
    from thor_policy_ros.backends.kernels.triton_ops import TritonOps

    def tools() -> Tools:
        target = KernelTarget(device, limits_of(device))
        target.partials(0).fill_(torch.nan)
        ops = TritonOps(device, target)
        scaled = device_matmul if device.type == "cuda" else emulated_matmul
        return Tools(ops, DeviceProducts(ops, scaled))

    return FusedBackend(SPEC, model, replace(ON_CPU, make_tools=tools, padded=True, buckets=(20,)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


def test_recorded_outputs_in_float32(device: torch.device) -> None:
    backend = engine(take_weights(load_pi05(TOY, toy_config(), device)), device)
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    valid = toy_outputs()["prefix_pad_mask"][0]
    assert largest_error(prefix.keys.cpu(), toy_outputs()["prefix_k"][..., valid, :]) < TOLERANCE
    assert largest_error(prefix.values.cpu(), toy_outputs()["prefix_v"][..., valid, :]) < TOLERANCE
    for steps in (1, 3):
        actions = torch.from_numpy(backend.denoise(prefix, NOISE, steps))
        assert largest_error(actions, toy_outputs()[f"actions_{steps}_steps"][0]) < TOLERANCE


@pytest.mark.parametrize("fp8", [False, True], ids=["bfloat16", "fp8"])
def test_low_precision_stays_close_to_float32(device: torch.device, fp8: bool) -> None:
    reference = load_pi05(TOY, toy_config())
    ranges, exact = ActivationRanges(reference), PyTorchBackend(BACKENDS["pytorch"], reference)
    with ranges.recording():
        wanted = exact.denoise(exact.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    absmax = {name: seen.kept for name, seen in ranges.inputs(100.0).items()} if fp8 else None
    model = load_pi05(TOY, toy_config(), device, torch.bfloat16)
    backend = engine(take_weights(model, absmax), device)
    actions = backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    assert 0.999 < cosine(actions, wanted) < 1.0

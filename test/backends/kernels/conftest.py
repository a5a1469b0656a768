"""Triton's kernels on a GPU, else in the interpreter; what they are measured with."""

from __future__ import annotations

import pytest
import torch

from thor_policy_ros.backends.kernels.capability import DeviceLimits, limits_of
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.target import KernelTarget

pytest.importorskip("triton", reason="no Triton in this environment")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def device() -> torch.device:
    torch.manual_seed(11)
    return DEVICE


@pytest.fixture
def target(device: torch.device) -> KernelTarget:
    """Scratch full of NaN: what a kernel did not write shows."""
    made = KernelTarget(device, limits_of(device))
    made.partials(0).fill_(torch.nan)
    return made


@pytest.fixture
def triton_ops(target: KernelTarget) -> Ops:
    from thor_policy_ros.backends.kernels.triton_ops import TritonOps

    return TritonOps(target.device, target)


@pytest.fixture
def limits(device: torch.device) -> DeviceLimits:
    return limits_of(device)

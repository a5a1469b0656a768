"""Operations of the prefix with attention made for Hopper, where it runs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from thor_policy_ros.backends.fused_trial import lacking, refused
from thor_policy_ros.backends.kernels.hopper_attention import CODES, HopperAttention
from thor_policy_ros.backends.kernels.hopper_product import HopperProducts
from thor_policy_ros.backends.kernels.ops import Ops, create_ops, kernels_can_overlap
from thor_policy_ros.backends.kernels.reference import ReferenceOps

_WHAT = "the prefix's attention on Hopper's matrix instructions"


def attending_ops(device: torch.device, products: HopperProducts | None) -> tuple[Ops, str]:
    """Operations of a CUDA device, and a note of whose attention is in them, or why not Hopper's,
    which must be right in a trial first. products: what patches may be multiplied by."""
    overlap = kernels_can_overlap(device)
    reason = lacking(_WHAT, device) or _refused(device)
    if reason:
        return create_ops("triton", device, overlap), f"the prefix's attention by Triton: {reason}"
    from thor_policy_ros.backends.kernels.hopper_ops import HopperOps

    return HopperOps(device, overlap, products), _WHAT


@cache
def _refused(device: torch.device) -> str:
    """As of the one trial of this process."""
    return refused(_WHAT, lambda: _trial_error(HopperAttention(device), device))


def _trial_error(attention: HopperAttention, device: torch.device) -> float:
    """The largest one of all codes, NaN where any result is."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).bfloat16()

    q, keys, values = random(20, 8, 256), *random(2, 1, 300, 256)
    length = torch.full((1,), 201, device=device, dtype=torch.int32)
    wanted = ReferenceOps().prefix_attention(q.float(), keys.float(), values.float(), length)
    got = [attention.prefix(q, keys, values, length, code=code).float() for code in CODES]
    return float(torch.stack([(x - wanted).norm() / wanted.norm() for x in got]).max())

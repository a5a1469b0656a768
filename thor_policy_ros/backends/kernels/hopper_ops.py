"""Triton's operations, with the prefix's attention by the kernel made for Hopper."""

from __future__ import annotations

import torch
from torch import Tensor

from thor_policy_ros.backends.kernels.hopper_attention import HopperAttention, fits_prefix
from thor_policy_ros.backends.kernels.triton_ops import TritonOps


class HopperOps(TritonOps):
    """As `TritonOps`; sizes that the kernel is not made for run there."""

    def __init__(self, device: torch.device, overlap: bool = False) -> None:
        super().__init__(device, overlap=overlap)
        self._attention = HopperAttention(device, overlap)

    def prefix_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        *,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if not fits_prefix(q, keys):
            return super().prefix_attention(q, keys, values, length, quantise=quantise, out=out)
        return self._attention.prefix(q, keys, values, length, quantise, out)

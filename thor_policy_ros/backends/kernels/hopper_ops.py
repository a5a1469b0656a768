"""Triton's operations, with those made for Hopper in their places."""

from __future__ import annotations

import torch
from torch import Tensor

from thor_policy_ros.backends.kernels.hopper_attention import HopperAttention, fits_prefix
from thor_policy_ros.backends.kernels.hopper_product import HopperProducts, fits
from thor_policy_ros.backends.kernels.patch_embedding import cut_patches
from thor_policy_ros.backends.kernels.triton_ops import TritonOps
from thor_policy_ros.backends.kernels.weights import CameraImages


class HopperOps(TritonOps):
    """As `TritonOps`; sizes that no kernel is made for run there. products: None leaves patches
    there too."""

    def __init__(
        self,
        device: torch.device,
        overlap: bool = False,
        products: HopperProducts | None = None,
    ) -> None:
        super().__init__(device, overlap=overlap)
        self._attention = HopperAttention(device, overlap)
        self._products = products

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

    def embed_patches(
        self, images: CameraImages, weight: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> Tensor:
        products = self._products
        if products is None or dtype != torch.bfloat16 or not fits(weight, "placed"):
            return super().embed_patches(images, weight, offset, dtype)
        patches = cut_patches(self.target, images, weight, len(offset))
        return products(patches, weight, "placed", places=offset)

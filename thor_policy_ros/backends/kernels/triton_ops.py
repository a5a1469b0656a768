"""The operations of `ops.Ops` as Triton kernels; imports Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from thor_policy_ros.backends.kernels import (
    activations,
    attention,
    flow_step,
    folded_gemm,
    image_resize,
    layer_norm,
    patch_embedding,
    rms_norm,
    rope,
    small_gemm,
    suffix_attention,
)
from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.resize_taps import ResizeTaps
from thor_policy_ros.backends.kernels.target import KernelTarget
from thor_policy_ros.backends.kernels.weights import CameraImages, Scaled, Weight


class TritonOps:
    """One object for each stream: split kernels share its scratch memory.

    target: where kernels are launched; made for the device where it is not given, with `overlap`.
    """

    name = "triton"

    def __init__(
        self, device: torch.device, target: KernelTarget | None = None, overlap: bool = False
    ) -> None:
        self.target = target or KernelTarget(device, limits_of(device), overlap=overlap)

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        delta: Tensor | None = None,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return rms_norm.rms_norm(self.target, x, weight, delta=delta, quantise=quantise, out=out)

    def ada_rms_norm(
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        *,
        delta: Tensor | None = None,
        gate: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return rms_norm.rms_norm(self.target, x, scale, shift, delta, gate, out=out)

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        delta: Tensor | None = None,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return layer_norm.layer_norm(self.target, x, weight, bias, delta, quantise, out)

    def geglu(
        self, gate_up: Tensor, *, quantise: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        return activations.geglu(self.target, gate_up, quantise, out)

    def bias_gelu(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return activations.bias_gelu(self.target, x, bias, quantise, out)

    def split_qkv(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        start: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        return rope.split_qkv(self.target, qkv, cos, sin, start, keys, values, out)

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
        return attention.prefix_attention(self.target, q, keys, values, length, quantise, out)

    def suffix_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        return suffix_attention.suffix_attention(self.target, q, keys, values, length, out)

    def vision_attention(
        self, qkv: Tensor, heads: int, *, quantise: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        return attention.vision_attention(self.target, qkv, heads, quantise, out)

    def expert_qkv(
        self,
        x: Scaled,
        bias: Tensor,
        weight: Weight,
        cos: Tensor,
        sin: Tensor,
        start: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        return folded_gemm.expert_qkv(
            self.target, x, bias, weight, cos, sin, start, keys, values, out
        )

    def expert_geglu(
        self, x: Scaled, bias: Tensor, weight: Weight, *, out: Tensor | None = None
    ) -> Tensor:
        return folded_gemm.expert_geglu(self.target, x, bias, weight, out)

    def gated_linear(
        self, x: Tensor, y: Tensor, weight: Weight, gate: Tensor, scale: Tensor
    ) -> Scaled:
        return small_gemm.gated_linear(self.target, x, y, weight, gate, scale)

    def embed_actions(
        self, x_t: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out: Tensor
    ) -> Scaled:
        return flow_step.embed_actions(self.target, x_t, weight, bias, scale, out)

    def euler_step(
        self,
        x_t: Tensor,
        hidden: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: Tensor,
        gain: Tensor,
        *,
        t: float,
        dt: float,
    ) -> None:
        flow_step.euler_step(
            self.target, x_t, hidden, scale, shift, weight, bias, target, gain, t, dt
        )

    def embed_patches(
        self, images: CameraImages, weight: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> Tensor:
        return patch_embedding.embed_patches(self.target, images, weight, offset, dtype)

    def resize_image(self, image: Tensor, taps: ResizeTaps, out: Tensor) -> None:
        image_resize.resize_image(self.target, image, taps, out)

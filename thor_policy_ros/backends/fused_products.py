"""The matrix products of vision tower and prefix, with the activation that follows them.

T tokens, K inputs, N outputs, M hidden width of an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from thor_policy_ros.backends.fused_weights import FusedModel, Linear
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.weights import Rotation

BiasedMatmul = Callable[[Tensor, Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""`fp8.ScaledMatmul` with a bias [N], or None, that is added before the result is rounded."""


class Products(Protocol):
    """x [...,K] is E4M3 where the layer is. quantise: as in `kernels.ops`."""

    def prepare(self, model: FusedModel, images: Sequence[int], prefixes: Sequence[int]) -> None:
        """Make ready what frames of these numbers of rows will want, of vision and prefix."""
        ...

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        """[...,N]."""
        ...

    def delta(self, x: Tensor, layer: Linear) -> Tensor:
        """`linear` for a norm of `kernels.ops` to add up: [T,N] or f32[S,T,N]."""
        ...

    def gelu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        """gelu_tanh of `linear`."""
        ...

    def geglu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        """gelu_tanh of the first half of `linear`, times the second: [...,M]."""
        ...

    def rotated(self, x: Tensor, layer: Linear, rotation: Rotation) -> Tensor | None:
        """`Ops.split_qkv` of `linear`: queries. None: it is left to that operation."""
        ...


class DeviceProducts:
    """Dense by torch, in FP8 by `scaled`; activations by `ops`."""

    def __init__(self, ops: Ops, scaled: BiasedMatmul) -> None:
        self._ops = ops
        self._scaled = scaled

    def prepare(self, model: FusedModel, images: Sequence[int], prefixes: Sequence[int]) -> None:
        pass

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        if layer.input_scale is None:
            return F.linear(x, layer.weight, layer.bias)
        return self._quantised(x, layer, layer.bias)

    def delta(self, x: Tensor, layer: Linear) -> Tensor:
        return self.linear(x, layer)

    def gelu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        dense = layer.input_scale is None
        if dense and quantise is None and x.is_cuda and layer.bias is not None:
            # cuBLASLt's epilogue, which is gelu_tanh: 12.0 us instead of 14.0 with a kernel behind
            return torch._addmm_activation(layer.bias, x, layer.weight.t(), use_gelu=True)
        out = F.linear(x, layer.weight) if dense else self._quantised(x, layer, None)
        return self._ops.bias_gelu(out, layer.bias, quantise=quantise)

    def geglu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        return self._ops.geglu(self.linear(x, layer), quantise=quantise)

    def rotated(self, x: Tensor, layer: Linear, rotation: Rotation) -> Tensor | None:
        return None

    def _quantised(self, x: Tensor, layer: Linear, bias: Tensor | None) -> Tensor:
        assert layer.input_scale is not None and layer.weight_scale is not None
        rows = x.reshape(-1, x.shape[-1])
        out = self._scaled(rows, layer.weight.t(), layer.input_scale, layer.weight_scale, bias)
        return out.unflatten(0, x.shape[:-1])

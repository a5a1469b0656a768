"""The fused engine's operations on a CPU, in float32: what torch has fused there is used.

oneDNN's products on weights packed once take half the time of MKL's on an AMD processor with
AVX-512 (148 tokens, 128 to 768: 159 us against 318), add bias, GELU or a factor on their way out,
and lose by their call where there is little to multiply. Torch reaches them through operators
without a public name, those that `torch.compile` emits; where they are absent, MKL it is.

Letters as in `kernels.ops`. Lengths are read: on a CPU that waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thor_policy_ros.backends.fused_weights import FusedModel, Linear
from thor_policy_ros.backends.kernels.reference import ReferenceOps
from thor_policy_ros.backends.kernels.weights import Rotation, Scaled, Weight
from thor_policy_ros.model.gemma import RMS_NORM_EPS

PACKED_FROM = 1 << 19
"""Multiplications from which a packed product is faster than a plain one."""


def onednn_is_there() -> bool:
    """Whether this torch has oneDNN and its operators for packed weights."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    available: bool = torch.backends.mkldnn.is_available()
    return available and all(hasattr(torch.ops.mkldnn, name) for name in names)


class HostProducts:
    """`fused_products.Products` of dense float32 weights."""

    def __init__(self, packs: bool | None = None) -> None:
        self._packs = onednn_is_there() if packs is None else packs
        self._packed: dict[tuple[int, int], Tensor] = {}

    def prepare(self, model: FusedModel, images: Sequence[int], prefixes: Sequence[int]) -> None:
        pass

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        return self.product(x, layer.weight, layer.bias)

    def delta(self, x: Tensor, layer: Linear) -> Tensor:
        return self.linear(x, layer)

    def gelu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        assert quantise is None, "FP8 is for GPUs"
        return self.product(x, layer.weight, layer.bias, gelu=True)

    def geglu(self, x: Tensor, layer: Linear, quantise: Tensor | None) -> Tensor:
        assert quantise is None, "FP8 is for GPUs"
        return self.gated(x, layer.weight, None)

    def rotated(self, x: Tensor, layer: Linear, rotation: Rotation) -> Tensor | None:
        return None

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
        """x [...,K] times weight [N,K] transposed, plus bias; gelu_tanh of it if asked for."""
        if self._is_small(x, weight):
            plain = F.linear(x, weight, bias)
            return F.gelu(plain, approximate="tanh") if gelu else plain
        name, form = ("gelu", "tanh") if gelu else ("none", "")
        out: Tensor = self._onednn._linear_pointwise(x, self._pack(weight), bias, name, [], form)
        return out

    def gated(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """gelu_tanh of the first half of x @ weight.T + bias, times the second half."""
        gate_rows, up_rows = weight.chunk(2)
        gate_bias, up_bias = (None, None) if bias is None else bias.chunk(2)
        if self._is_small(x, gate_rows):
            gate, up = F.linear(x, weight, bias).chunk(2, -1)
            return F.gelu(gate, approximate="tanh").mul_(up)
        gate = self.product(x, gate_rows, gate_bias, gelu=True)
        packed = self._pack(up_rows)
        out: Tensor = self._onednn._linear_pointwise.binary(x, gate, packed, up_bias, "mul")
        return out

    @property
    def _onednn(self) -> Any:
        return torch.ops.mkldnn

    def _is_small(self, x: Tensor, weight: Tensor) -> bool:
        rows = x.numel() // x.shape[-1]
        return not self._packs or rows * weight.numel() < PACKED_FROM

    def _pack(self, weight: Tensor) -> Tensor:
        """Once for each matrix; it is held beside the original."""
        key = (weight.data_ptr(), weight.shape[0])
        if key not in self._packed:
            self._packed[key] = self._onednn._reorder_linear_weight(weight.contiguous())
        return self._packed[key]


class HostOps(ReferenceOps):
    """Those of the reference that the frames of a CPU spend their time in, in fewer passes."""

    name = "host"

    def __init__(self, products: HostProducts) -> None:
        self._products = products
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        delta: Tensor | None = None,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if quantise is not None or out is not None:
            return super().rms_norm(x, weight, delta=delta, quantise=quantise, out=out)
        if delta is not None:
            x.add_(delta)
        return _normed(x).mul_(weight)

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
        groups, _, head_dim = keys.shape
        begin = int(start)
        end = begin + qkv.shape[0]
        whole_cos, whole_sin = self._whole_tables(cos, sin)
        heads = qkv.unflatten(-1, (-1, head_dim))
        turned = heads[:, :-groups]
        swapped = turned.roll(head_dim // 2, -1)
        rotated = torch.addcmul(turned * whole_cos[begin:end], swapped, whole_sin[begin:end])
        queries = heads.shape[1] - 2 * groups
        keys[:, begin:end].copy_(rotated[:, queries:].transpose(0, 1))
        values[:, begin:end].copy_(heads[:, -groups:].transpose(0, 1))
        q = rotated[:, :queries]
        return q if out is None else out.copy_(q)

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
        if quantise is not None or out is not None:
            return super().prefix_attention(q, keys, values, length, quantise=quantise, out=out)
        return _attended(q, keys, values, int(length))

    def suffix_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        attended = _attended(q, keys, values, int(length) + q.shape[0])
        return attended if out is None else out.copy_(attended)

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
        qkv = self._products.product(_normalised(x), _dense(weight), bias)
        return self.split_qkv(qkv, cos, sin, start, keys, values, out=out)

    def expert_geglu(
        self, x: Scaled, bias: Tensor, weight: Weight, *, out: Tensor | None = None
    ) -> Tensor:
        active = self._products.gated(_normalised(x), _dense(weight), bias)
        return active if out is None else out.copy_(active)

    def gated_linear(
        self, x: Tensor, y: Tensor, weight: Weight, gate: Tensor, scale: Tensor
    ) -> Scaled:
        x.addcmul_(self._products.product(y, _dense(weight), None), gate)
        return _scaled(x, scale)

    def embed_actions(
        self, x_t: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out: Tensor
    ) -> Scaled:
        out.copy_(F.linear(x_t, weight, bias))
        return _scaled(out, scale)

    def _whole_tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """f32[T,1,D] each, for both halves of a head at once; the first half of sin negated."""
        key = cos.data_ptr()
        if key not in self._tables:
            whole = torch.cat((cos, cos), 1)[:, None], torch.cat((-sin, sin), 1)[:, None]
            self._tables[key] = whole
        return self._tables[key]


def _normed(x: Tensor) -> Tensor:
    """x * rsqrt(mean(x^2) + eps), in one reduction and one pass."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * length.square_().mul_(1 / x.shape[-1]).add_(RMS_NORM_EPS).rsqrt_()


def _scaled(x: Tensor, scale: Tensor) -> Scaled:
    """In one reduction and one pass."""
    return Scaled(x * scale, torch.linalg.vector_norm(x, dim=-1).square_()[None])


def _normalised(x: Scaled) -> Tensor:
    """h times the norm's factor, in h's own memory: one product reads it."""
    factor = (x.squares[0] * (1 / x.h.shape[-1])).add_(RMS_NORM_EPS).rsqrt_()
    return x.h.mul_(factor[:, None])


def _attended(q: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Over the first `length` rows; heads of a group are rows of one attention."""
    tokens, heads, head_dim = q.shape
    groups = keys.shape[0]
    rows = q.view(tokens, groups, -1, head_dim).transpose(0, 1).reshape(1, groups, -1, head_dim)
    seen = slice(0, length)
    out = F.scaled_dot_product_attention(rows, keys[None, :, seen], values[None, :, seen])
    shape = (groups, tokens, heads // groups, head_dim)
    return out[0].view(shape).transpose(0, 1).reshape(tokens, heads * head_dim)


def _dense(weight: Weight) -> Tensor:
    assert weight.scale is None, "FP8 is for GPUs"
    return weight.data

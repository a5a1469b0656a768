"""Every operation of `ops.Ops` in torch: what the Triton kernels are tested against.

Also what a fused engine runs on a CPU. Shapes and meaning are those of `ops.Ops`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from thor_policy_ros.backends.flow_guidance import guided_velocity
from thor_policy_ros.backends.fp8 import saturating_cast
from thor_policy_ros.backends.kernels.resize_taps import PRECISION_BITS, ResizeTaps
from thor_policy_ros.backends.kernels.weights import CameraImages, Scaled, Weight
from thor_policy_ros.model.gemma import RMS_NORM_EPS
from thor_policy_ros.model.siglip import LAYER_NORM_EPS


class ReferenceOps:
    """Stateless; on any device, in float32, bfloat16 or (as a measure of the others) float64."""

    name = "reference"

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        delta: Tensor | None = None,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if delta is not None:
            x.add_(delta if delta.ndim == x.ndim else delta.sum(0))
        return _store(_normed(x) * weight, x.dtype, quantise, out)

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
        if delta is not None:
            assert gate is not None
            x.copy_(_wide(x) + _wide(delta) * gate)
        return _store(_normed(x) * scale + shift, x.dtype, None, out)

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
        if delta is not None:
            x.add_(delta if delta.ndim == x.ndim else delta.sum(0))
        wide = _wide(x)
        normed = F.layer_norm(
            wide, x.shape[-1:], weight.to(wide.dtype), bias.to(wide.dtype), LAYER_NORM_EPS
        )
        return _store(normed, x.dtype, quantise, out)

    def geglu(
        self, gate_up: Tensor, *, quantise: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        return _store(_gated(_wide(gate_up)), gate_up.dtype, quantise, out)

    def bias_gelu(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        wide = _wide(x)
        shifted = wide if bias is None else wide + bias
        return _store(F.gelu(shifted, approximate="tanh"), x.dtype, quantise, out)

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
        return _split(_wide(qkv), qkv.dtype, cos, sin, start, keys, values, out)

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
        return _store(_attended(q, keys, values, length), q.dtype, quantise, out)

    def suffix_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        return _store(_attended(q, keys, values, length + q.shape[0]), q.dtype, None, out)

    def vision_attention(
        self, qkv: Tensor, heads: int, *, quantise: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return _store(attended, qkv.dtype, quantise, out)

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
        qkv = _folded_product(x, bias, weight)
        return _split(qkv, x.h.dtype, cos, sin, start, keys, values, out)

    def expert_geglu(
        self, x: Scaled, bias: Tensor, weight: Weight, *, out: Tensor | None = None
    ) -> Tensor:
        return _store(_gated(_folded_product(x, bias, weight)), x.h.dtype, None, out)

    def gated_linear(
        self, x: Tensor, y: Tensor, weight: Weight, gate: Tensor, scale: Tensor
    ) -> Scaled:
        x.copy_(_wide(x) + gate * _product(_wide(y), weight))
        return scaled(x, scale)

    def embed_actions(
        self, x_t: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out: Tensor
    ) -> Scaled:
        out.copy_(F.linear(x_t, weight, bias))
        return scaled(out, scale)

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
        velocity = F.linear(_normed(hidden) * scale + shift, weight, bias)
        guided = guided_velocity(x_t, velocity, t, target, gain[:, None])
        x_t.sub_(guided, alpha=dt)

    def embed_patches(
        self, images: CameraImages, weight: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> Tensor:
        assert images.addresses is None, "torch reads tensors"
        tokens, width = offset.shape
        grid = math.isqrt(tokens)
        columns = 3 * (images.tensor.shape[-1] // grid) ** 2
        if weight.dtype == torch.bfloat16:  # rounded, rounded, rest
            wide = weight.to(offset.dtype)
            weight = wide[:, :columns] + wide[:, 2 * columns : 3 * columns]
        seen = images.tensor.to(weight.device, non_blocking=True)
        cut = _patches(seen, grid, weight.shape[1])
        return (F.linear(cut, weight) + offset).to(dtype).view(-1, width)

    def resize_image(self, image: Tensor, taps: ResizeTaps, out: Tensor) -> None:
        taps.require_sizes(image, out)
        across = _pass(image.long(), taps.first_x.long(), taps.weights_x.long(), 1)
        down = _pass(across, taps.first_y.long(), taps.weights_y.long(), 0)
        out.copy_(down.permute(2, 0, 1))


def _patches(images: Tensor, grid: int, columns: int) -> Tensor:
    """images [v,3,S,S] -> [v,grid*grid,C], row by row; columns beyond 3*p*p are 0."""
    cameras, _, size, _ = images.shape
    patch = size // grid
    cut = images.view(cameras, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    rows = cut.reshape(cameras, grid * grid, 3 * patch * patch)
    return F.pad(rows, (0, columns - rows.shape[2]))


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _store(
    value: Tensor, dtype: torch.dtype, quantise: Tensor | None, out: Tensor | None
) -> Tensor:
    rounded = value.to(dtype) if quantise is None else saturating_cast(value, quantise)
    return rounded if out is None else out.copy_(rounded.view(out.shape))


def _normed(x: Tensor) -> Tensor:
    return F.rms_norm(_wide(x), x.shape[-1:], None, RMS_NORM_EPS)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


def _product(x: Tensor, weight: Weight) -> Tensor:
    """x f[M,K] in float32 or wider -> [M,N]."""
    product = x @ weight.data.to(x.dtype).t()
    return product if weight.scale is None else product * weight.scale


def _folded_product(x: Scaled, bias: Tensor, weight: Weight) -> Tensor:
    h = _wide(x.h)
    rstd = torch.rsqrt(x.squares.sum(0) / h.shape[1] + RMS_NORM_EPS)
    return rstd[:, None] * _product(h, weight) + bias


def scaled(x: Tensor, scale: Tensor) -> Scaled:
    """`Scaled` of x [M,W] and scale f32[W], squares in one part."""
    wide = _wide(x)
    return Scaled((wide * scale).to(x.dtype), wide.square().sum(-1)[None])


def _split(
    qkv: Tensor,
    dtype: torch.dtype,
    cos: Tensor,
    sin: Tensor,
    start: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor | None,
) -> Tensor:
    groups, _, head_dim = keys.shape
    rows = torch.arange(qkv.shape[0], device=qkv.device) + start
    heads = qkv.unflatten(-1, (-1, head_dim))
    low, high = heads[:, :-groups].chunk(2, -1)
    cos, sin = cos[rows, None], sin[rows, None]
    rotated = torch.cat((low * cos - high * sin, high * cos + low * sin), -1)
    queries = heads.shape[1] - 2 * groups
    keys.index_copy_(1, rows, rotated[:, queries:].transpose(0, 1).to(keys.dtype))
    values.index_copy_(1, rows, heads[:, -groups:].transpose(0, 1).to(values.dtype))
    return _store(rotated[:, :queries], dtype, None, out)


def _attended(q: Tensor, keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
    tokens, heads, head_dim = q.shape
    groups, rows, _ = keys.shape
    seen = torch.arange(rows, device=q.device) < length
    packed = q.view(tokens, groups, -1, head_dim).transpose(0, 1).reshape(groups, -1, head_dim)
    # An unseen row may hold anything, also what is not a number: a mask alone would let it through.
    k, v = (x.masked_fill(~seen[:, None], 0)[None] for x in (keys, values))
    attended = F.scaled_dot_product_attention(
        packed[None], k, v, attn_mask=seen.expand(1, 1, packed.shape[1], rows)
    )
    shape = (groups, tokens, heads // groups, head_dim)
    return attended[0].view(shape).transpose(0, 1).reshape(tokens, heads * head_dim)


def _pass(image: Tensor, first: Tensor, weights: Tensor, dim: int) -> Tensor:
    """One direction of the resize, rounded to 8 bits; black where there are no taps."""
    offsets = torch.arange(weights.shape[1], device=image.device)
    indices = (first.clamp_min(0)[:, None] + offsets).clamp_max(image.shape[dim] - 1)
    picked = image.index_select(dim, indices.flatten()).unflatten(dim, indices.shape)
    shape = (*weights.shape, 1) if dim == 1 else (*weights.shape, 1, 1)
    total = (picked * weights.view(shape)).sum(dim + 1) + (1 << (PRECISION_BITS - 1))
    return (total >> PRECISION_BITS).clamp_(0, 255)

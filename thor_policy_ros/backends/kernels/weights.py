"""Weight matrices of the small products, dense or in FP8, and modulations folded into them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3, E4M3_MAX

PATCH_PARTS = 3
"""Products of bfloat16 that make one of float32, but for 2^-16."""
_LEAST_ABSMAX = 1e-12


class Weight(NamedTuple):
    """A linear layer's matrix without bias.

    data: [N,K] contiguous, in the activations' dtype or E4M3. scale: f32[N], by which rows of
    an E4M3 matrix are multiplied; None for a dense one.
    """

    data: Tensor
    scale: Tensor | None = None

    def dense(self) -> Tensor:
        """f32[N,K]: what it stands for."""
        values = self.data.float()
        return values if self.scale is None else values * self.scale[:, None]


class Rotation(NamedTuple):
    """What RoPE turns by, and where keys and values go: cos, sin f32[R,D/2] of all positions, start
    i32[1] of the first row, keys and values [G,R,D]."""

    cos: Tensor
    sin: Tensor
    start: Tensor
    keys: Tensor
    values: Tensor


class CameraImages(NamedTuple):
    """Images f32[V,3,S,S]. addresses: i64[1+V]: 1 for pixels u8[3,S,S] and 0 for f32[3,S,S], and of
    each image where it lies, anywhere that the device reads, in the host's pinned memory too; None:
    they lie in `tensor`."""

    tensor: Tensor
    addresses: Tensor | None = None

    def first(self, count: int) -> CameraImages:
        """Of so many cameras."""
        addresses = None if self.addresses is None else self.addresses[: 1 + count]
        return CameraImages(self.tensor[:count], addresses)


class Folded(NamedTuple):
    """An adaptive RMSNorm folded into the product behind it.

    `(norm(x) * scale + shift) @ W.T` is `rstd * ((x * scale) @ W.T) + bias`, so that the
    product need not wait for the norm. scale: f32[K] (1 is already added); bias: f32[N].
    """

    scale: Tensor
    bias: Tensor


class Scaled(NamedTuple):
    """A residual stream x [M,W] as the product behind an adaptive RMSNorm reads it (see Folded).

    h: [M,W] of x * scale, in the dtype of x. squares: f32[T,M], parts of the sum of x^2 over W.
    """

    h: Tensor
    squares: Tensor


def quantise_rows(weight: Tensor) -> Weight:
    """[N,K] in E4M3, every row with a scale of its own."""
    values = weight.detach().float()
    scale = values.abs().amax(1).clamp_min(_LEAST_ABSMAX) / E4M3_MAX
    data = (values / scale[:, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return Weight(data.contiguous(), scale)


def split_patches(weight: Tensor) -> Tensor:
    """f32[W,C] -> bf16[W,3C], of rows that fill up to 16 bytes: rounded twice, then the rest, for
    patches as rounded, rest, rounded."""
    rounded = weight.bfloat16()
    rest = (weight - rounded.float()).bfloat16()
    parts = torch.cat((rounded, rounded, rest), 1)
    return torch.nn.functional.pad(parts, (0, -parts.shape[1] % 8)).contiguous()


def fold(scale: Tensor, shift: Tensor, weight: Weight) -> Folded:
    """scale, shift: f32[K], or f32[N',K] of several steps at once (rows of the result)."""
    return Folded(scale.float().contiguous(), (shift.float() @ weight.dense().t()).contiguous())


def rope_halves(positions: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin f32[positions, head_dim/2] of positions 0, 1, ...: both halves share them."""
    from thor_policy_ros.model.gemma import rope_tables

    tables = rope_tables(torch.arange(positions, device=device)[None], head_dim)
    half = head_dim // 2
    return tables.cos[0, :, 0, :half].contiguous(), tables.sin[0, :, 0, half:].contiguous()

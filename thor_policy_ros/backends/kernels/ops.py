"""The operations a fused engine is made of: one protocol, in torch or in Triton.

Letters: M rows (tokens), W width, F hidden width, K inputs, N outputs, D head dimension,
G kv heads, R rows of a K,V buffer, T positions of the RoPE tables, H horizon, A action dims.

Activations x are contiguous, float32 or bfloat16; norms, sums and softmax are float32 inside and
rounded once. What a method calls updated in place is; `out` is written where it is given.

quantise: f32[] scale on the device; the result is then E4M3 of `value / quantise`, saturated.
start, length: int32[1] on the device, so that one captured graph serves every prefix length.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from thor_policy_ros.backends.kernels.capability import missing_for_triton
from thor_policy_ros.backends.kernels.resize_taps import ResizeTaps
from thor_policy_ros.backends.kernels.weights import CameraImages, Scaled, Weight
from thor_policy_ros.types import BackendUnavailableError

NAMES = ("reference", "triton")


class Ops(Protocol):
    """One object for each stream: it owns the scratch memory of its kernels."""

    @property
    def name(self) -> str:
        """'reference' or 'triton'."""

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        delta: Tensor | None = None,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """RMSNorm of x [M,W]; weight: f32[W] with 1 added. delta [M,W], or the sum of f32[S,M,W],
        is added to x first, in place."""

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
        """`norm(x) * scale + shift`, f32[W] each, scale with 1 added. `delta * gate`, [M,W] and
        f32[W], is added to x first, in place (both are given or neither)."""

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
        """LayerNorm of x [M,W]; weight, bias: [W] of any dtype. delta as in `rms_norm`."""

    def geglu(
        self, gate_up: Tensor, *, quantise: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """`gelu_tanh(gate) * up` of gate_up [M,2F], gate first: [M,F]."""

    def bias_gelu(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`gelu_tanh(x + bias)` of x [M,F]; bias: [F] of any dtype."""

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
        """Rotate queries and keys of qkv [M,(heads+2G)*D]; returns q [M,heads,D].

        Row m has position start + m, of the tables cos, sin f32[T,D/2]; its keys and values are
        written to row start + m of keys, values [G,R,D] (rows contiguous). Without query heads
        (qkv [M,2G*D]) q is empty.
        """

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
        """q [M,heads,D] over the first `length` rows of keys, values [G,R,D]: [M,heads*D].

        length: 1 to R. Rows of q beyond it give finite values without meaning.
        """

    def suffix_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """q [M,heads,D], few rows, over the first `length + M` rows of keys, values [G,R,D]."""

    def vision_attention(
        self, qkv: Tensor, heads: int, *, quantise: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """qkv [V,tokens,3*W], W = heads*D: every token of an image sees all: [V,tokens,W]."""

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
        """adaRMS, product and `split_qkv` in one, for few rows: x [M,W] -> q [M,heads,D].

        x, bias f32[N]: as `weights.Folded` says.
        """

    def expert_geglu(
        self, x: Scaled, bias: Tensor, weight: Weight, *, out: Tensor | None = None
    ) -> Tensor:
        """adaRMS, merged gate-up product and GEGLU in one, for few rows: x [M,W] -> [M,F].

        bias f32[2F]: as in `expert_qkv`.
        """

    def gated_linear(
        self, x: Tensor, y: Tensor, weight: Weight, gate: Tensor, scale: Tensor
    ) -> Scaled:
        """`x += gate * (y @ weight.T)` in place, for few rows: x [M,N], y [M,K], gate f32[N].

        scale: f32[N] of the norm that reads x next, which gets the result.
        """

    def embed_actions(
        self, x_t: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out: Tensor
    ) -> Scaled:
        """`out = x_t @ weight.T + bias`: x_t f32[H,A], weight f32[W,A], bias f32[W], out [H,W].

        scale: f32[W] of the norm that reads `out` next, which gets the result.
        """

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
        """The end of a denoise step: final adaRMS, output projection, guidance, `x_t -= dt * v`.

        x_t: f32[H,A], updated in place; hidden: [H,W]; scale, shift: f32[W]; weight: f32[A,W];
        bias: f32[A]; target: f32[H,A] and gain: f32[H] as in `flow_guidance.guided_velocity`
        (gain 0: no guidance, to the bit).
        """

    def embed_patches(
        self, images: CameraImages, weight: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Patches of images [V,3,S,S], in rows, times `weight` f32[W,C], plus `offset` f32[T,W]
        of the T places of an image: [V*T,W] of `dtype`.

        C >= 3*patch*patch: channel, row, column of a patch; further columns are 0. A bfloat16
        weight is one of `weights.split_patches`.
        """

    def resize_image(self, image: Tensor, taps: ResizeTaps, out: Tensor) -> None:
        """Resize with padding, to the bit as `model.transforms.resize_with_pad`.

        image: u8[height,width,3] and out: u8[3,size,size], as `taps` were made for.
        """


def create_ops(name: str, device: torch.device | str, overlap: bool = False) -> Ops:
    """'reference': torch, anywhere. 'triton': BackendUnavailableError says what is missing.

    overlap: let Triton's kernels begin before the one in front of them ends, where
    `kernels_can_overlap`. ValueError for a name that is not known.
    """
    if name == "reference":
        from thor_policy_ros.backends.kernels.reference import ReferenceOps

        return ReferenceOps()
    if name != "triton":
        raise ValueError(f"unknown ops {name!r}; choose one of: {', '.join(NAMES)}")
    lacks = missing_for_triton(torch.device(device))
    if lacks:
        raise BackendUnavailableError(f"the Triton kernels want {'; '.join(lacks)}")
    from thor_policy_ros.backends.kernels.triton_ops import TritonOps

    return TritonOps(torch.device(device), overlap=overlap)


def kernels_can_overlap(device: torch.device) -> bool:
    """Whether the device knows programmatic dependent launch (Hopper and later)."""
    from thor_policy_ros.backends.kernels.capability import limits_of

    return device.type == "cuda" and limits_of(device).can_overlap

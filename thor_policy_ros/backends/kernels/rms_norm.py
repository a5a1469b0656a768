"""RMSNorm and its adaptive form, each with the residual sum before it: one row for each block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.rounding import load_sum, store
from thor_policy_ros.backends.kernels.target import KernelTarget, parts_of, require_contiguous
from thor_policy_ros.backends.kernels.tiles import power_of_2
from thor_policy_ros.model.gemma import RMS_NORM_EPS


@triton.jit
def rms_norm_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    delta_ptr,
    gate_ptr,
    quantise_ptr,
    out_ptr,
    width,
    part,
    PARTS: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_previous(OVERLAP)
    column = tl.arange(0, BLOCK)
    inside = column < width
    offsets = tl.program_id(0).to(tl.int64) * width + column
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    if delta_ptr is not None:
        delta = load_sum(delta_ptr + offsets, part, inside, PARTS)
        if gate_ptr is not None:
            delta *= tl.load(gate_ptr + column, mask=inside, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + delta).to(x.dtype)
        tl.store(x_ptr + offsets, x, mask=inside)
    wide = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, 0) / width + EPS)
    value = wide * rstd * tl.load(scale_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if shift_ptr is not None:
        value += tl.load(shift_ptr + column, mask=inside, other=0.0).to(tl.float32)
    store(out_ptr + offsets, value, quantise_ptr, inside, quantise_ptr is not None)


def rms_norm(
    target: KernelTarget,
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    delta: Tensor | None = None,
    gate: Tensor | None = None,
    quantise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`Ops.rms_norm`, and with `shift` `Ops.ada_rms_norm`."""
    require_contiguous(x=x, scale=scale, shift=shift, delta=delta, gate=gate, out=out)
    if out is None:
        out = torch.empty_like(x, dtype=x.dtype if quantise is None else E4M3)
    rows, width = x.shape
    block = power_of_2(width)
    target.launch(
        rms_norm_kernel,
        (rows,),
        x,
        scale,
        shift,
        delta,
        gate,
        quantise,
        out,
        width,
        x.numel(),
        PARTS=parts_of(x, delta),
        EPS=RMS_NORM_EPS,
        BLOCK=block,
        num_warps=4 if block <= 2048 else 8,
        **target.overlap_options,
    )
    return out

"""Both ends of a denoise step: actions into the expert, and its output back into the flow."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.small_gemm import empty_scaled
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import ceil_div, power_of_2
from thor_policy_ros.backends.kernels.weights import Scaled
from thor_policy_ros.model.gemma import RMS_NORM_EPS

OUTPUTS = 128
ACTIONS = 8
WIDTH = 1024


@triton.jit
def embed_actions_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    scale_ptr,
    out_ptr,
    h_ptr,
    squares_ptr,
    rows,
    actions,
    width,
    BLOCK_A: tl.constexpr,
    OUTPUTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(1)
    column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    a = tl.arange(0, BLOCK_A)
    inside = column < width
    mask = inside[:, None] & (a < actions)[None, :]
    w = tl.load(w_ptr + column[:, None] * actions + a[None, :], mask=mask, other=0.0)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
    wait_for_previous(OVERLAP)  # a step's constants may just have been copied to where they lie
    scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
    x = tl.load(x_ptr + row * actions + a, mask=a < actions, other=0.0)
    rounded = (tl.sum(w * x[None, :], 1) + bias).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * width + column, rounded, mask=inside)
    value = rounded.to(tl.float32)
    h = (value * scale).to(h_ptr.dtype.element_ty)
    tl.store(h_ptr + row * width + column, h, mask=inside)
    squares = tl.sum(tl.where(inside, value * value, 0.0), 0)
    tl.store(squares_ptr + tl.program_id(0) * rows + row, squares)


@triton.jit
def euler_step_kernel(
    x_t_ptr,
    hidden_ptr,
    scale_ptr,
    shift_ptr,
    w_ptr,
    bias_ptr,
    target_ptr,
    gain_ptr,
    time,
    dt,
    actions,
    width,
    EPS: tl.constexpr,
    ACTIONS: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The norm's factor comes out of the same pass as the product."""
    wait_for_previous(OVERLAP)
    row = tl.program_id(0)
    action = tl.program_id(1) * ACTIONS + tl.arange(0, ACTIONS)
    inside = action < actions
    scaled = tl.zeros((ACTIONS,), tl.float32)
    shifted = tl.zeros((ACTIONS,), tl.float32)
    squares = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, width, WIDTH):
        column = first + tl.arange(0, WIDTH)
        mask = column < width
        x = tl.load(hidden_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + column, mask=mask, other=0.0)
        shift = tl.load(shift_ptr + column, mask=mask, other=0.0)
        w_mask = inside[:, None] & mask[None, :]
        w = tl.load(w_ptr + action[:, None] * width + column[None, :], mask=w_mask, other=0.0)
        squares += x * x
        scaled += tl.sum(w * (x * scale)[None, :], 1)
        shifted += tl.sum(w * shift[None, :], 1)
    rstd = tl.rsqrt(tl.sum(squares, 0) / width + EPS)
    velocity = rstd * scaled + shifted + tl.load(bias_ptr + action, mask=inside, other=0.0)
    pointers = x_t_ptr + row * actions + action
    x_t = tl.load(pointers, mask=inside, other=0.0)
    wanted = tl.load(target_ptr + row * actions + action, mask=inside, other=0.0)
    velocity -= tl.load(gain_ptr + row) * (wanted - (x_t - time * velocity))
    tl.store(pointers, x_t - dt * velocity, mask=inside)


def embed_actions(
    target: KernelTarget, x_t: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, out: Tensor
) -> Scaled:
    """`Ops.embed_actions`."""
    require_contiguous(x_t=x_t, weight=weight, bias=bias, scale=scale, out=out)
    rows, actions = x_t.shape
    width = weight.shape[0]
    parts = ceil_div(width, OUTPUTS)
    made = empty_scaled(out, parts)
    target.launch(
        embed_actions_kernel,
        (parts, rows),
        x_t,
        weight,
        bias,
        scale,
        out,
        *made,
        rows,
        actions,
        width,
        BLOCK_A=power_of_2(actions),
        OUTPUTS=OUTPUTS,
        num_warps=4,
        **target.overlap_options,
    )
    return made


def euler_step(
    target: KernelTarget,
    x_t: Tensor,
    hidden: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    wanted: Tensor,
    gain: Tensor,
    t: float,
    dt: float,
) -> None:
    """`Ops.euler_step`; wanted: its `target`."""
    require_contiguous(x_t=x_t, hidden=hidden, scale=scale, shift=shift, weight=weight)
    require_contiguous(bias=bias, target=wanted, gain=gain)
    rows, actions = x_t.shape
    width = hidden.shape[1]
    target.launch(
        euler_step_kernel,
        (rows, ceil_div(actions, ACTIONS)),
        x_t,
        hidden,
        scale,
        shift,
        weight,
        bias,
        wanted,
        gain,
        float(t),
        float(dt),
        actions,
        width,
        EPS=RMS_NORM_EPS,
        ACTIONS=ACTIONS,
        WIDTH=WIDTH,
        num_warps=4,
        **target.overlap_options,
    )

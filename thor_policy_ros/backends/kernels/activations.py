"""GELU of the vision tower's MLP, and Gemma's gated GELU, with the rounding to E4M3 behind them.

Quantising the hidden tensor in a kernel of its own is what made full FP8 slower than bfloat16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.rounding import store
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import ceil_div

BLOCK = 1024


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)) as x * sigmoid(2u): one exponential, and no overflow."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def geglu_kernel(
    gate_up_ptr, quantise_ptr, out_ptr, hidden, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    wait_for_previous(OVERLAP)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    row = tl.program_id(0).to(tl.int64)
    gate_ptr = gate_up_ptr + row * 2 * hidden + column
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + hidden, mask=inside, other=0.0).to(tl.float32)
    pointers = out_ptr + row * hidden + column
    store(pointers, gelu_tanh(gate) * up, quantise_ptr, inside, quantise_ptr is not None)


@triton.jit
def bias_gelu_kernel(
    x_ptr,
    bias_ptr,
    quantise_ptr,
    out_ptr,
    width,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_previous(OVERLAP)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    offsets = tl.program_id(0).to(tl.int64) * width + column
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    store(out_ptr + offsets, gelu_tanh(x), quantise_ptr, inside, quantise_ptr is not None)


def geglu(
    target: KernelTarget, gate_up: Tensor, quantise: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`Ops.geglu`."""
    require_contiguous(gate_up=gate_up, out=out)
    rows, hidden = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None:
        dtype = gate_up.dtype if quantise is None else E4M3
        out = torch.empty((rows, hidden), device=gate_up.device, dtype=dtype)
    grid = (rows, ceil_div(hidden, BLOCK))
    options = {"BLOCK": BLOCK, "num_warps": 4, **target.overlap_options}
    target.launch(geglu_kernel, grid, gate_up, quantise, out, hidden, **options)
    return out


def bias_gelu(
    target: KernelTarget,
    x: Tensor,
    bias: Tensor | None = None,
    quantise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`Ops.bias_gelu`."""
    require_contiguous(x=x, bias=bias, out=out)
    if out is None:
        out = torch.empty_like(x, dtype=x.dtype if quantise is None else E4M3)
    rows, width = x.shape
    grid = (rows, ceil_div(width, BLOCK))
    options = {"BLOCK": BLOCK, "num_warps": 4, **target.overlap_options}
    target.launch(bias_gelu_kernel, grid, x, bias, quantise, out, width, **options)
    return out

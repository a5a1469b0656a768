"""Images to the tokens that the vision tower begins with: cut into patches, multiplied, placed.

Images may lie in the host's pinned memory, as pixels or as float32: each is read once, in order. In
bfloat16 a product of float32 is three: what a value is rounded to, and the rest, of both factors
but for the product of the rests (2^-16 of it). torch's own float32 product took 29 us on an H200,
and six small kernels around it 18; one Triton kernel of TF32 that gathered pixels itself, 41.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.overlap import wait_for_previous
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import ceil_div
from thor_policy_ros.backends.kernels.weights import PATCH_PARTS, CameraImages

BLOCK_M, BLOCK_N = 64, 64
PIXELS = 1024


@triton.jit
def load_image(are_pixels, address, index, inside):
    """f32, of an image that lies there."""
    if are_pixels != 0:
        pixels = tl.load(address.to(tl.pointer_type(tl.uint8)) + index, mask=inside, other=0)
        value = tl.div_rn(pixels.to(tl.float32), 255.0) * 2.0 - 1.0  # as `model.pixels.PIXEL`
    else:
        value = tl.load(address.to(tl.pointer_type(tl.float32)) + index, mask=inside, other=0.0)
    return value


@triton.jit
def cut_patches_kernel(
    image_ptr,
    address_ptr,
    out_ptr,
    out_row,
    FILL: tl.constexpr,
    GRID: tl.constexpr,
    PATCH: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Pixels in the order of an image [3,S,S] to rows of patches; SPLIT: rounded, rest, rounded.
    FILL: columns of zeros behind them, which come with the first pixel of a patch."""
    wait_for_previous(OVERLAP)
    columns: tl.constexpr = 3 * PATCH * PATCH
    size: tl.constexpr = GRID * PATCH
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < 3 * size * size
    camera = tl.program_id(1)
    if address_ptr is None:
        value = tl.load(image_ptr + camera * 3 * size * size + index, mask=inside, other=0.0)
    else:
        value = load_image(tl.load(address_ptr), tl.load(address_ptr + 1 + camera), index, inside)
    x, y, plane = index % size, index // size % size, index // (size * size)
    row = camera * GRID * GRID + y // PATCH * GRID + x // PATCH
    column = plane * PATCH * PATCH + y % PATCH * PATCH + x % PATCH
    out = out_ptr + row * out_row + column
    rounded = value.to(out_ptr.dtype.element_ty)
    tl.store(out, rounded, mask=inside)
    if SPLIT:
        rest = (value - rounded.to(tl.float32)).to(out_ptr.dtype.element_ty)
        tl.store(out + columns, rest, mask=inside)
        tl.store(out + 2 * columns, rounded, mask=inside)
    parts: tl.constexpr = 3 if SPLIT else 1
    zero = tl.zeros((BLOCK,), out_ptr.dtype.element_ty)
    for behind in tl.static_range(FILL):
        tl.store(out + parts * columns + behind, zero, mask=inside & (column == 0))


@triton.jit
def place_patches_kernel(
    patch_ptr,
    weight_ptr,
    offset_ptr,
    out_ptr,
    rows,
    width,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_previous(OVERLAP)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside, n_inside = row < rows, n < width
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, COLUMNS, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = k < COLUMNS
        x = tl.load(
            patch_ptr + row[:, None] * COLUMNS + k[None, :],
            mask=row_inside[:, None] & inside[None, :],
            other=0.0,
        )
        w = tl.load(
            weight_ptr + n[None, :] * COLUMNS + k[:, None],
            mask=n_inside[None, :] & inside[:, None],
            other=0.0,
        )
        acc = tl.dot(x, w, acc, input_precision="ieee")
    mask = row_inside[:, None] & n_inside[None, :]
    token = row % TOKENS
    acc += tl.load(offset_ptr + token[:, None] * width + n[None, :], mask=mask, other=0.0)
    out = out_ptr + row[:, None].to(tl.int64) * width + n[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)


def embed_patches(
    target: KernelTarget,
    images: CameraImages,
    weight: Tensor,
    offset: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """`Ops.embed_patches`."""
    require_contiguous(weight=weight, offset=offset)
    patches = cut_patches(target, images, weight, len(offset))
    rows, (tokens, width) = len(patches), offset.shape
    split = weight.dtype == torch.bfloat16
    out = torch.empty((rows, width), device=weight.device, dtype=dtype)
    target.launch(
        place_patches_kernel,
        (ceil_div(rows, BLOCK_M), ceil_div(width, BLOCK_N)),
        patches,
        weight,
        offset,
        out,
        rows,
        width,
        COLUMNS=weight.shape[1],
        TOKENS=tokens,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=64 if split else 32,
        num_warps=4,
        num_stages=4,
        **target.overlap_options,
    )
    return out


def cut_patches(target: KernelTarget, images: CameraImages, weight: Tensor, tokens: int) -> Tensor:
    """[V*tokens,C]: rows for a product with the weight [W,C], of its dtype, as `Ops.embed_patches`
    says of the weight's columns."""
    require_contiguous(images=images.tensor)
    cameras, _, size, _ = images.tensor.shape
    stride, grid = weight.shape[1], math.isqrt(tokens)
    patch = size // grid
    split = weight.dtype == torch.bfloat16
    parts = PATCH_PARTS if split else 1
    patches = torch.empty((cameras * tokens, stride), device=weight.device, dtype=weight.dtype)
    target.launch(
        cut_patches_kernel,
        (ceil_div(3 * size * size, PIXELS), cameras),
        images.tensor,
        images.addresses,
        patches,
        stride,
        FILL=stride - parts * 3 * patch * patch,
        GRID=grid,
        PATCH=patch,
        SPLIT=split,
        BLOCK=PIXELS,
        num_warps=4,
        **target.overlap_options,
    )
    return patches

"""Camera image to patches: Pillow's bilinear resize with padding, normalised, and cut."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.resize_taps import PRECISION_BITS, ResizeTaps
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import power_of_2


@triton.jit
def to_8_bits(total, BITS: tl.constexpr):
    return tl.minimum(tl.maximum((total + (1 << (BITS - 1))) >> BITS, 0), 255)


@triton.jit
def image_patches_kernel(
    image_ptr,
    first_x_ptr,
    weights_x_ptr,
    first_y_ptr,
    weights_y_ptr,
    out_ptr,
    height,
    width,
    size,
    out_columns,
    TAPS_X: tl.constexpr,
    TAPS_Y: tl.constexpr,
    PATCH: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """One row of one channel. Black borders have weights of 0 alone."""
    y, channel = tl.program_id(0), tl.program_id(1)
    x = tl.arange(0, BLOCK)
    inside = x < size
    first_x = tl.maximum(tl.load(first_x_ptr + x, mask=inside, other=0), 0)
    first_y = tl.maximum(tl.load(first_y_ptr + y), 0)
    down = tl.zeros((BLOCK,), tl.int32)
    for tap_y in range(TAPS_Y):
        source_y = tl.minimum(first_y + tap_y, height - 1)
        across = tl.zeros((BLOCK,), tl.int32)
        for tap_x in range(TAPS_X):
            source_x = tl.minimum(first_x + tap_x, width - 1)
            pixel_ptr = image_ptr + (source_y * width + source_x) * 3 + channel
            pixel = tl.load(pixel_ptr, mask=inside, other=0).to(tl.int32)
            across += pixel * tl.load(weights_x_ptr + x * TAPS_X + tap_x, mask=inside, other=0)
        down += to_8_bits(across, BITS) * tl.load(weights_y_ptr + y * TAPS_Y + tap_y)
    pixel = to_8_bits(down, BITS).to(tl.float32)
    value = tl.div_rn(pixel, 255.0) * 2.0 - 1.0
    grid = size // PATCH
    row = (y // PATCH) * grid
    column = (channel * PATCH + y % PATCH) * PATCH + x % PATCH
    pointers = out_ptr + (row + x // PATCH) * out_columns + column
    tl.store(pointers, value.to(out_ptr.dtype.element_ty), mask=inside)
    if (channel == 0) & (y % PATCH == 0):
        rest = 3 * PATCH * PATCH + tl.arange(0, BLOCK_REST)
        patch = tl.arange(0, BLOCK)
        mask = (patch < grid)[:, None] & (rest < out_columns)[None, :]
        rest_ptr = out_ptr + (row + patch)[:, None] * out_columns + rest[None, :]
        zero = tl.zeros((BLOCK, BLOCK_REST), tl.float32)
        tl.store(rest_ptr, zero.to(out_ptr.dtype.element_ty), mask=mask)


def image_patches(
    target: KernelTarget, image: Tensor, taps: ResizeTaps, patch: int, out: Tensor
) -> None:
    """`Ops.image_patches`."""
    require_contiguous(image=image, out=out)
    if tuple(image.shape) != (taps.height, taps.width, 3):
        raise ValueError(
            f"wanted an image [{taps.height}, {taps.width}, 3], got {list(image.shape)};"
            " make the taps for its size"
        )
    rest = out.shape[1] - 3 * patch * patch
    target.launch(
        image_patches_kernel,
        (taps.size, 3),
        image,
        taps.first_x,
        taps.weights_x,
        taps.first_y,
        taps.weights_y,
        out,
        taps.height,
        taps.width,
        taps.size,
        out.shape[1],
        TAPS_X=taps.weights_x.shape[1],
        TAPS_Y=taps.weights_y.shape[1],
        PATCH=patch,
        BITS=PRECISION_BITS,
        BLOCK=power_of_2(taps.size),
        BLOCK_REST=power_of_2(max(rest, 1)),
        num_warps=4,
    )

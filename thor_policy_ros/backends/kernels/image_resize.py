"""Camera image to the model's size: Pillow's bilinear resize with padding, to the bit."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from thor_policy_ros.backends.kernels.resize_taps import PRECISION_BITS, ResizeTaps
from thor_policy_ros.backends.kernels.target import KernelTarget, require_contiguous
from thor_policy_ros.backends.kernels.tiles import ceil_div, power_of_2

ROWS_INTERPRETED = 8
"""Of a program; a GPU is busiest with one (an image of 720 rows: 27 us, with 8 73, H200), and
Triton's interpreter takes its time by the program."""


@triton.jit
def to_8_bits(total, BITS: tl.constexpr):
    return tl.minimum(tl.maximum((total + (1 << (BITS - 1))) >> BITS, 0), 255)


@triton.jit(do_not_specialize=["height", "width", "taps_x", "taps_y"])
def resize_image_kernel(
    image_ptr,
    first_x_ptr,
    weights_x_ptr,
    first_y_ptr,
    weights_y_ptr,
    out_ptr,
    height,
    width,
    taps_x,
    taps_y,
    size,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A few rows of one channel. Black borders have weights of 0 alone. Nothing of the image's size
    is compiled in: a camera of another size must not wait for a compiler."""
    channel = tl.program_id(1)
    y = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = tl.arange(0, BLOCK)
    y_inside, x_inside = y < size, x < size
    inside = y_inside[:, None] & x_inside[None, :]
    first_x = tl.maximum(tl.load(first_x_ptr + x, mask=x_inside, other=0), 0)
    first_y = tl.maximum(tl.load(first_y_ptr + y, mask=y_inside, other=0), 0)
    down = tl.zeros((ROWS, BLOCK), tl.int32)
    for tap_y in range(taps_y):
        line_ptr = image_ptr + tl.minimum(first_y + tap_y, height - 1) * width * 3 + channel
        across = tl.zeros((ROWS, BLOCK), tl.int32)
        for tap_x in range(taps_x):
            source_x = tl.minimum(first_x + tap_x, width - 1)
            pixel = tl.load(line_ptr[:, None] + source_x[None, :] * 3, mask=inside, other=0)
            share = tl.load(weights_x_ptr + x * taps_x + tap_x, mask=x_inside, other=0)
            across += pixel.to(tl.int32) * share[None, :]
        share = tl.load(weights_y_ptr + y * taps_y + tap_y, mask=y_inside, other=0)
        down += to_8_bits(across, BITS) * share[:, None]
    out = out_ptr + (channel * size + y)[:, None] * size + x[None, :]
    tl.store(out, to_8_bits(down, BITS).to(tl.uint8), mask=inside)


def resize_image(target: KernelTarget, image: Tensor, taps: ResizeTaps, out: Tensor) -> None:
    """`Ops.resize_image`."""
    require_contiguous(image=image, out=out)
    taps.require_sizes(image, out)
    rows = ROWS_INTERPRETED if target.device.type == "cpu" else 1
    target.launch(
        resize_image_kernel,
        (ceil_div(taps.size, rows), 3),
        image,
        taps.first_x,
        taps.weights_x,
        taps.first_y,
        taps.weights_y,
        out,
        taps.height,
        taps.width,
        taps.weights_x.shape[1],
        taps.weights_y.shape[1],
        taps.size,
        BITS=PRECISION_BITS,
        ROWS=rows,
        BLOCK=power_of_2(taps.size),
        num_warps=8,
    )

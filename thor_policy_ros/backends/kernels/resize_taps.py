"""Pillow's bilinear resize as tables of integer weights, for one image size.

Pillow resizes 8-bit images along x, rounds to 8 bits, then along y: a triangle filter as wide as
the reduction, with weights of 22 fractional bits. The tables are those weights, so that what a GPU
makes of them is the same to the bit. `resize_with_pad`'s black borders are rows without taps.
(Pillow 13 goes along y first where that is less work, which takes an image taller than wide.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PRECISION_BITS = 22
"""32 minus 8 bits of a pixel minus 2 of headroom, as in Pillow's Resample.c."""

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ResizeTaps:
    """Of an image [height,width] that becomes [size,size].

    first_x, first_y: int32[size], first source pixel of each output pixel; -1 outside of the
    picture. weights_x int32[size,taps_x], weights_y int32[size,taps_y]: 22 fractional bits, 0
    beyond a pixel's last tap.
    """

    height: int
    width: int
    size: int
    first_x: Tensor
    weights_x: Tensor
    first_y: Tensor
    weights_y: Tensor

    def require_sizes(self, image: Tensor, out: Tensor) -> None:
        """ValueError unless image [height,width,3] is to become out [3,size,size]."""
        source, target = [self.height, self.width, 3], [3, self.size, self.size]
        if list(image.shape) != source or list(out.shape) != target:
            raise ValueError(
                f"wanted an image {source} and a result {target}, got {list(image.shape)} and"
                f" {list(out.shape)}; make the taps for their sizes"
            )


def resize_taps(height: int, width: int, size: int, device: torch.device | str) -> ResizeTaps:
    """Tables that do what `model.transforms.resize_with_pad` does."""
    ratio = max(width / size, height / size)
    new_width, new_height = max(1, int(width / ratio)), max(1, int(height / ratio))
    x, y = _padded_taps(width, new_width, size), _padded_taps(height, new_height, size)
    tables = (torch.from_numpy(table).to(device) for table in (*x, *y))
    return ResizeTaps(height, width, size, *tables)


@lru_cache(maxsize=32)
def _padded_taps(source: int, target: int, size: int) -> tuple[I32, I32]:
    first, weights = _taps(source, target)
    border = (size - target) // 2
    padded_first = np.full(size, -1, np.int32)
    padded_weights = np.zeros((size, weights.shape[1]), np.int32)
    padded_first[border : border + target] = first
    padded_weights[border : border + target] = weights
    return padded_first, padded_weights


def _taps(source: int, target: int) -> tuple[I32, I32]:
    """Pillow's precompute_coeffs for the triangle filter; an equal size is the identity."""
    if source == target:
        one = np.full((source, 1), 1 << PRECISION_BITS, np.int32)
        return np.arange(source, dtype=np.int32), one
    scale = source / target
    support = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    begin = np.maximum(0, (centre - support + 0.5).astype(np.int64))
    end = np.minimum(source, (centre + support + 0.5).astype(np.int64))
    pixel = begin[:, None] + np.arange(math.ceil(support) * 2 + 1)
    offsets = (pixel - centre[:, None] + 0.5) / support
    triangle = np.where(pixel < end[:, None], np.maximum(0.0, 1.0 - np.abs(offsets)), 0.0)
    share = triangle / triangle.sum(1, keepdims=True)
    weights = np.floor(share * (1 << PRECISION_BITS) + 0.5)
    return begin.astype(np.int32), weights.astype(np.int32)

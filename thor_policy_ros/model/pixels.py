"""What pixels stand for in the model."""

from __future__ import annotations

import numpy as np

from thor_policy_ros.types import F32, U8

PIXEL = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
"""Pixel value -> [-1,1], rounded exactly as `x.astype(float32) / 255 * 2 - 1`."""


def in_model_range(images: U8 | F32) -> F32:
    """Pixels as the model sees them; what is float32 already is returned as it is. ValueError for
    images that were left as they came, in `ModelInputs.frames`."""
    if images.shape[-1] == 0:
        raise ValueError(
            f"wanted images of the model's size, got {list(images.shape)}: this engine does not"
            " resize camera frames; preprocess with `resize=True`"
        )
    return PIXEL[images] if images.dtype == np.uint8 else images.astype(np.float32, copy=False)

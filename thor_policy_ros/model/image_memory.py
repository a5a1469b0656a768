"""Where the images of a frame are made: on a GPU's host in memory that the GPU reads by itself."""

from __future__ import annotations

import numpy as np
import torch

from thor_policy_ros.types import F32


def image_array(shape: tuple[int, ...]) -> F32:
    """f32 without content. Pinned where this process uses CUDA: an engine then fetches images from
    where they were made, and the host copies none (two cameras took it 0.2 ms a frame). Memory that
    was let go is kept for the next frame, by torch.
    """
    if not torch.cuda.is_initialized():
        return np.empty(shape, np.float32)
    made: F32 = torch.empty(shape, pin_memory=True).numpy()
    return made


def is_pinned(images: F32) -> bool:
    """Whether a GPU can fetch these images by itself, row after row."""
    if not (images.flags.c_contiguous and images.flags.writeable and images.dtype == np.float32):
        return False
    return torch.from_numpy(images).is_pinned()

"""Where the images of a frame are made: on a GPU's host in memory that the GPU reads by itself."""

from __future__ import annotations

import numpy as np
import torch

from thor_policy_ros.types import F32, U8


def image_array(shape: tuple[int, ...]) -> U8:
    """u8 without content. Pinned where this process uses CUDA: an engine then fetches images from
    where they were made, and the host copies none (two cameras took it 0.2 ms a frame). Memory that
    was let go is kept for the next frame, by torch.
    """
    if not torch.cuda.is_initialized():
        return np.empty(shape, np.uint8)
    made: U8 = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return made


def pinned_address(images: U8 | F32) -> int | None:
    """Where a GPU can fetch these images by itself, row after row; None where it cannot."""
    if not (images.flags.c_contiguous and images.flags.writeable):
        return None
    if images.dtype not in (np.uint8, np.float32):
        return None
    tensor = torch.from_numpy(images)
    return tensor.data_ptr() if tensor.is_pinned() else None

"""What an error of a GPU engine means, and giving back what it still holds."""

from __future__ import annotations

import sys
import traceback

STICKY_TYPES = ("AcceleratorError",)
STICKY_WORDS = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "cudaError")
MEMORY_TYPES = ("OutOfMemoryError", "MemoryError")
MEMORY_WORDS = ("out of memory", "STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU or the host, as torch, its libraries and TensorRT say it."""
    if type(error).__name__ in MEMORY_TYPES:
        return True
    return any(word in str(error) for word in MEMORY_WORDS)


def needs_new_process(error: BaseException) -> bool:
    """A CUDA error poisons the context of its process for good; memory that ran out does not."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ in STICKY_TYPES or any(w in str(error) for w in STICKY_WORDS)


def forget_frames(error: BaseException) -> None:
    """An error that is kept must not keep what its frames held: a model, a frame's tensors.

    Its type, message and the lines of its traceback stay. So for all that it came from.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        chain += [one.__cause__, one.__context__]


def release_unused_memory() -> None:
    """What torch keeps on GPUs for tensors to come goes back to the driver, for engines outside
    of torch and for other processes. Nothing without a GPU in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

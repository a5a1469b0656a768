"""Which crash wants a new process, and that an error which is kept keeps nothing else."""

from __future__ import annotations

import traceback
import weakref

import pytest
import torch

from thor_policy_ros.runtime.gpu_errors import (
    forget_frames,
    is_out_of_memory,
    needs_new_process,
    release_unused_memory,
)


@pytest.mark.parametrize(
    ("error", "memory", "sticky"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublas"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublas"), False, True),
        (type("AcceleratorError", (RuntimeError,), {})("device-side assert"), False, True),
        (ValueError("a defect"), False, False),
    ],
)
def test_memory_that_ran_out_is_no_poisoned_context(
    error: Exception, memory: bool, sticky: bool
) -> None:
    assert (is_out_of_memory(error), needs_new_process(error)) == (memory, sticky)


def failing(tensors: list[weakref.ref[torch.Tensor]]) -> None:
    mine = torch.zeros(1000)
    tensors.append(weakref.ref(mine))
    raise torch.OutOfMemoryError("CUDA out of memory")


def wrapping(tensors: list[weakref.ref[torch.Tensor]]) -> None:
    mine = torch.zeros(1000)
    tensors.append(weakref.ref(mine))
    try:
        failing(tensors)
    except RuntimeError as error:
        raise RuntimeError("a frame failed") from error


def test_a_kept_error_keeps_its_words_and_no_tensor() -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []
    with pytest.raises(RuntimeError) as caught:
        wrapping(tensors)
    kept = caught.value
    assert all(ref() is not None for ref in tensors), "which is why they are forgotten"
    forget_frames(kept)
    assert [ref() for ref in tensors] == [None, None]
    said = "".join(traceback.format_exception(kept))
    assert "in failing" in said and "CUDA out of memory" in said and "a frame failed" in said


def test_a_chain_that_leads_back_to_itself_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    forget_frames(one)


def test_without_a_gpu_nothing_is_released() -> None:
    release_unused_memory()

"""Where kernels run: a device's limits, scratch memory of one stream, and the launch itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from thor_policy_ros.backends.kernels.capability import DeviceLimits

SCRATCH_FLOATS = 1 << 22
COUNTERS = 4096

Launch = Callable[..., None]
"""(kernel, grid, *arguments, **options of the kernel)."""


def launch_kernel(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """As Triton launches: in the current stream of the current device."""
    kernel[grid](*args, **options)


class KernelTarget:
    """One device and stream. Kernels that share it must not run at the same time.

    launch: replaced where launches are recorded instead of made. overlap: let kernels of a denoise
    step begin before the one in front of them ends (see overlap.py).
    """

    def __init__(
        self,
        device: torch.device,
        limits: DeviceLimits,
        launch: Launch = launch_kernel,
        overlap: bool = False,
    ) -> None:
        if overlap and not limits.can_overlap:
            raise ValueError(
                "overlapping kernels want compute capability 9.0 or later, got"
                f" {limits.capability[0]}.{limits.capability[1]}"
            )
        self._overlap = overlap
        self.device = device
        self.limits = limits
        self.launch = launch
        self._floats = torch.empty(SCRATCH_FLOATS, device=device, dtype=torch.float32)
        self._counters = torch.zeros(COUNTERS, device=device, dtype=torch.int32)

    @property
    def overlap_options(self) -> dict[str, bool]:
        """Options of a kernel that waits for the previous one by itself."""
        return {"OVERLAP": self._overlap, "launch_pdl": self._overlap}

    def partials(self, floats: int) -> Tensor:
        """Scratch for the partial results of one kernel; ValueError where it is too small."""
        if floats > SCRATCH_FLOATS:
            raise ValueError(
                f"a split kernel wants {floats} floats of scratch memory, there are"
                f" {SCRATCH_FLOATS}; choose fewer splits"
            )
        return self._floats

    def arrivals(self, tiles: int) -> Tensor:
        """int32 counters at 0, one for each tile, that a kernel leaves at 0 again."""
        if tiles > COUNTERS:
            raise ValueError(f"a split kernel wants {tiles} counters, there are {COUNTERS}")
        return self._counters


def require_contiguous(**tensors: Tensor | None) -> None:
    """ValueError that names the first tensor which is not contiguous."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f"{name} of shape {list(tensor.shape)} and strides {tensor.stride()} must be"
                " contiguous"
            )


def parts_of(x: Tensor, delta: Tensor | None) -> int:
    """How many parts `delta` has, as [M,W] or [S,M,W] for x [M,W]; ValueError for anything else."""
    if delta is None or delta.shape == x.shape:
        return 1
    if delta.shape[1:] != x.shape:
        raise ValueError(
            f"wanted a delta of {list(x.shape)}, or parts of it, got {list(delta.shape)}"
        )
    return delta.shape[0]


def group_stride(keys: Tensor, values: Tensor) -> int:
    """Elements from one kv head to the next in keys and values [G,R,D], which must agree."""
    wanted = (keys.shape[2], 1)
    if keys.stride() != values.stride() or keys.stride()[1:] != wanted:
        raise ValueError(
            f"keys and values want the same strides and contiguous rows, got {keys.stride()} and"
            f" {values.stride()}"
        )
    return int(keys.stride(0))

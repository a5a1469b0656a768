"""What a GPU must have for the Triton kernels, and the properties their tile sizes follow from.

Compute capability 8.0 (bfloat16 matrix units, asynchronous copies) is the least; E4M3 wants 8.9:
Ada (8.9), Hopper (9.0), Blackwell (10.x and 12.x) and Thor (11.0) have both, Orin (8.7) has no
E4M3. Tiles follow from the shared memory that a block may have, which differs within a
generation (99 KiB on Ada and Blackwell of the 12.x kind, 227 KiB on Hopper and 10.x): never from
a device's name.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass

import torch

LEAST_CAPABILITY = (8, 0)
LEAST_CAPABILITY_FP8 = (8, 9)
LEAST_TRITON = (3, 4)


@dataclass(frozen=True)
class DeviceLimits:
    """capability: (major, minor). shared_memory: bytes a block may have, opted in.
    multiprocessors: how many blocks run at a time if each fills one."""

    capability: tuple[int, int]
    shared_memory: int
    multiprocessors: int

    @property
    def has_fp8(self) -> bool:
        """Whether E4M3 is converted in hardware and multiplied by the matrix units."""
        return self.capability >= LEAST_CAPABILITY_FP8

    @property
    def can_overlap(self) -> bool:
        """Whether a kernel can begin before the previous ends (programmatic dependent launch)."""
        return self.capability >= (9, 0)

    @property
    def multiplies_from_shared_memory(self) -> bool:
        """Whether Triton 3.6 has the matrix units read operands there (wgmma, tcgen05) instead of
        registers; on Thor (11.0) it does not."""
        return self.capability[0] in (9, 10)


INTERPRETED = DeviceLimits(capability=(9, 0), shared_memory=99 * 1024, multiprocessors=4)
"""Of Triton's interpreter on a CPU: small, so that tests go through split sums."""


def limits_of(device: torch.device) -> DeviceLimits:
    """Of a CUDA device, from its properties; of the interpreter where the device is a CPU."""
    if device.type != "cuda":
        return INTERPRETED
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    properties = driver.active.utils.get_device_properties(index)
    return DeviceLimits(
        torch.cuda.get_device_capability(device),
        properties["max_shared_mem"],
        properties["multiprocessor_count"],
    )


def missing_for_triton(device: torch.device, fp8: bool = False) -> tuple[str, ...]:
    """What the kernels lack on `device`, () where they run. fp8: whether E4M3 is wanted."""
    lacks = _missing_package()
    if device.type == "cuda":
        return (*lacks, *_missing_on_gpu(device, fp8))
    if lacks or not _interpreted():
        return (*lacks, f"a CUDA GPU of capability 8.0 or later (device is {str(device)!r})")
    if fp8:
        return ("a CUDA GPU for FP8: Triton's interpreter does not round to E4M3 faithfully",)
    return ()


def _missing_package() -> tuple[str, ...]:
    if importlib.util.find_spec("triton") is None:
        return ("package triton 3.4 or later",)
    version = importlib.metadata.version("triton")
    if tuple(int(x) for x in re.findall(r"\d+", version)[:2]) < LEAST_TRITON:
        return (f"package triton 3.4 or later (here is {version})",)
    return ()


def _missing_on_gpu(device: torch.device, fp8: bool) -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return (f"a CUDA GPU (torch {torch.__version__} sees none)",)
    least = LEAST_CAPABILITY_FP8 if fp8 else LEAST_CAPABILITY
    capability = torch.cuda.get_device_capability(device)
    if capability >= least:
        return ()
    name = torch.cuda.get_device_name(device)
    return (
        f"a GPU of capability {least[0]}.{least[1]} or later"
        f" ({name} has {capability[0]}.{capability[1]})",
    )


def _interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, as TRITON_INTERPRET=1 asks for."""
    import triton

    return bool(triton.knobs.runtime.interpret)

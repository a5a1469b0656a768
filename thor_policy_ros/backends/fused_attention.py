"""Operations of the prefix with attention made for Hopper, where it runs."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

from thor_policy_ros.backends.kernels.capability import limits_of
from thor_policy_ros.backends.kernels.hopper_attention import CAPABILITY, CODES, HopperAttention
from thor_policy_ros.backends.kernels.ops import Ops, create_ops, kernels_can_overlap
from thor_policy_ros.backends.kernels.reference import ReferenceOps

_WHAT = "the prefix's attention on Hopper's matrix instructions"
_LARGEST_ERROR = 0.01
_log = logging.getLogger(__name__)


def attending_ops(device: torch.device) -> tuple[Ops, str]:
    """Operations of a CUDA device, and a note of whose attention is in them, or why not Hopper's,
    which must be right in a trial first."""
    overlap = kernels_can_overlap(device)
    refused = missing(device) or _refused(device)
    if refused:
        return create_ops("triton", device, overlap), f"the prefix's attention by Triton: {refused}"
    from thor_policy_ros.backends.kernels.hopper_ops import HopperOps

    return HopperOps(device, overlap), _WHAT


def missing(device: torch.device) -> str:
    """Why these kernels do not run on a CUDA device, '' where they do."""
    if limits_of(device).capability != CAPABILITY:
        return f"{_WHAT} wants Hopper (9.0)"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        return f"{_WHAT} wants the package cuda-core"
    return ""


@cache
def _refused(device: torch.device) -> str:
    """What went wrong in a trial, '' where nothing did."""
    try:
        error = _trial_error(HopperAttention(device), device)
    except torch.OutOfMemoryError:
        raise  # a load without room is refused as a whole, not made a slower one
    except Exception as problem:  # noqa: BLE001 - whatever compiler or driver refuses, Triton runs
        _log.exception("%s was refused", _WHAT)
        return f"{_WHAT} was refused ({type(problem).__name__}: {problem})"
    return "" if error < _LARGEST_ERROR else f"a trial of {_WHAT} was off by {error:.3g}"


def _trial_error(attention: HopperAttention, device: torch.device) -> float:
    """The largest one of all codes, NaN where any result is."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).bfloat16()

    q, keys, values = random(20, 8, 256), *random(2, 1, 300, 256)
    length = torch.full((1,), 201, device=device, dtype=torch.int32)
    wanted = ReferenceOps().prefix_attention(q.float(), keys.float(), values.float(), length)
    got = [attention.prefix(q, keys, values, length, code=code).float() for code in CODES]
    return float(torch.stack([(x - wanted).norm() / wanted.norm() for x in got]).max())

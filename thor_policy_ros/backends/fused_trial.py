"""Whether kernels that another may stand in for run on a device: what lacks, what a trial said."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

import torch

from thor_policy_ros.backends.kernels.capability import limits_of

HOPPER = (9, 0)
LARGEST_ERROR = 0.01
_log = logging.getLogger(__name__)


def lacking(what: str, device: torch.device) -> str:
    """Why `what` does not run on a CUDA device, '' where it does."""
    if limits_of(device).capability != HOPPER:
        return f"{what}: made for Hopper (9.0)"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        return f"{what}: wants the package cuda-core"
    return ""


def refused(what: str, trial: Callable[[], float]) -> str:
    """What went wrong in a trial of `what`, which gives a relative error; '' where nothing did.

    torch.OutOfMemoryError goes through: a load without room is refused, not made a slower one.
    """
    try:
        error = trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # noqa: BLE001 - whatever compiler or driver refuses, another runs
        _log.exception("%s: refused", what)
        return f"{what}: refused ({type(problem).__name__}: {problem})"
    return "" if error < LARGEST_ERROR else f"a trial of {what} was off by {error:.3g}"

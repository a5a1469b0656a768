"""How far a kernel's result is from float64, by its dtype."""

from __future__ import annotations

import torch
from torch import Tensor

LIMITS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float64: 1e-12}
"""Relative errors: bfloat16 rounds to 2^-9 = 2e-3 at most, on average to half of it."""


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|, norms over everything; NaN where anything is NaN."""
    exact = wanted.double().cpu()
    return float((got.double().cpu() - exact).norm() / exact.norm())


def assert_close(got: Tensor, wanted: Tensor, factor: float = 1.0) -> None:
    """Within what the dtype of `got` rounds to, `factor` times for sums of rounded products."""
    assert got.shape == wanted.shape
    error = relative_error(got, wanted)
    assert error <= factor * LIMITS[got.dtype], error  # also fails for NaN

"""How far computed arrays are from recorded ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thor_policy_ros.evaluation.recorded_arrays import (
    BackendPath,
    FullPath,
    computed_arrays,
    valid_rows,
)
from thor_policy_ros.evaluation.recording import Recording
from thor_policy_ros.model.pi05 import Pi05


@dataclass(frozen=True)
class Row:
    """How one array compares; `within` is false for a NaN and for another shape."""

    name: str
    shape: tuple[int, ...]
    max_abs_error: float
    cosine: float
    within: bool


@torch.inference_mode()
def compare(model: Pi05, recording: Recording, tolerance: float) -> list[Row]:
    """One row for each recorded array, and one more where the backend computes it too."""
    full, backend = FullPath(model, recording), BackendPath(model, recording)
    rows = []
    for name, recorded in sorted(recording.outputs.items()):
        kept = valid_rows(name, recorded, full.pad_mask())
        for label, ours in computed_arrays(name, full, backend):
            rows.append(compare_arrays(label, ours, kept, tolerance))
    return rows


def compare_arrays(name: str, ours: Tensor, recorded: Tensor, tolerance: float) -> Row:
    """Largest absolute error and cosine of two arrays, in float64."""
    shape = tuple(recorded.shape)
    if ours.shape != recorded.shape:
        return Row(f"{name}: ours is {list(ours.shape)}", shape, float("nan"), float("nan"), False)
    a, b = ours.double().cpu().flatten(), recorded.double().flatten()
    error = float((a - b).abs().max())
    cosine = float(torch.dot(a, b) / (a.norm() * b.norm()))
    return Row(name, shape, error, cosine, error <= tolerance)

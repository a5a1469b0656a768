"""The fused engine in FP8: prefix and vision MLPs multiply E4M3, the expert's weights are E4M3.

Each activation is quantised by the kernel that makes it, with a scale from calibration: a scale
measured in each frame would be a pass of its own over what it scales, so without `thor-policy
calibrate` there is no engine. The products around the vision tower's attention, patches, norms,
softmax, the last layer's keys and values, the action projections and the residual streams keep the
precision they have in bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import torch

from thor_policy_ros.backends.fp8_scales import Fp8Scales, read_scales
from thor_policy_ros.backends.fused import FusedBackend, execution_on
from thor_policy_ros.backends.fused_weights import FusedModel, take_weights
from thor_policy_ros.backends.kernels.capability import missing_for_triton
from thor_policy_ros.backends.pytorch import checked_device, checked_dtype
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.types import BackendSpec, BackendUnavailableError


def missing() -> tuple[str, ...]:
    """Triton, and a GPU with FP8."""
    if not torch.cuda.is_available():
        return (f"a CUDA GPU of capability 8.9 or later (torch {torch.__version__} sees none)",)
    return _missing_on(torch.device("cuda"))


def load(
    spec: BackendSpec,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> FusedBackend:
    """See `registry.create_backend`. BackendUnavailableError for a checkpoint that was never
    calibrated, ValueError for a scales file that is not its own."""
    target = checked_device(device)
    lacks = _missing_on(target)
    if checked_dtype(dtype, target) != torch.bfloat16:
        lacks = (*lacks, f"dtype 'bfloat16' (it was asked for {dtype})")
    scales = read_scales(checkpoint, config.language.depth - 1)
    if scales is None or not scales.inputs:
        lacks = (*lacks, f"FP8 scales of {checkpoint}: run `thor-policy calibrate` on it")
    if lacks:
        raise BackendUnavailableError(f"backend {spec.name!r} wants {'; '.join(lacks)}")
    assert scales is not None
    model = quantised(load_pi05(checkpoint, config, target, torch.bfloat16), scales)
    return FusedBackend(
        spec, model, execution_on(target, torch.bfloat16), notes=notes_of(model)
    )  # fmt: skip


def quantised(model: Pi05, scales: Fp8Scales) -> FusedModel:
    """With the calibrated scales; inputs that overflowed them keep their products dense."""
    kept = {
        name: seen.kept
        for name, seen in scales.inputs.items()
        if not seen.overflows and not is_precise(name)
    }
    return take_weights(model, kept)


def is_precise(name: str) -> bool:
    """Products of the vision tower's attention: in FP8 they were two fifths of the whole error of
    the actions (worst cosine of 64 inputs 0.9986 with them, 0.9992 without, pi0.5's sizes, random
    weights, H200), for 0.1 ms."""
    return name.startswith("vision.") and name.endswith(("qkv_proj", "out_proj"))


def notes_of(model: FusedModel) -> tuple[str, ...]:
    """What diagnostics should say of a loaded engine."""
    unfit = [name for name in model.left_dense if not is_precise(name)]
    if not unfit:
        return ()
    return (f"in bfloat16, since they overflow E4M3 or do not fit it: {', '.join(unfit)}",)


def _missing_on(device: torch.device) -> tuple[str, ...]:
    if not hasattr(torch, "_scaled_mm"):
        return (f"package torch 2.6 or later with torch._scaled_mm (here is {torch.__version__})",)
    if device.type != "cuda":
        return (f"a CUDA GPU of capability 8.9 or later (device is {str(device)!r})",)
    return missing_for_triton(device, fp8=True)

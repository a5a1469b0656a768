"""Backend `tensorrt_fp8`: `tensorrt` with gate and up of the prefix's MLPs in FP8.

The networks hold real quantise and dequantise nodes, with our calibrated scales; declaring a
precision would do nothing. Down, attention, vision tower and denoising stay bfloat16, as in
`fp8_mlp`. Vision and denoise engines are those of `tensorrt`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from thor_policy_ros.backends import tensorrt
from thor_policy_ros.backends.fp8_mlp import notes_of
from thor_policy_ros.backends.fp8_scales import Fp8Scales, read_scales
from thor_policy_ros.backends.pytorch import checked_device, checked_dtype
from thor_policy_ros.backends.trt_backend import TensorRTBackend
from thor_policy_ros.backends.trt_engines import present_capability
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.types import BackendSpec, BackendUnavailableError, EngineOptions

LEAST_CAPABILITY = 89


def missing() -> tuple[str, ...]:
    """What `tensorrt` wants, on a GPU that has FP8."""
    present = present_capability()
    return tensorrt.missing() or (lacking_fp8(present) if present else ())


def lacking_fp8(capability: str) -> tuple[str, ...]:
    """() for one that multiplies in FP8, such as 'sm_120'."""
    if int(capability.removeprefix("sm_")) >= LEAST_CAPABILITY:
        return ()
    return (f"a GPU of capability 8.9 or later for FP8 ({capability} has none)",)


def load(
    spec: BackendSpec,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    options: EngineOptions = EngineOptions(),  # noqa: B008 (frozen)
) -> TensorRTBackend:
    """See `tensorrt.load`. BackendUnavailableError for a checkpoint that was never calibrated."""
    target = checked_device(device)
    if target.type == "cuda" and checked_dtype(dtype, target) != torch.bfloat16:
        raise BackendUnavailableError(
            f"backend {spec.name!r} wants dtype 'bfloat16' (it was asked for {dtype})"
        )
    scales = calibration(checkpoint, config)
    absmax, notes = absmax_of(scales), notes_of(scales)
    return tensorrt.load(spec, checkpoint, config, device, dtype, options, absmax, notes)


def calibration(checkpoint: Path | str, config: Pi05Config) -> Fp8Scales:
    """BackendUnavailableError without one, ValueError for one of other weights."""
    scales = read_scales(checkpoint, config.language.depth - 1)
    if scales is None:
        raise BackendUnavailableError(
            f"backend 'tensorrt_fp8' wants FP8 scales of {checkpoint}: run `thor-policy calibrate`"
        )
    return scales


def absmax_of(scales: Fp8Scales) -> tuple[float | None, ...]:
    """Of each MLP's input; None where it overflows E4M3, and that MLP stays bfloat16."""
    return tuple(None if seen.input.overflows else seen.input.kept for seen in scales.layers)

"""The roofline beside what was measured: which peaks a device has, and the floor of a frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thor_policy_ros.evaluation.device_peaks import DEVICES, DevicePeaks, find_device
from thor_policy_ros.evaluation.model_costs import frame_costs
from thor_policy_ros.evaluation.roofline import part_floors, stage_floors_ms
from thor_policy_ros.model.config import Pi05Config

NAMES_HOLD = {"H200": "h200", "Thor": "thor", "Orin": "orin", "4090": "rtx4090", "5090": "rtx5090"}
FORMATS = {"bfloat16": "bf16", "dense": "bf16", "fp8": "fp8", "fp8_hybrid": "fp8"}


def peaks_of(device_name: str, peaks_file: str | None = None) -> DevicePeaks | None:
    """Of a device by what its driver calls it, or those of a file; None where nobody knows."""
    if peaks_file is not None:
        return find_device(peaks_file)
    return next((DEVICES[key] for part, key in NAMES_HOLD.items() if part in device_name), None)


def floors_ms(
    config: Pi05Config,
    counts: Mapping[str, int],
    peaks: DevicePeaks | None,
    dtype: str,
    mlp: str = "dense",
) -> dict[str, float]:
    """By stage, with `frame` for all of them; {} where the peaks or their rate are not known.

    counts: cameras, prompt_tokens, num_steps. mlp: as a `BackendSpec` has it.
    """
    if peaks is None or dtype != "bfloat16":
        return {}
    wanted = FORMATS[mlp]
    if wanted not in peaks.tflops:
        return {}
    names = ("cameras", "prompt_tokens", "num_steps")
    costs = frame_costs(config, *(counts[name] for name in names))
    floors = stage_floors_ms(part_floors(costs, peaks, wanted), costs.num_steps)
    return {**floors, "frame": floors["total"]}


def over_floor(ms: float, floors: Mapping[str, Any], stage: str = "frame") -> str:
    """'2.1x', or '' where the floor is not known."""
    return f"{ms / floors[stage]:.1f}x" if floors.get(stage) else ""

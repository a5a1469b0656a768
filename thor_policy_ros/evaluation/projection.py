"""What a frame should take on a device nobody has measured: by bytes and FLOPs, said as such.

The floor of each number format stands beside figures that others published for the device, and
beside a projection of kernels that were measured elsewhere: of each stage, as many floors as it
took there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.table import Table

from thor_policy_ros.evaluation.device_peaks import DevicePeaks
from thor_policy_ros.evaluation.floors import FORMATS, floors_ms, peaks_of
from thor_policy_ros.evaluation.model_costs import FrameCosts
from thor_policy_ros.evaluation.result_files import figure_table
from thor_policy_ros.evaluation.roofline import part_floors, stage_floors_ms
from thor_policy_ros.model.config import model_config_from_json

STAGES = ("vision", "prefill", "denoise")
ASSUMPTIONS = (
    "a stage takes as many floors as it took where it was measured: kernels fill both devices"
    " alike, although Thor has 20 multiprocessors and an H200 has 132",
    "launches cost nothing: graphs hide them on both (an engine that waits for its launches, such"
    " as eager PyTorch, is projected with its gaps, which are those of another host)",
    "what a cache keeps between two parts is the same share on both",
    "the peaks of the device are those of its row, at the clocks that they are quoted for, and no"
    " other process uses its memory, which CPU and GPU share",
    "published figures are of other software with its own settings; two cameras and 10 steps"
    " where that was said",
)


class Published(NamedTuple):
    """who: the software. dtype: as in DevicePeaks. ms: of a full frame."""

    who: str
    dtype: str
    ms: float
    source: str


PUBLISHED = {
    "thor": (
        Published("FlashRT", "fp8", 38.7, "FlashRT on Jetson AGX Thor, FP8, 2 cameras, 10 steps"),
        Published(
            "FlashRT", "nvfp4", 27.2, "FlashRT on Jetson AGX Thor, NVFP4, 2 cameras, 10 steps"
        ),
        Published("TensorRT", "fp8", 95.0, "TensorRT on Jetson AGX Thor, FP8: 94 to 95"),
        Published("PyTorch", "bf16", 163.0, "PyTorch on Jetson AGX Thor, bfloat16: 163 to 184"),
    )
}


def projection(
    named: str, device: DevicePeaks, costs: FrameCosts, bench: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Floors of a frame by number format, published figures, and the kernels of `bench`, a result
    of `bench latency` on a device whose peaks are known, projected; as plain JSON data."""
    frames = {
        dtype: stage_floors_ms(part_floors(costs, device, dtype), costs.num_steps)["total"]
        for dtype in device.tflops
    }
    return {
        "floor_ms": frames,
        "published": [
            {**row._asdict(), "share_of_roofline": frames[row.dtype] / row.ms}
            for row in PUBLISHED.get(named, ())
        ],
        "projected": [] if bench is None else projected(bench, device),
        "assumptions": list(ASSUMPTIONS),
    }


def projected(bench: Mapping[str, Any], device: DevicePeaks) -> list[dict[str, Any]]:
    """Each backend of a bench result, in bfloat16 or FP8, as it should run on `device`.

    ValueError where the measured device's peaks are not known.
    """
    measured_on = bench["machine"]["device"]
    peaks = peaks_of(measured_on)
    if peaks is None:
        raise ValueError(f"the peaks of {measured_on!r} are not known: nothing to project from")
    config, rows = model_config_from_json(bench["sizes"], "sizes of the bench file"), []
    for entry in bench["backends"]:
        mlp = entry["backend"]["mlp"]
        there = floors_ms(config, bench["settings"], peaks, entry["dtype"], mlp)
        here = floors_ms(config, bench["settings"], device, entry["dtype"], mlp)
        if not there or not here:
            continue
        stages = {stage: entry["stages_ms"][stage]["p50"] for stage in STAGES}
        rows.append(
            {
                "backend": entry["backend"]["name"],
                "dtype": FORMATS[mlp],
                "measured_on": measured_on,
                "measured_ms": sum(stages.values()),
                "projected_ms": sum(stages[s] / there[s] * here[s] for s in STAGES),
                "floor_ms": here["frame"],
            }
        )
    return rows


def projection_table(result: Mapping[str, Any]) -> Table:
    """Who, the format, ms, and the share of the roofline that this is."""
    table = figure_table(("frame of",), ("format", "ms", "of the roofline"))
    for dtype, ms in result["floor_ms"].items():
        table.add_row("floor", dtype, f"{ms:.1f}", "100 %")
    for row in result["published"]:
        share = f"{row['share_of_roofline']:.0%}"
        table.add_row(f"published: {row['who']}", row["dtype"], f"{row['ms']:.1f}", share)
    for row in result["projected"]:
        who = f"projected: {row['backend']} from {row['measured_on']}"
        share = f"{row['floor_ms'] / row['projected_ms']:.0%}"
        table.add_row(who, row["dtype"], f"{row['projected_ms']:.1f}", share)
    return table

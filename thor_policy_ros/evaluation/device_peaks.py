"""What devices can do at most: dense matrix rates and memory bandwidth, with their sources.

Rates without structured sparsity, which pi0.5's weights do not have. Where a device is faster
with a 16-bit accumulator (GeForce), the rate is that of the 32-bit one, which is what is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "nvfp4": 0.5 + 1 / 16}
"""Bytes of one weight; nvfp4 has one FP8 scale for every 16 values."""


@dataclass(frozen=True)
class DevicePeaks:
    """tflops: dense, by number format (a format that is absent is not in the hardware);
    bandwidth_gb_s: device memory; source: where the figures are from."""

    name: str
    tflops: Mapping[str, float]
    bandwidth_gb_s: float
    source: str

    def rate(self, dtype: str) -> float:
        """FLOP/s in `dtype`; ValueError where the device has no such matrix units."""
        if dtype not in self.tflops:
            raise ValueError(
                f"{self.name} has no rate for {dtype!r}; choose one of: {', '.join(self.tflops)}"
            )
        return self.tflops[dtype] * 1e12


DEVICES = {
    "thor": DevicePeaks(
        "Jetson AGX Thor (T5000)",
        {"bf16": 258.5, "fp8": 517.0, "nvfp4": 1035.0},
        273.0,
        "derived from the advertised 2070 TFLOPS of sparse FP4: 1035 dense, and half for each"
        " doubling of bits (20 SM x 8192 bf16 FLOP a clock x 1.57 GHz agrees); 273 GB/s LPDDR5X;"
        " not checked against a data sheet",
    ),
    "orin": DevicePeaks(
        "Jetson AGX Orin 64 GB",
        {"bf16": 42.5},
        204.8,
        "derived from the advertised 170 sparse INT8 TOPS of the GPU: a quarter in dense 16 bit;"
        " no FP8; 204.8 GB/s LPDDR5; not checked against a data sheet",
    ),
    "h200": DevicePeaks(
        "H200 SXM, measured",
        {"bf16": 743.0, "fp8": 1190.0},
        4300.0,
        "measured for this project with large torch matrix products and copies, not data sheet",
    ),
    "rtx4090": DevicePeaks(
        "GeForce RTX 4090",
        {"bf16": 165.2, "fp8": 330.3},
        1008.0,
        "advertised, dense, 32-bit accumulator (FP8 660.6 with 16-bit); seen on third-party pages",
    ),
    "rtx5090": DevicePeaks(
        "GeForce RTX 5090",
        {"bf16": 209.5, "fp8": 419.0, "nvfp4": 1676.0},
        1792.0,
        "advertised bandwidth and bf16; FP8 and FP4 by doubling; not checked against a data sheet",
    ),
}


def find_device(named: str) -> DevicePeaks:
    """A device of the table, or those of a YAML file with the fields of DevicePeaks."""
    if named in DEVICES:
        return DEVICES[named]
    if not Path(named).is_file():
        raise ValueError(
            f"unknown device {named!r}; choose one of: {', '.join(DEVICES)}, or give a YAML file"
            " with name, tflops (bf16, fp8, nvfp4), bandwidth_gb_s and source"
        )
    return _from_yaml(yaml.safe_load(Path(named).read_text()), named)


def _from_yaml(data: Any, where: str) -> DevicePeaks:
    wanted = {"name", "tflops", "bandwidth_gb_s", "source"}
    if not isinstance(data, Mapping) or set(data) != wanted:
        got = sorted(data) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"{where}: wanted exactly {sorted(wanted)}, got {got}")
    rates = data["tflops"]
    if not isinstance(rates, Mapping) or "bf16" not in rates or set(rates) - set(WEIGHT_BYTES):
        raise ValueError(f"{where}: tflops wants bf16, and may have fp8 and nvfp4; got {rates!r}")
    figures = [*rates.values(), data["bandwidth_gb_s"]]
    if not all(isinstance(x, int | float) and x > 0 for x in figures):
        raise ValueError(f"{where}: rates and bandwidth want positive numbers, got {figures}")
    tflops = {str(k): float(v) for k, v in rates.items()}
    bandwidth = float(data["bandwidth_gb_s"])
    return DevicePeaks(str(data["name"]), tflops, bandwidth, str(data["source"]))

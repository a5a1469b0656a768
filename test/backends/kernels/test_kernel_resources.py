"""Kernels are compiled for GPUs that are not here: they fit, and keep their values in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CASES = ["expert_qkv", "gated_linear_down", "suffix_attention", "euler_step"]


@pytest.mark.parametrize("arch", ["90", "120"])
def test_kernels_of_a_denoise_step(arch: str, tmp_path: Path) -> None:
    out = tmp_path / "resources.json"
    script = str(ROOT / "benchmarks" / "kernel_resources.py")
    command = [sys.executable, script, "--arch", arch, "--case", *CASES, "--out", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(out.read_text())["kernels"]
    assert {r["case"] for r in records} == {
        *CASES,
        "expert_qkv_fp8",
        "gated_linear_down_fp8",
    }
    assert all(r["spill_store_bytes"] == 0 and 16 < r["registers"] <= 255 for r in records)
    products = [r for r in records if r["kernel"] != "euler_step_kernel"]
    assert all(r["instructions"]["HMMA"] and r["instructions"]["LDGSTS"] for r in products)

"""Kernels are compiled for GPUs that are not here: they fit, and keep their values in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CASES = ["gated_linear_down", "suffix_attention", "euler_step"]


def _records(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    out = tmp_path / "resources.json"
    script = str(ROOT / "benchmarks" / "kernel_resources.py")
    command = [sys.executable, script, "--case", *CASES, "--out", str(out), *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records: list[dict[str, Any]] = json.loads(out.read_text())["kernels"]
    return records


@pytest.mark.parametrize("arch", ["90", "120"])
def test_kernels_of_a_denoise_step(arch: str, tmp_path: Path) -> None:
    records = _records(tmp_path, "--arch", arch)
    assert {r["case"] for r in records} == {*CASES, "gated_linear_down_fp8"}
    assert all(r["spill_store_bytes"] == 0 and 16 < r["registers"] <= 255 for r in records)
    products = [r for r in records if r["kernel"] != "euler_step_kernel"]
    assert all(r["instructions"]["HMMA"] for r in products)


def test_overlapping_kernels_write_nothing_before_the_previous_one_is_done(tmp_path: Path) -> None:
    records = _records(tmp_path, "--arch", "90", "--overlap")
    assert len(records) == 4
    assert all(r["waits_first"] for r in records)

"""benchmarks/torch_trt_on_cuda.py: a stage that fails is recorded, and the next one begins."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "torch_trt_on_cuda.py"


@pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is not None, reason="torch_tensorrt is installed"
)
def test_what_is_missing_is_in_the_results(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), "--sizes", "none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "failed: import" in done.stdout
    found = json.loads(out.read_text())["stages"]["import"]
    assert found["status"] == "failed" and found["exit"] == 1
    assert "No module named 'torch_tensorrt'" in found["said"][-1]


def test_a_stage_without_time_is_skipped_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--sizes", "toy", "--budget", "0"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    stages = json.loads(out.read_text())["stages"]
    assert {s["status"] for s in stages.values()} == {"skipped"}
    assert list(stages) == [
        "import",
        *(
            f"{stage} toy {part} bfloat16"
            for part in ("vision", "prefix", "denoise")
            for stage in ("graph", "engine")
        ),
        "own toy denoise bfloat16",
        "backend toy bfloat16",
    ]


def test_dry_runs_are_read_as_the_partitioner_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    stages = importlib.import_module("torch_trt_stages")
    text = """
The graph consists of 205 Total Operators, of which 205 operators are supported, 100.0% coverage
   Inputs: List[Tensor: (1, 96, 64)@bfloat16]
    TRT Engine #1 - Submodule name: _run_on_acc_0
"""
    facts = stages.dry_run_facts(text)
    assert facts["engines"] == 1 and "205 operators are supported" in facts["coverage"]

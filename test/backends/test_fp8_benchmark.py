"""The FP8 benchmark runs from end to end, at toy size with emulated products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_its_rehearsal_passes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fp8_on_cuda.py"), "--rehearse"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out.json").read_text())
    assert set(results["backends"]["engines"]) == {"pytorch", "fp8_mlp_freq1", "fp8_mlp_dynamic"}
    assert all(results["pipelined"]["equal"].values())

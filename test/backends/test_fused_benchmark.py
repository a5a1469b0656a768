"""The benchmark of the fused engine, rehearsed at toy size: every section gives its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_rehearsal_fills_the_table_and_a_broken_section_is_recorded(tmp_path: Path) -> None:
    out = tmp_path / "fused.json"
    script = str(ROOT / "benchmarks" / "fused_on_cuda.py")
    # precision comes before its weights
    sections = "precision,toy,weights,reference,frames,cameras,table"
    command = [sys.executable, script, "--rehearse", "--frames", "4"]
    command += ["--out", str(out), "--sections", sections]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, "a section failed"
    found = json.loads(out.read_text())["sections"]
    assert "reference.npy" in found.pop("precision")["said"]
    assert not [name for name, section in found.items() if "error" in section]
    assert found["toy"]["within_2e-4"] and found["toy"]["pipelined_equal"]
    engines = {"pytorch", "torch_graphs", "fused_serial", "fused_single", "fused", "fused_fp8"}
    assert set(found["frames"]) == engines
    assert all("p50" in engine["ms"]["one step"] for engine in found["frames"].values())
    assert found["cameras"]["ms"]["2 of 480x640"]["pillow, frame"]["p50"] > 0
    rows = {(row["engine"], row["kind"]): row for row in found["table"]["rows"]}
    assert rows["fused", "full, 10 steps"]["measured"] > 0
    assert rows["fused", "worst cosine"]["measured"] is None
    assert rows["fused", "worst cosine"]["met"] is False

"""benchmarks/load_on_cuda.py runs on a CPU with a toy, so that the GPU's run is not its first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.toy_checkpoint import TINY

from thor_policy_ros.model.config import to_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_section_that_fails_is_recorded_and_the_others_are_measured(tmp_path: Path) -> None:
    config, out, folder = (tmp_path / name for name in ("tiny.json", "out.json", "made"))
    config.write_text(json.dumps(to_json(TINY)))
    (folder / "lerobot").mkdir(parents=True)
    (folder / "lerobot" / "model.safetensors").write_bytes(b"broken")
    options = {"device": "cpu", "config": config, "out": out, "folder": folder}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "benchmarks/load_on_cuda.py", *words, "--frames", "2", "--rounds", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(out.read_text())
    failed = {name for name, section in found.items() if "error" in section}
    assert failed == {"load lerobot, round 1"}
    assert list(found["loads"]) == ["openpi", "merged", "merged, FP8 as stored"]
    assert "cannot read" in found["load lerobot, round 1"]["error"]
    for layout in ("openpi", "merged", "merged, FP8 as stored"):
        assert found[f"load {layout}, round 1"]["seconds"] > 0
    assert list(found["batches"]) == ["1", "2", "4", "8"]
    assert not folder.exists()

"""The benchmark of the kernels runs from end to end with the reference; its search for tiles."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[3]


def _sweep() -> ModuleType:
    path = ROOT / "benchmarks" / "kernel_sweep.py"
    spec = importlib.util.spec_from_file_location("kernel_sweep", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_sweep"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Pair:
    a: int
    b: int


AXES = {"a": (1, 2, 3, 4), "b": (10, 20, 30)}


def _bowl(pair: Pair) -> float:
    if pair.b == 30:
        raise MemoryError("does not fit")
    return (pair.a - 3) ** 2 + pair.b / 10


def test_its_rehearsal_passes(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "kernels_on_cuda.py")
    done = subprocess.run(
        [sys.executable, script, "--rehearse", "--out", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out.json").read_text())
    assert set(results["correctness"]) == set(results["speed"])
    assert len(results["speed"]) == 4
    assert results["step"]["bf16"]["ok"] and results["step"]["fp8"]["ok"]


def test_the_search_finds_the_best_of_a_bowl_and_records_what_failed() -> None:
    found = _sweep().descend(Pair(1, 20), AXES, _bowl, seconds=60)
    assert found.best == {"a": 3, "b": 10} and found.best_ms == 1
    assert not found.ran_out_of_time
    assert next(x for x in found.tried if "error" in x)["error"] == "MemoryError: does not fit"
    assert len({tuple(x[k] for k in "ab") for x in found.tried}) == len(found.tried)


def test_the_search_ends_in_time_with_the_best_so_far() -> None:
    times = iter(range(100))
    found = _sweep().descend(Pair(1, 20), AXES, _bowl, seconds=2, clock=lambda: next(times))
    assert found.ran_out_of_time
    assert found.best == {"a": 3, "b": 20}
    assert len(found.tried) == 3

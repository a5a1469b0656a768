"""The checks for a GPU machine, rehearsed on a CPU: what they record, and what they survive."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
CRASH = """
import sys
from importlib.abc import MetaPathFinder

class Crashes(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "thor_policy_ros.backends.fused":
            sys.stderr.write("illegal memory access\\n")
            sys.stderr.flush()
            import os
            os._exit(134)

if any('"section": "demo"' in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Crashes())
"""

BARE = """
import importlib.util
import sys
from importlib.abc import MetaPathFinder

ABSENT = ("mujoco", "rclpy", "diagnostic_msgs", "rcl_interfaces", "pytest", "matplotlib")

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ABSENT else found(name, *more)
"""


def checks(out: Path, *options: str, path: str = "") -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_checks.py"), "--out", str(out)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--toy", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT))))},
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(out.read_text())


@pytest.mark.slow
def test_a_rehearsal_verifies_and_switches_every_engine(tmp_path: Path) -> None:
    status, results = checks(tmp_path / "out.json", "--sections", "demo,soak")
    assert (status, results["faults"]) == (0, [])
    facts = results["sections"]["facts"]["all"]
    assert facts["engines"][0] == "pytorch" and "pytorch_pipelined" in facts["engines"]
    demo = results["sections"]["demo"]
    assert list(demo) == facts["engines"]
    assert all(found["ok"] and found["frame_ms_p50"] > 0 for found in demo.values())
    soak = results["sections"]["soak"]["all"]
    assert soak["switches"] == soak["wanted"] == 8 and soak["unverified"] == 0
    assert set(soak["frames"]) == set(facts["backends"]), "frames of each"
    assert soak["refused"] == soak["failures"] == []


def test_memory_that_runs_out_refuses_the_second_backend_alone(tmp_path: Path) -> None:
    status, results = checks(tmp_path / "out.json", "--sections", "exhausted")
    assert (status, results["faults"]) == (0, [])
    found = results["sections"]["exhausted"]["all"]
    assert list(found["loads"]) == ["pytorch_pipelined", "fused_freq1"]
    for load in found["loads"].values():
        assert load["error"].startswith("OutOfMemoryError: CUDA out of memory")
        assert load["bit_equal"] and load["frames_meanwhile"] > 0
    assert found["frame"]["error"].startswith("OutOfMemoryError")
    assert found["frame"]["bit_equal_with_memory_back"]
    assert set(found["loads_afterwards"].values()) == {"verified"}


def test_the_memory_of_a_frame_is_not_taken_for_the_refused_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    exhausted = importlib.import_module("gpu_exhausted")
    served, under_way, met = exhausted.Frames.on_tick, threading.Event(), []

    def on_tick(self: Any, tick: Any) -> None:
        under_way.set()
        try:
            served(self, tick)
        finally:
            under_way.clear()

    def memory(device: torch.device) -> dict[str, float]:
        if threading.current_thread() is threading.main_thread():
            under_way.wait(1.0)  # one soon begins, if frames are made at all
        met.append(under_way.is_set())
        return {}

    monkeypatch.setattr(exhausted.Frames, "on_tick", on_tick)
    monkeypatch.setattr(exhausted, "memory_values", memory)
    found = exhausted.exhausted(ROOT / "checkpoints/demo", ["pytorch", "fused_freq1"], "cpu", None)
    assert found["faults"] == []
    assert len(met) == 3 and not any(met), "before the first engine, before a load, after it"


@pytest.mark.slow
def test_an_engine_that_ends_its_process_is_recorded_and_the_next_one_tried(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    options = ("--sections", "demo")
    status, results = checks(tmp_path / "out.json", *options, path=str(tmp_path))
    demo = results["sections"]["demo"]
    assert status == 1 and demo["pytorch"]["ok"] and demo["pytorch_pipelined"]["ok"]
    for name in ("fused_freq1", "fused_pipelined"):
        assert demo[name]["error"] == "its process ended with status 134"
        assert "illegal memory access" in demo[name]["said"]
    assert len(results["faults"]) == 2


def test_what_there_was_no_time_for_is_said(tmp_path: Path) -> None:
    status, results = checks(tmp_path / "out.json", "--sections", "soak", "--budget", "1")
    assert status == 1
    assert "out of time" in results["sections"]["facts"]["all"]["error"]
    assert results["sections"]["soak"]["all"] == {"error": "no time was left for it"}


@pytest.mark.slow
def test_a_machine_without_ros_simulator_and_pytest_does_the_rest(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    options = ("--sections", "demo,success,tests")
    status, results = checks(tmp_path / "out.json", *options, path=str(tmp_path))
    assert (status, results["faults"]) == (0, [])
    sections = results["sections"]
    assert all(found["ok"] for found in sections["demo"].values())
    skipped = {"skipped": "package mujoco is not installed"}
    assert sections["success"] == dict.fromkeys(sections["demo"], skipped)
    assert sections["tests"]["all"] == {"skipped": "package pytest is not installed"}

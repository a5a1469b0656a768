"""The node's own cost: what the figures are made of, and a short run with real nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from thor_policy_ros.ros.node_cost import CostRecord, faults


def record(own: float, growth: float) -> CostRecord:
    rss = [100_000_000] * 10 + [int(100_000_000 * (1 + growth))] * 10
    return CostRecord([own] * 50, [8.0] * 50, [1.0] * 50, [0.5] * 50, rss)


def test_camera_in_to_chunk_out_is_own_and_both_ways() -> None:
    figures = record(1.5, 0.0).figures()
    assert figures["own_ms"]["p50"] == pytest.approx(1.5)
    assert figures["all_ms"]["p99"] == pytest.approx(3.0)
    assert figures["rss_growth"] == pytest.approx(0.0)
    assert faults(figures, 0.01) == []


def test_a_slow_node_and_growing_memory_are_faults() -> None:
    slow = faults(record(2.5, 0.0).figures(), 0.01)
    assert slow == ["own p50 is 2.50 ms, wanted below 2"]
    assert len(faults(record(6.0, 0.0).figures(), 0.01)) == 2
    grown = faults(record(1.0, 0.05).figures(), 0.01)
    assert grown == ["memory grew by 5.0%, wanted at most 1.0%"]


@pytest.mark.node
@pytest.mark.slow
def test_it_measures_running_nodes(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    command = [sys.executable, "-m", "thor_policy_ros.ros.node_cost", "--seconds", "3"]
    command += ["--backend", "fused_freq1", "--out", str(tmp_path), "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert path.is_file(), done.stderr[-2000:]
    result = json.loads(path.read_text())
    assert result["frames"] >= 10 and result["model_ms"]["p50"] > 0
    assert 0 < result["own_ms"]["p50"] <= result["all_ms"]["p50"]
    assert result["rss_last_mb"] > 50
    assert done.returncode == int(bool(result["faults"]))

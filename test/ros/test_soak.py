"""The soak's verdict, and ten switches under load with real nodes in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from rclpy.exceptions import InvalidHandle

from thor_policy_ros.ros import soak
from thor_policy_ros.ros.node_processes import NodeProcesses
from thor_policy_ros.ros.soak_record import SoakRecord


def good() -> SoakRecord:
    record = SoakRecord(verified={"a": 0.0, "b": 50.0}, rss=[100, 110, 110, 110, 111] * 4)
    for tick in range(100):
        now_s = tick * 0.1
        record.add_chunk("a", now_s, now_s + 0.9)
        record.add_command(now_s)
    return record


def test_a_good_record_has_no_faults() -> None:
    record = good()
    assert record.faults(0.0) == []
    assert record.summary()["chunks"] == {"a": 100} and record.summary()["hold_s"]["max"] == 0.0


def test_each_fault_is_named() -> None:
    record = good()
    record.add_chunk("b", 10.0, 10.9)
    assert record.faults(0.0) == ["1 chunks were not verified"]
    record = good()
    record.add_chunk("a", 12.0, 12.9)
    assert record.faults(0.0) == ["the executor held for 1.20 s"] and record.faults(1.3) == []
    record = good()
    record.add_command(10.9)
    assert record.faults(0.0) == ["no command for 1.000 s"]
    record = good()
    record.rss = [100] * 10 + [120] * 10
    assert record.faults(0.0) == ["memory grew by 20.0%"]
    record = good()
    record.set_calls_ms = [3.0] * 98 + [80.0] * 2
    assert record.faults(0.0) == ["a set call took 80 ms (p99)"]
    record = good()
    for mb in (9.0, 5000.0, 5000.0, 6000.0, 6000.0):
        record.gpu.add("a", {"gpu_used_mb": mb})
    assert record.faults(0.0) == ["gpu_used_mb of a grew from 5000 to 6000"]
    record = good()
    record.failures.append("refused")
    assert "refused" in record.faults(0.0)[0]


def test_missed_ticks_are_compared_with_those_before_and_survive_a_new_process() -> None:
    record = good()
    record.ticks_before = [(0.0, 0), (1.0, 98), (2.0, 197)]
    record.ticks = [(3.0, 300), (4.0, 398), (5.0, 20), (6.0, 118)]
    assert record.missed_share(record.ticks) == pytest.approx(0.02)
    assert record.faults(0.0) == []
    record.ticks = [(3.0, 300), (4.0, 350)]
    assert record.faults(0.0) == ["the executor missed 50.0% of its ticks"]


def test_gaps_at_an_episodes_end_are_the_robots_own() -> None:
    record = good()
    record.episode_ended(10.0)
    record.add_chunk("a", 11.9, 12.8)
    record.add_command(11.9)
    assert record.faults(0.0) == []


def test_what_ends_a_soak_early_is_told_and_its_node_is_ended(tmp_path: Path) -> None:
    old = tmp_path / "reports" / "verification_a.json"
    old.parent.mkdir()
    old.write_text("{}")
    node = soak.SoakNode(SoakRecord(), old.parent)

    def work(processes: NodeProcesses) -> None:
        assert not old.exists(), "it would pass for a report of this run"
        node.wait(lambda: False, "the end of days", 0.0)

    found = soak.run_beside(node, tmp_path, [], work)
    assert found == ["waited 0 s for the end of days; "]
    with pytest.raises(InvalidHandle):
        node.get_name()


@pytest.mark.node
def test_ten_switches_under_load(arm_checkpoint: Path, tmp_path: Path) -> None:
    arguments = soak.parse_arguments(
        ["--switches", "10", "--out", str(tmp_path), "--checkpoint", str(arm_checkpoint)]
    )
    record = soak.run_nodes(arguments)
    assert record.failures == [] and len(record.switch_s) == 10
    assert record.unverified_chunks == 0
    assert set(record.chunks) == set(soak.available_backends()), "all take part"
    assert max(record.hold_s) == 0.0
    assert record.gpu.summary() == {}, "the demo runs on the CPU"

"""Memory: in the diagnostics, as what decides on a pause, and in the verdict of a soak."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from thor_policy_ros.ros import live_switch, memory_use
from thor_policy_ros.ros.memory_use import memory_values, nvml_process_bytes, rss_bytes
from thor_policy_ros.ros.soak_memory import GpuMemory
from thor_policy_ros.runtime.backend_switch import fits_beside

GPU = torch.device("cuda")
GB = 10**9


class FakeCuda:
    """A GPU of 10 GB of which torch holds `reserved` and uses `allocated`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, used: int):
        for name, value in (
            ("mem_get_info", (free, 10 * GB)),
            ("memory_reserved", reserved),
            ("memory_allocated", used),
        ):
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


def test_on_a_cpu_the_process_is_told_and_two_engines_fit() -> None:
    values = memory_values(torch.device("cpu"))
    assert set(values) == {"host_rss_mb"} == set(memory_values(None))
    assert 10 < float(str(values["host_rss_mb"])) < 50_000
    assert fits_beside(*live_switch.device_memory(torch.device("cpu")))
    assert fits_beside(*live_switch.device_memory(None))


def test_a_process_that_is_gone_takes_nothing_that_is_known() -> None:
    assert rss_bytes(os.getpid()) is not None and rss_bytes(2**30) is None


def test_on_a_gpu_tensors_reserve_and_the_whole_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, free=4 * GB, reserved=3 * GB, used=2 * GB)
    values = memory_values(GPU)
    del values["host_rss_mb"]
    assert values == {
        "gpu_allocated_mb": 2000.0,
        "gpu_reserved_mb": 3000.0,
        "gpu_used_mb": 6000.0,
    }


@pytest.mark.parametrize(
    ("free", "reserved", "used", "fits"),
    [
        (8 * GB, 2 * GB, 2 * GB, True),
        (2 * GB, 8 * GB, 7 * GB, False),
        # What torch keeps without using it is room too.
        (1 * GB, 8 * GB, 4 * GB, True),
        (int(2.4 * GB), 2 * GB, 2 * GB, False),
        (int(2.5 * GB), 2 * GB, 2 * GB, True),
    ],
)
def test_free_memory_decides_between_beside_and_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, used: int, fits: bool
) -> None:
    FakeCuda(monkeypatch, free, reserved, used)
    assert fits_beside(*live_switch.device_memory(GPU)) is fits


class FakeNvml:
    """The driver's library, with a process of 3 GB on the second of two GPUs."""

    class NVMLError(Exception): ...

    def __init__(self, fails: str = "") -> None:
        self.fails, self.opened = fails, 0

    def nvmlInit(self) -> None:
        self._maybe("nvmlInit")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._maybe("nvmlDeviceGetCount")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, index: int) -> list[Any]:
        return [SimpleNamespace(pid=7, usedGpuMemory=3 * GB)] if index else []

    def _maybe(self, name: str) -> None:
        if name == self.fails:
            raise self.NVMLError(name)


def test_the_drivers_count_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for fails, found in (("", 3 * GB), ("nvmlInit", None), ("nvmlDeviceGetCount", None)):
        nvml = FakeNvml(fails)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        assert nvml_process_bytes(7) == found and nvml.opened == 0
        assert nvml_process_bytes(8) is None, "not seen by the driver"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_process_bytes(7) is None
    assert memory_use.MB == 1e6


def soaked(late_mb: float) -> GpuMemory:
    """Two backends in turn, eight times; the second one later takes `late_mb`."""
    memory = GpuMemory()
    for turn in range(8):
        memory.add("a", {"gpu_allocated_mb": 7000.0, "gpu_process_mb": None, "other": 1.0})
        left_over = 7000.0 if turn % 2 else 0.0  # the other engine was still being closed
        mb = 5000.0 if turn < 4 else late_mb
        memory.add("b", {"gpu_allocated_mb": mb + left_over})
    return memory


def test_memory_that_stays_is_no_fault_and_growth_is_named() -> None:
    fine = soaked(5000.0)
    assert fine.faults() == []
    (kind,) = fine.summary()
    assert kind == "gpu_allocated_mb" and fine.summary()[kind]["max"] == 12_000.0
    assert fine.summary()[kind]["earlier_and_later"] == {"a": [7000, 7000], "b": [5000, 5000]}
    assert soaked(5050.0).faults() == [], "a workspace"
    assert soaked(5600.0).faults() == ["gpu_allocated_mb of b grew from 5000 to 5600"]


def test_a_backend_seen_too_seldom_says_nothing() -> None:
    memory = GpuMemory()
    for mb in (1.0, 1000.0, 9000.0):
        memory.add("a", {"gpu_reserved_mb": mb})
    assert memory.growth_mb("gpu_reserved_mb") == {} and memory.faults() == []
    assert GpuMemory().summary() == {}

"""One status for each camera, the state, the instruction; GPU figures; the aggregator's groups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import thor_policy_ros
from thor_policy_ros.ros.diagnostics import ERROR, OK, STALE, WARN, Report
from thor_policy_ros.ros.frame_loop import FrameCounts, FrameStatistics
from thor_policy_ros.ros.gpu_health import GpuHealth
from thor_policy_ros.ros.inputs import Camera, InputRecord
from thor_policy_ros.ros.parameter_tables import POLICY
from thor_policy_ros.ros.policy_health import PolicyHealth
from thor_policy_ros.runtime.latency import Quantiles, RateMeter
from thor_policy_ros.runtime.latest_frames import LatestFrames, NotReady

AGGREGATOR = (
    Path(thor_policy_ros.__file__).resolve().parents[1]
    / "config/viewers/diagnostic_aggregator.yaml"
)
CAMERA = Camera("base", "/cam/image_raw", "base_0_rgb")


def parameters(**changes: Any) -> dict[str, Any]:
    return {**{row.name: row.default for row in POLICY}, "joint_names": ("a",), **changes}


def statistics(**changes: Any) -> FrameStatistics:
    fields: dict[str, Any] = {
        "counts": FrameCounts(ticks=20, chunks=20),
        "quantiles_ms": {"total": Quantiles(10.0, 20.0, 30.0, 20)},
        "chunk_rate_hz": 10.0,
        "chunk_age_s": 0.05,
        "miss_ratio": 0.0,
        "not_ready": (),
        "refusal": "",
        "prompt": "pick up the red cube",
    }
    return FrameStatistics(**{**fields, **changes})


class Inputs:
    """A camera at `rate_hz` up to t = 5 s, and joint states at 100 Hz."""

    def __init__(self, rate_hz: float = 30.0) -> None:
        self.frames = LatestFrames(["base_0_rgb"], 1, max_age_s=0.2, max_skew_s=0.1)
        self.records = {
            "base_0_rgb": InputRecord("/cam/image_raw", "base_0_rgb", RateMeter(5.0)),
            "state": InputRecord("/joint_states", "state", RateMeter(5.0)),
        }
        for name, hz in (("base_0_rgb", rate_hz), ("state", 100.0)):
            record = self.records[name]
            for stamp_s in np.arange(0.0, 5.0 + 1e-9, 1.0 / hz):
                record.rate.tick(float(stamp_s))
                record.received += 1
        self.frames.put_image("base_0_rgb", np.zeros((2, 2, 3), np.uint8), 5.0)
        self.frames.put_state(np.zeros(1, np.float32), 5.0)

    def reports(
        self, health: PolicyHealth, now_s: float = 5.0, **changes: Any
    ) -> dict[str, Report]:
        active = changes.pop("active", True)
        found = health.input_reports(
            [CAMERA], self.records, self.frames, statistics(**changes), now_s, active
        )
        return {report.task: report for report in found}


def test_every_input_has_a_status_of_its_own() -> None:
    found = Inputs().reports(PolicyHealth(parameters()))
    assert {task: report.level for task, report in found.items()} == {
        "camera base": OK,
        "state": OK,
        "instruction": OK,
    }
    camera = found["camera base"].values
    assert camera["rate_hz"] == pytest.approx(30, rel=0.02)
    assert (camera["age_s"], camera["dropped"]) == (0.0, 0)
    assert found["instruction"].values["text"] == "pick up the red cube"


def test_an_input_in_the_way_is_an_error_of_its_own_status_alone() -> None:
    reason = "base_0_rgb: stale, 0.500 s old (at most 0.2 s)"
    found = Inputs().reports(PolicyHealth(parameters()), 5.5, not_ready=(reason,))
    assert found["camera base"].level == ERROR
    assert found["camera base"].message == "stale, 0.500 s old (at most 0.2 s) (/cam/image_raw)"
    assert found["state"].level != ERROR
    missing = Inputs().reports(PolicyHealth(parameters()), not_ready=("prompt: missing, none",))
    assert (
        missing["instruction"].level == ERROR
        and "topic instruction" in missing["instruction"].message
    )
    assert Inputs().reports(PolicyHealth(parameters()), prompt="")["instruction"].level == WARN


def test_a_slow_camera_warns_before_a_frame_is_lost_and_not_in_the_band() -> None:
    health = PolicyHealth(parameters(control_rate_hz=10.0))
    levels = [Inputs(rate).reports(health)["camera base"].level for rate in (8.5, 7.5, 8.5, 9.5)]
    assert levels == [OK, WARN, WARN, OK]
    live = {"input_rate_warn_ratio": 0.5, "diagnostics_hysteresis": 0.0}
    assert Inputs(7.5).reports(PolicyHealth(parameters(**live)))["camera base"].level == OK


def test_an_input_that_grows_old_warns() -> None:
    health = PolicyHealth(parameters())
    found = Inputs().reports(health, 5.17)
    assert found["camera base"].level == found["state"].level == WARN
    assert "0.170 s old (above 0.16 s)" in found["camera base"].message


def test_refused_messages_name_their_status() -> None:
    inputs = Inputs()
    inputs.records["state"].refusing = True
    inputs.records["state"].last_refusal = "JointState lacks a"
    found = inputs.reports(PolicyHealth(parameters()))
    assert (found["state"].level, found["camera base"].level) == (ERROR, OK)


def test_nothing_is_judged_while_inactive_or_unconfigured() -> None:
    assert {
        r.level for r in Inputs().reports(PolicyHealth(parameters()), active=False).values()
    } == {STALE}
    found = PolicyHealth(parameters(joint_names=())).input_reports(
        [CAMERA], {}, None, None, 0.0, False
    )
    assert [(r.task, r.level) for r in found] == [("camera base", STALE), ("instruction", STALE)]


class NVMLError(Exception):
    pass


class FakeNvml:
    """As much of pynvml as is asked; a Jetson's does not tell power."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = NVML_CLOCK_SM = 0

    def __init__(self, temperature: float = 60.0, used: int = 50) -> None:
        self.temperature, self.used = temperature, used

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid.startswith("GPU-"):
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"GPU-{index}"

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> float:
        return self.temperature

    def nvmlDeviceGetPowerUsage(self, handle: str) -> float:
        raise NVMLError("Not Supported")

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return 1500

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=40)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=self.used, total=100)


def test_a_gpu_tells_what_it_can() -> None:
    values = GpuHealth("GPU-1", FakeNvml()).values()
    assert values == {
        "gpu_temperature_c": 60.0,
        "gpu_clock_mhz": 1500.0,
        "gpu_utilisation": 0.4,
        "gpu_memory_used_ratio": 0.5,
    }
    nobody = GpuHealth("MIG-1", FakeNvml())
    assert (nobody.values(), nobody.missing) == ({}, "NVML: Not Found")


def test_without_the_package_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    gpu = GpuHealth(None)
    assert gpu.values() == {} and "nvidia-ml-py" in gpu.missing


def test_a_hot_or_full_gpu_warns_with_hysteresis() -> None:
    health, nvml = PolicyHealth(parameters()), FakeNvml()
    health.alarms.hysteresis = 0.1
    gpu, levels = GpuHealth(None, nvml), []
    for nvml.temperature in (60.0, 86.0, 80.0, 76.0, 96.0):
        report = Report("backend")
        health.judge_gpu(report, gpu)
        levels.append(report.level)
    assert levels == [OK, WARN, WARN, OK, ERROR]
    report = Report("backend")
    health.judge_gpu(report, GpuHealth(None, FakeNvml(used=97)))
    assert "97% of the GPU's memory" in report.message


def analyzers(section: dict[str, Any], path: str = "") -> dict[str, list[str]]:
    """Names matched by each GenericAnalyzer, by its path."""
    found: dict[str, list[str]] = {}
    for value in section.values():
        if not isinstance(value, dict):
            continue
        if "path" not in value:
            found.update(analyzers(value, path))
        elif value["type"] == "diagnostic_aggregator/GenericAnalyzer":
            assert value["timeout"] > 1.0, "statuses come once a second"
            found[f"{path}/{value['path']}"] = value["contains"]
        else:
            assert value["type"] == "diagnostic_aggregator/AnalyzerGroup"
            found.update(analyzers(value["analyzers"], f"{path}/{value['path']}"))
    return found


def names_in_code() -> set[str]:
    """Every status name that the nodes' source files make."""
    import re

    folder = Path(thor_policy_ros.__file__).resolve().parent / "ros"
    found = set()
    for file in folder.glob("*.py"):
        for task in re.findall(r"Report\(\s*f?\"([^\"]+)\"", file.read_text()):
            task = task.replace("{camera.name}", "wrist")
            node = "chunk_executor_node" if task in ("execution", "safety") else "policy_node"
            found.add(f"left/{node}: {task}")
    return found


def test_the_aggregator_puts_every_status_into_exactly_one_group() -> None:
    section = yaml.safe_load(AGGREGATOR.read_text())["analyzers"]["ros__parameters"]
    groups = analyzers(section)
    names = names_in_code()
    assert {"left/policy_node: camera wrist", "left/chunk_executor_node: execution"} <= names
    for name in names:
        matching = [path for path, parts in groups.items() if any(part in name for part in parts)]
        assert len(matching) == 1, (name, matching)
    parts = {part for parts in groups.values() for part in parts}
    unused = {part for part in parts if not any(part in name for name in names)}
    assert unused <= {"chunk_executor_node: safety"}


def test_a_frozen_camera_is_told_in_its_own_words_and_stops_where_told() -> None:
    inputs, health = Inputs(), PolicyHealth(parameters())
    inputs.frames.frozen_after_s = 1.0
    for k in range(1, 46):
        inputs.frames.put_image("base_0_rgb", np.zeros((2, 2, 3), np.uint8), 5.0 + k / 30)
    now_s = 5.0 + 45 / 30
    inputs.frames.put_state(np.zeros(1, np.float32), now_s)
    for _ in range(45):
        inputs.records["base_0_rgb"].rate.tick(now_s)
    inputs.frames.set_prompt("go")
    camera = inputs.reports(health, now_s)["camera base"]
    assert camera.level == WARN
    assert camera.message.startswith("frozen, the same picture for 1.5 s with new stamps")
    assert camera.values["same_picture_s"] == pytest.approx(1.47, abs=0.1)

    inputs.frames.refuse_frozen = True
    refused = inputs.frames.snapshot(now_s)
    assert isinstance(refused, NotReady)
    camera = inputs.reports(health, now_s, not_ready=refused.reasons)["camera base"]
    assert camera.level == ERROR and camera.message.count("frozen") == 1
    assert inputs.reports(health, now_s, active=False)["camera base"].level == STALE

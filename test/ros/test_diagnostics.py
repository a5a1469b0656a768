"""Levels and texts as diagnostic_msgs and its viewers understand them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from thor_policy_ros.ros.diagnostics import (
    ERROR,
    OK,
    STALE,
    WARN,
    Report,
    plain_text,
    status_msg,
)
from thor_policy_ros.ros.frame_loop import FrameCounts, FrameStatistics
from thor_policy_ros.ros.inputs import InputRecord
from thor_policy_ros.ros.policy_reports import (
    inference_report,
    input_report,
    lifecycle_report,
)
from thor_policy_ros.runtime.latency import Quantiles, RateMeter
from thor_policy_ros.runtime.latest_frames import LatestFrames

PARAMETERS = {
    "control_rate_hz": 10.0,
    "num_denoise_steps": 3,
    "deadline_warn_ratio": 0.05,
    "deadline_error_ratio": 0.5,
    "backend": "pytorch",
    "checkpoint": "here",
}


def statistics(**changes: object) -> FrameStatistics:
    fields: dict[str, object] = {
        "counts": FrameCounts(ticks=20, chunks=20),
        "quantiles_ms": {"total": Quantiles(10.0, 20.0, 30.0, 20)},
        "chunk_rate_hz": 10.0,
        "chunk_age_s": 0.05,
        "miss_ratio": 0.0,
        "not_ready": (),
        "refusal": "",
        "prompt": "pick up the red cube",
    }
    return FrameStatistics(**{**fields, **changes})  # type: ignore[arg-type]


def test_levels_are_those_of_diagnostic_msgs() -> None:
    assert (OK, WARN, ERROR, STALE) == (b"\x00", b"\x01", b"\x02", b"\x03")


def test_the_worst_finding_gives_level_and_comes_first() -> None:
    report = Report("task", fine="fine")
    assert (report.level, report.message) == (OK, "fine")
    report.note(WARN, "slow")
    report.note(STALE, "quiet")
    report.note(ERROR, "broken")
    report.note(WARN, "hot")
    assert report.level == ERROR
    assert report.message == "broken; quiet; slow; hot"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456789, "0.123457"),
        (1795415736.5, "1.79542e+09"),
        (100.0, "100"),
        (7, "7"),
        (True, "1"),
        (False, "0"),
        (None, ""),
        (math.nan, ""),
        (np.float64(2.5), "2.5"),
        ("tracking", "tracking"),
    ],
)
def test_values_are_plain_numbers(value: object, text: str) -> None:
    assert plain_text(value) == text


def test_a_status_names_node_task_and_hardware() -> None:
    report = Report("inference", values={"total_p50_ms": 1.5})
    status: DiagnosticStatus = status_msg("arm/policy_node", "thor-7", report)
    assert status.name == "arm/policy_node: inference"
    assert status.hardware_id == "thor-7"
    assert [(v.key, v.value) for v in status.values] == [("total_p50_ms", "1.5")]


def test_lifecycle_says_progress_and_error() -> None:
    fine = lifecycle_report("configuring", "warming up", "", PARAMETERS, "")  # type: ignore[arg-type]
    assert (fine.level, fine.message) == (OK, "configuring: warming up")
    failed = lifecycle_report("unconfigured", "", "configuring: no file", PARAMETERS, "")  # type: ignore[arg-type]
    assert failed.level == ERROR and "no file" in failed.message


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({}, OK, "chunks on time"),
        ({"miss_ratio": 0.2}, WARN, "20% of recent frames missed the deadline"),
        ({"miss_ratio": 0.6}, ERROR, "60% of recent frames missed the deadline"),
        ({"chunk_age_s": 1.5}, STALE, "no chunk for 1.5 s"),
        ({"chunk_age_s": None}, STALE, "no chunk since activation"),
        ({"refusal": "joint a row 0: nan"}, ERROR, "last chunk refused: joint a row 0: nan"),
    ],
)
def test_inference_levels(changes: dict[str, object], level: bytes, text: str) -> None:
    report = inference_report(PARAMETERS, statistics(**changes), active=True)  # type: ignore[arg-type]
    assert report.level == level
    assert text in report.message
    assert report.values["total_p95_ms"] == 20.0


def test_inference_is_stale_while_not_active() -> None:
    assert inference_report(PARAMETERS, statistics(), active=False).level == STALE  # type: ignore[arg-type]
    assert inference_report(PARAMETERS, None, active=True).level == STALE  # type: ignore[arg-type]


def inputs() -> tuple[LatestFrames, list[InputRecord]]:
    frames = LatestFrames(["base_0_rgb"], 0, max_age_s=0.2, max_skew_s=0.1)
    frames.put_image("base_0_rgb", np.zeros((2, 2, 3), np.uint8), 10.0)
    return frames, [InputRecord("/cam/image_raw", "base_0_rgb", RateMeter(5.0))]


def test_an_input_at_fault_is_named_with_its_topic() -> None:
    frames, records = inputs()
    late = statistics(not_ready=("base_0_rgb: stale, 0.500 s old (at most 0.2 s)",))
    report = input_report(records, frames, late, now_s=10.5, active=True)
    assert report.level == ERROR
    assert report.message.endswith("(/cam/image_raw)") and "stale" in report.message
    assert report.values["base_0_rgb_age_s"] == pytest.approx(0.5)


def test_a_refused_message_is_an_error_of_its_topic() -> None:
    frames, records = inputs()
    records[0].refusing, records[0].last_refusal = True, "encoding 'mono16' is not supported"
    report = input_report(records, frames, statistics(), now_s=10.0, active=True)
    assert report.level == ERROR
    assert "/cam/image_raw refused: encoding 'mono16'" in report.message


def test_inputs_are_not_judged_while_inactive() -> None:
    frames, records = inputs()
    waiting = statistics(not_ready=("state: missing, none has come",))
    assert input_report(records, frames, waiting, 10.0, active=False).level == STALE
    assert input_report([], None, None, 10.0, active=False).level == STALE

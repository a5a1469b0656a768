"""One status on /diagnostics for each camera, the state, the instruction, and the GPU's figures.

The status `inputs` says what stands in the way of a frame; these say which one to look at, and
warn before a frame is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from thor_policy_ros.ros.diagnostics import ERROR, OK, STALE, WARN, Report
from thor_policy_ros.ros.frame_loop import FrameStatistics
from thor_policy_ros.ros.gpu_health import GpuHealth, uuid_of
from thor_policy_ros.ros.inputs import Camera, InputRecord
from thor_policy_ros.ros.live_switch import LiveSwitch
from thor_policy_ros.runtime.alarms import Alarms
from thor_policy_ros.runtime.latest_frames import PROMPT, STATE, LatestFrames

LEVELS = (OK, WARN, ERROR)
SHOWN_WORDS = 200
RATE_KNOWN_AFTER = 5  # messages


class PolicyHealth:
    """Keeps the levels from one second to the next; the executor's thread alone uses it.

    parameters: by name, as they are at the time of asking.
    """

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters
        self.alarms = Alarms()
        self._gpu: GpuHealth | None = None
        self._gpu_of: Any = None

    def input_reports(
        self,
        cameras: Sequence[Camera],
        records: Mapping[str, InputRecord],
        frames: LatestFrames | None,
        statistics: FrameStatistics | None,
        now_s: float,
        active: bool,
    ) -> list[Report]:
        """A report each: cameras, state, instruction. records: by input; {} before configure."""
        self.alarms.hysteresis = self._parameters["diagnostics_hysteresis"]
        if not active:
            self.alarms.forget()
        reasons = statistics.not_ready if statistics is not None and active else ()
        ages_s = frames.input_ages_s(now_s) if frames is not None else {}
        drops = frames.drops if frames is not None else {}
        same_s = frames.same_picture_s if frames is not None else {}
        frozen = frames.frozen if frames is not None and active else {}
        found = []
        for camera in cameras:
            report = Report(f"camera {camera.name}", fine="images come in time")
            self._judge(report, camera.slot, records, ages_s, reasons, now_s, active)
            if camera.slot in records:
                report.values["slot"] = camera.slot
                report.values["dropped"] = drops.get(camera.slot, 0)
                report.values["same_picture_s"] = same_s.get(camera.slot)
                if camera.slot in frozen and report.level != ERROR:
                    report.note(WARN, frozen[camera.slot])
            found.append(report)
        if self._parameters["joint_names"]:
            report = Report("state", fine="joint states come in time")
            self._judge(report, STATE, records, ages_s, reasons, now_s, active)
            found.append(report)
        return [*found, self._instruction(statistics, reasons, active)]

    def _judge(
        self,
        report: Report,
        name: str,
        records: Mapping[str, InputRecord],
        ages_s: Mapping[str, float | None],
        reasons: Sequence[str],
        now_s: float,
        active: bool,
    ) -> None:
        record = records.get(name)
        if record is None:
            report.note(STALE, "not configured")
            return
        age_s, rate_hz = ages_s.get(name), record.rate.rate_hz(now_s)
        report.values = {
            "topic": record.topic,
            "rate_hz": rate_hz,
            "age_s": age_s,
            "received": record.received,
            "refused": record.refused,
        }
        if not active:
            report.note(STALE, "not active: not judged")
            return
        if record.refusing:
            report.note(ERROR, f"{record.topic} refused: {record.last_refusal}")
        for reason in reasons:
            if reason.partition(":")[0] == name:
                report.note(ERROR, f"{reason.partition(': ')[2]} ({record.topic})")
        if age_s is not None and report.level == OK and record.received >= RATE_KNOWN_AFTER:
            self._warn_early(report, name, age_s, rate_hz)

    def _warn_early(self, report: Report, name: str, age_s: float, rate_hz: float) -> None:
        parameters, alarms = self._parameters, self.alarms
        old_s = parameters["input_age_warn_ratio"] * parameters["max_input_age_s"]
        if alarms.above(f"{name}_age", age_s, old_s):
            report.note(WARN, f"{age_s:.3f} s old (above {old_s:g} s)")
        slow_hz = parameters["input_rate_warn_ratio"] * parameters["control_rate_hz"]
        if alarms.below(f"{name}_rate", rate_hz, slow_hz):
            report.note(WARN, f"{rate_hz:.1f} Hz (below {slow_hz:g} Hz)")

    def _instruction(
        self, statistics: FrameStatistics | None, reasons: Sequence[str], active: bool
    ) -> Report:
        report = Report("instruction", fine="followed")
        if statistics is None or not active:
            report.note(STALE, "not active")
            return report
        report.values = {
            "text": statistics.prompt[:SHOWN_WORDS],
            "characters": len(statistics.prompt),
        }
        if any(reason.partition(":")[0] == PROMPT for reason in reasons):
            report.note(ERROR, "none has come: publish topic instruction, or set the parameter")
        elif not statistics.prompt and statistics.counts.chunks:
            report.note(WARN, "blank: the policy was given no words")
        return report

    def with_gpu(self, report: Report, switch: LiveSwitch | None) -> Report:
        """The backend's report, with versions and the GPU's figures where NVML tells them."""
        loaded = None if switch is None else switch.loaded
        device = None if loaded is None else getattr(loaded.policy.backend, "device", None)
        torch = sys.modules.get("torch")
        if torch is not None and device is not None:
            report.values["torch_version"] = torch.__version__
            report.values["cuda_version"] = torch.version.cuda or ""
        if getattr(device, "type", "cpu") == "cuda":
            if self._gpu is None or self._gpu_of != device:
                self._gpu, self._gpu_of = GpuHealth(uuid_of(device)), device
            self.judge_gpu(report, self._gpu)
        return report

    def judge_gpu(self, report: Report, gpu: GpuHealth) -> None:
        """Adds the figures to the report, and warnings about them."""
        found, parameters = gpu.values(), self._parameters
        report.values.update(found)
        report.values["gpu_health_missing"] = gpu.missing
        if "gpu_temperature_c" in found:
            hot = found["gpu_temperature_c"]
            level = self.alarms.above(
                "gpu_temperature",
                hot,
                parameters["gpu_temperature_warn_c"],
                parameters["gpu_temperature_error_c"],
            )
            if level:
                report.note(LEVELS[level], f"the GPU is at {hot:g} degC")
        used = found.get("gpu_memory_used_ratio", 0.0)
        if self.alarms.above("gpu_memory", used, parameters["gpu_memory_warn_ratio"]):
            report.note(WARN, f"{used:.0%} of the GPU's memory is in use")

"""What the policy node says of itself on /diagnostics."""

from __future__ import annotations

from collections.abc import Iterable

from thor_policy_ros.ros.diagnostics import ERROR, OK, STALE, WARN, Report, quantile_values
from thor_policy_ros.ros.frame_loop import STAGES, FrameStatistics
from thor_policy_ros.ros.inputs import InputRecord
from thor_policy_ros.ros.live_switch import LiveSwitch
from thor_policy_ros.ros.memory_use import memory_values
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.realtime import RealtimeState
from thor_policy_ros.runtime.alarms import Alarms
from thor_policy_ros.runtime.frame_hops import HOPS
from thor_policy_ros.runtime.latest_frames import LatestFrames
from thor_policy_ros.types import Verification

# No chunk for this many control periods (at least a second) is no news.
QUIET_PERIODS = 5.0
QUIET_AT_LEAST_S = 1.0
LEVELS = (OK, WARN, ERROR)


def lifecycle_report(
    state: str, progress: str, last_error: str, parameters: NodeParameters, engine: str
) -> Report:
    """engine: of the loaded backend, '' while none is."""
    report = Report("lifecycle", fine=f"{state}: {progress}" if progress else state)
    if last_error:
        report.note(ERROR, f"{state}, after an error while {last_error}")
    report.values = {
        "state": state,
        "backend_requested": parameters["backend"],
        "backend_active": engine,
        "checkpoint": parameters["checkpoint"],
    }
    return report


def backend_report(switch: LiveSwitch | None) -> Report:
    """Requested and active backend, a switch under way, and how the active one was verified."""
    report = Report("backend", fine="verified")
    if switch is None:
        report.note(STALE, "not configured")
        return report
    state, loaded = switch.state, switch.loaded
    report.values = {
        "requested": state.requested,
        "active": state.active,
        "loading": state.loading,
        "progress": switch.progress,
        "failure": state.failure,
        "switches": switch.switches,
    }
    if state.loading:
        report.fine = f"{state.active} runs while {state.loading} loads: {switch.progress}"
    if state.lost:
        report.note(ERROR, f"no backend runs: {state.failure}; set another one")
    elif state.failure:
        report.note(WARN, f"{state.active or 'no backend'} runs; failed: {state.failure}")
    if switch.pause_reason:
        report.note(WARN, switch.pause_reason)
    device = None if loaded is None else getattr(loaded.policy.backend, "device", None)
    report.values |= memory_values(device)
    if loaded is not None:
        report.values["reuse_every"] = loaded.policy.spec.reuse_every
        _add_verification(report, loaded.verification)
        report.values["notes"] = "; ".join(getattr(loaded.policy.backend, "notes", ()))
        for warning in getattr(loaded.policy.backend, "warnings", ()):
            report.note(WARN, warning)
    return report


def _add_verification(report: Report, found: Verification) -> None:
    report.values |= {
        "verified": found.ok and found.observations > 0,  # a server may not let itself be compared
        "verified_as": found.precision,
        "verified_observations": found.observations,
        "verified_cosine": found.cosine,
        "verified_max_abs_error": found.max_abs_error,
        "verified_worst": found.worst,
        "verified_s": found.seconds,
    }


def input_report(
    records: Iterable[InputRecord],
    frames: LatestFrames | None,
    statistics: FrameStatistics | None,
    now_s: float,
    active: bool,
) -> Report:
    """Age, rate and refusals of every input, and which of them stand in the way."""
    report = Report("inputs", fine="all inputs are fresh")
    if frames is None or statistics is None:
        report.note(STALE, "not configured")
        return report
    ages_s, drops = frames.input_ages_s(now_s), frames.drops
    if not active:
        report.note(STALE, "not active: inputs are not judged")
    for record in records:
        name = record.input
        report.values[f"{name}_topic"] = record.topic
        report.values[f"{name}_age_s"] = ages_s[name]
        report.values[f"{name}_rate_hz"] = record.rate.rate_hz(now_s)
        report.values[f"{name}_received"] = record.received
        report.values[f"{name}_refused"] = record.refused
        if name in drops:
            report.values[f"{name}_dropped"] = drops[name]
        if record.refusing:
            report.note(ERROR, f"{record.topic} refused: {record.last_refusal}")
    if active:
        topics = {record.input: record.topic for record in records}
        for reason in statistics.not_ready:
            name = reason.partition(":")[0]
            report.note(ERROR, f"{reason} ({topics[name]})" if name in topics else reason)
    return report


def inference_report(
    parameters: NodeParameters,
    statistics: FrameStatistics | None,
    active: bool,
    alarms: Alarms | None = None,
    realtime: RealtimeState = RealtimeState(),  # noqa: B008 (frozen)
) -> Report:
    """Rates, quantiles of every stage, misses and refusals. alarms: remembers the level of the
    misses; None for a report on its own. realtime: of the inference thread."""
    report = Report("inference", fine="chunks on time")
    if statistics is None or not active:
        report.note(STALE, "not active")
        return report
    rate_hz, counts = parameters["control_rate_hz"], statistics.counts
    report.values = {
        "control_rate_hz": rate_hz,
        "chunk_rate_hz": statistics.chunk_rate_hz,
        "chunk_age_s": statistics.chunk_age_s,
        "num_denoise_steps": parameters["num_denoise_steps"],
        "instruction": statistics.prompt,
        "chunks": counts.chunks,
        "refused_chunks": counts.refused,
        "unwanted_chunks": counts.unwanted,
        "overrun_ticks": counts.overrun_ticks,
        "not_ready_ticks": counts.not_ready_ticks,
        "deadline_misses": counts.deadline_misses,
        "deadline_miss_ratio": statistics.miss_ratio,
        "scheduler": realtime.scheduler,
    }
    for refusal in realtime.refusals:
        report.note(WARN, refusal)
    for stage in (*STAGES, *HOPS):
        if stage in statistics.quantiles_ms:
            found = statistics.quantiles_ms[stage]
            report.values.update(quantile_values(stage, (found.p50, found.p95, found.p99)))
    _judge(report, parameters, statistics, alarms or Alarms())
    return report


def _judge(
    report: Report, parameters: NodeParameters, statistics: FrameStatistics, alarms: Alarms
) -> None:
    quiet_s = max(QUIET_PERIODS / parameters["control_rate_hz"], QUIET_AT_LEAST_S)
    age_s = statistics.chunk_age_s
    if statistics.refusal:
        report.note(ERROR, f"last chunk refused: {statistics.refusal}")
    elif age_s is None:
        report.note(STALE, "no chunk since activation")
    elif age_s > quiet_s:
        report.note(STALE, f"no chunk for {age_s:.1f} s")
    warn, error = parameters["deadline_warn_ratio"], parameters["deadline_error_ratio"]
    level = alarms.above("deadline_misses", statistics.miss_ratio, warn, max(warn, error))
    if level:
        report.note(
            LEVELS[level], f"{statistics.miss_ratio:.0%} of recent frames missed the deadline"
        )

"""What the nodes say on /diagnostics of chunk joining and of latency added on purpose."""

from __future__ import annotations

from thor_policy_ros.ros.diagnostics import STALE, WARN, Report
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.runtime.latency_injection import InjectedLatency
from thor_policy_ros.runtime.real_time_chunking import ChunkingFacts


def motion_report(parameters: NodeParameters, facts: ChunkingFacts, active: bool) -> Report:
    """How chunks join, and the delay that was measured from the executor's answers."""
    blending = parameters["chunk_blending"]
    report = Report("motion", fine=f"chunks join by {blending}")
    report.values = {
        "chunk_blending": blending,
        "rtc_delay_ms": "" if facts.delay_s is None else facts.delay_s * 1e3,
        "rtc_delay_measured_by": facts.source,
        "rtc_chunks_taken_up": facts.chunks,
    }
    if not active:
        report.note(STALE, "not active")
    elif blending == "rtc" and facts.source == "published":
        report.note(
            WARN,
            "no executor answers on topic chunk_feedback: rtc takes publication for the time at "
            "which a chunk is executed",
        )
    return report


def injection_report(injected: InjectedLatency) -> Report:
    """A warning while latency is added on purpose."""
    report = Report("injected latency", fine="none")
    if injected.active:
        report.note(WARN, f"TEST: latency is added on purpose: {injected}")
    report.values = {
        "inject_latency_ms": injected.mean_ms,
        "distribution": injected.distribution,
        "spike_ms": injected.spike_ms,
        "spike_ratio": injected.spike_ratio,
    }
    return report

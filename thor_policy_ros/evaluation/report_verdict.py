"""Whether the recorded run was well, in words that are understood in five seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thor_policy_ros.evaluation.report_frames import Frames
from thor_policy_ros.evaluation.report_health import Health

WELL, LOOK, TROUBLE, NOTHING = "well", "look", "trouble", "nothing"
WORDS = {WELL: "HEALTHY", LOOK: "LOOK AT IT", TROUBLE: "TROUBLE", NOTHING: "NOTHING TO JUDGE"}
LASTING = 0.1
"""A state that more than this share of the reports or frames show is no passing one."""
QUIET_PERIODS, QUIET_AT_LEAST_S = 5.0, 1.0  # from when the node itself speaks of silence
TOLD = 8


@dataclass(frozen=True)
class Reason:
    """One thing that is not well."""

    level: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """level: WELL, LOOK, TROUBLE or NOTHING. reasons: the worst first. figures: name, value."""

    level: str
    headline: str
    reasons: tuple[Reason, ...]
    figures: tuple[tuple[str, str], ...]


def verdict_of(
    frames: Frames, health: Health, parameters: Mapping[str, Any], notes: tuple[str, ...]
) -> Verdict:
    """notes: what is wrong with the recording itself."""
    recorded = [Reason(LOOK, note) for note in notes]
    if not frames.rows:
        told = _health_reasons(health)
        headline = f"no frame was computed in the {frames.duration_s:.1f} s of this recording"
        return Verdict(NOTHING, headline, (*told, *recorded), ())
    reasons = [
        *_deadline_reasons(frames, parameters),
        *_refusal_reasons(frames),
        *_silence_reasons(frames, parameters),
        *_health_reasons(health),
        *recorded,
    ]
    reasons.sort(key=lambda one: one.level != TROUBLE)
    level = reasons[0].level if reasons else WELL
    well = (
        f"{frames.chunks} chunks in {frames.duration_s:.0f} s, deadlines kept, nothing refused, "
        "no status in error"
    )
    return Verdict(level, reasons[0].text if reasons else well, tuple(reasons), _figures(frames))


def _deadline_reasons(frames: Frames, parameters: Mapping[str, Any]) -> list[Reason]:
    warn = float(parameters.get("deadline_warn_ratio", 0.05))
    error = float(parameters.get("deadline_error_ratio", 0.5))
    ratio = frames.miss_ratio
    if ratio <= warn:
        return []
    text = f"{ratio:.0%} of the frames missed the deadline of {frames.deadline_ms:.0f} ms"
    return [Reason(TROUBLE if ratio > error else LOOK, text)]


def _refusal_reasons(frames: Frames) -> list[Reason]:
    if not frames.refused:
        return []
    why = next(r.decision for r, k in zip(frames.rows, frames.kinds, strict=True) if k == "refused")
    lasting = frames.refused > LASTING * max(int(frames.computed.sum()), 1)
    text = f"{frames.refused} chunks were {why}" if frames.refused > 1 else f"a chunk was {why}"
    return [Reason(TROUBLE if lasting else LOOK, text)]


def _silence_reasons(frames: Frames, parameters: Mapping[str, Any]) -> list[Reason]:
    rate_hz = float(parameters.get("control_rate_hz", 10.0))
    quiet_s = max(QUIET_PERIODS / rate_hz, QUIET_AT_LEAST_S)
    begun, silent_s = frames.longest_silence()
    if silent_s <= quiet_s:
        return []
    text = f"no chunk for {silent_s:.1f} s, from {begun:.1f} s on"
    return [Reason(TROUBLE if silent_s > 5 * quiet_s else LOOK, text)]


def _health_reasons(health: Health) -> list[Reason]:
    """Errors, and warnings that last; of each status the one it told most often."""
    found, named = [], set()
    for trouble in health.troubles():
        lasting = trouble.reports > LASTING * trouble.of
        is_error = trouble.level == "error"
        if trouble.name in named or not (is_error or (lasting and trouble.level == "warning")):
            continue
        if "missed the deadline" in trouble.message:
            continue  # counted from the frames
        named.add(trouble.name)
        text = (
            f"{trouble.name}: {trouble.message} ({trouble.level} in {trouble.reports} of "
            f"{trouble.of} reports, first at {trouble.first_s:.1f} s)"
        )
        found.append(Reason(TROUBLE if is_error and lasting else LOOK, text))
    return found[:TOLD]


def _figures(frames: Frames) -> tuple[tuple[str, str], ...]:
    total = frames.stage_ms("total")
    p50, p99 = np.percentile(total, (50, 99)) if len(total) else (math.nan, math.nan)
    ages = frames.figure("prefix_age_ms")[frames.computed]
    oldest = float(np.nanmax(ages)) if len(ages) else math.nan
    rate = frames.chunks / frames.duration_s if frames.duration_s > 0 else math.nan
    return (
        (f"chunks, {rate:.1f} a second", f"{frames.chunks}"),
        ("from tick to chunk, p50 and p99", f"{p50:.0f}, {p99:.0f} ms"),
        (f"missed the deadline of {frames.deadline_ms:.0f} ms", f"{frames.miss_ratio:.1%}"),
        ("ticks without a frame", f"{frames.new_missed_ticks.sum():.0f}"),
        ("refused chunks", f"{frames.refused}"),
        ("longest silence", f"{frames.longest_silence()[1]:.1f} s"),
        ("oldest prefix", f"{oldest:.0f} ms"),
    )

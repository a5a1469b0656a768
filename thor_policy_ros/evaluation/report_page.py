"""A recording as one self-contained HTML page: nothing is fetched, nothing runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thor_policy_ros.evaluation.report_charts import (
    Line,
    Mark,
    histogram,
    line_chart,
    stacked_bars,
    strips,
)
from thor_policy_ros.evaluation.report_frames import KINDS, STAGES, Frames
from thor_policy_ros.evaluation.report_health import Health
from thor_policy_ros.evaluation.report_html import Html, element, table
from thor_policy_ros.evaluation.report_moments import Moment
from thor_policy_ros.evaluation.report_style import STYLE
from thor_policy_ros.evaluation.report_verdict import LOOK, TROUBLE, WORDS, Verdict

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser itself refuses scripts and requests, whatever the bag holds."""
KIND_COLOURS = dict(zip(KINDS, ("c0", "c2", "c4", "c5", "c1", "c3"), strict=True))
REASONS, TROUBLES = 30, 30  # rows shown


@dataclass(frozen=True)
class Report:
    """Everything a page shows. facts: name and value of the run's; parameters: of the node."""

    title: str
    verdict: Verdict
    frames: Frames
    health: Health
    moments: list[Moment]
    facts: list[tuple[str, str]]
    parameters: Mapping[str, Any]

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, max(self.frames.duration_s, 0.1)


def page(report: Report) -> str:
    """The whole document."""
    sections = [_verdict(report.verdict)]
    if report.frames.rows:
        sections += [_latency(report), _misses(report), _decisions(report)]
    sections += [_health(report), _safety(report.health)]
    if report.frames.rows:
        sections += [_backends(report), _moments(report.moments)]
    sections.append(_run(report))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", report.title),
        element("style", Html(STYLE)),
    )
    body = element("body", element("h1", report.title), element("main", *sections))
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _section(title: str, *parts: object) -> Html:
    return element("section", element("h2", title), *parts)


def _verdict(verdict: Verdict) -> Html:
    box = element("div", element("div", WORDS[verdict.level], class_="word"),
                  element("div", verdict.headline, class_="head"),
                  class_=f"verdict {verdict.level}", role="status")  # fmt: skip
    tiles = [
        element("div", element("b", value), element("span", name), class_="tile")
        for name, value in verdict.figures
    ]
    names = {TROUBLE: "trouble", LOOK: "look"}
    items = [
        element("li", element("span", f"{names[one.level]}: ", class_=f"tag {one.level}"), one.text)
        for one in verdict.reasons
    ]
    listed = (element("ul", *items, class_="reasons"),) if items else ()
    grid = (element("div", *tiles, class_="tiles"),) if tiles else ()
    return element("section", box, *grid, *listed)


def _changes(report: Report) -> list[Mark]:
    """Where another backend took over, in every chart over time."""
    changes = report.frames.backend_changes()[1:]
    return [Mark(change.at_s, f"backend {change.text}") for change in changes]


def _latency(report: Report) -> Html:
    frames = report.frames
    total = frames.figure("total_ms")
    lines = [
        Line(f"p{percent:g}", frames.percentile_by_window(total, percent).tolist(), colour, dash)
        for percent, colour, dash in ((50, "c0", None), (95, "c1", "7 3"), (99, "c4", "2 3"))
    ]
    middles = (frames.starts_s + frames.window_s / 2).clip(max=report.span[1]).tolist()
    chart = line_chart(
        f"From control tick to chunk, every {frames.window_s:g} s",
        middles, lines, span=report.span, unit="ms", limit=frames.deadline_ms,
        marks=_changes(report),
    )  # fmt: skip
    small = [
        histogram(
            stage,
            frames.stage_ms(stage),
            "ms",
            frames.deadline_ms if stage == "total" else math.nan,
        )
        for stage in STAGES
    ]
    note = element(
        "p", "Of frames in which the stage ran. Total is from the control tick to the chunk handed "
        "over, waiting included. Dotted: p50 and p99; in every chart over time: another backend.",
        class_="soft",
    )  # fmt: skip
    return _section("Latency", chart, element("div", *small, class_="small"), note)


def _misses(report: Report) -> Html:
    frames = report.frames
    late = frames.figure("deadline_missed") * frames.computed
    counts = {
        "deadline missed": ("c3", frames.by_window(late).tolist()),
        "tick without a frame": ("c1", frames.by_window(frames.new_missed_ticks).tolist()),
    }
    chart = stacked_bars(
        "Deadline misses and missed ticks", frames.starts_s.tolist(), frames.window_s, counts,
        span=report.span, unit="frames or ticks", marks=_changes(report),
    )  # fmt: skip
    words = (
        f"{frames.deadline_misses} of {int(frames.computed.sum())} frames took longer than their "
        f"deadline; {frames.new_missed_ticks.sum():.0f} control ticks passed without a frame, "
        "since the one before still ran or an input was missing, old or skewed; "
        f"{frames.new_drops.sum():.0f} camera images were replaced unread by newer ones."
    )
    return _section("Deadlines", chart, element("p", words))


def _decisions(report: Report) -> Html:
    frames = report.frames
    counts = {}
    for kind in KINDS:
        flags = [float(one == kind) for one in frames.kinds]
        if any(flags):
            counts[kind] = KIND_COLOURS[kind], frames.by_window(np.array(flags)).tolist()
    chart = stacked_bars(
        "What was decided about the prefix", frames.starts_s.tolist(), frames.window_s, counts,
        span=report.span, unit="frames", marks=_changes(report),
    )  # fmt: skip
    ages = frames.figure("prefix_age_ms")
    middles = (frames.starts_s + frames.window_s / 2).clip(max=report.span[1]).tolist()
    lines = [
        Line("median", frames.percentile_by_window(ages, 50).tolist(), "c0"),
        Line("oldest", frames.percentile_by_window(ages, 100).tolist(), "c1", "7 3"),
    ]
    age = line_chart("Age of the prefix when denoising began", middles, lines, span=report.span,
                     unit="ms", marks=_changes(report))  # fmt: skip
    total = max(len(frames.rows), 1)
    rows = [
        (reason, count, f"{count / total:.1%}")
        for reason, count in frames.reasons().most_common(REASONS)
    ]
    listed = table(("decision: reason", "frames", "share"), rows)
    words = (
        "refill: the prefix was computed anew; reuse: denoised anew from an older one; pipelined: "
        "from the frame before; continue, hold: no chunk was wanted, the one in hand went on."
    )
    return _section("Reuse of the prefix", chart, age, listed, element("p", words, class_="soft"))


def _health(report: Report) -> Html:
    health = report.health
    if not health.said:
        return _section("Diagnostics", element("p", "The bag holds no /diagnostics."))
    rows = {
        name: [(a, b, level, f"{level}: {words}") for a, b, level, words in
               health.strips(name, report.span[1])]
        for name in health.said
    }  # fmt: skip
    names = [(level, level) for level in ("fine", "warning", "error", "stale")]
    chart = strips("Levels on /diagnostics", rows, span=report.span, names=names)
    found = [
        (t.name, element("span", t.level, class_=f"tag {t.level}"), t.message,
         f"{t.first_s:.1f} s", f"{t.reports} of {t.of}")
        for t in health.troubles()[:TROUBLES]
    ]  # fmt: skip
    listed = table(("status", "level", "said", "first at", "reports"), found)
    return _section("Diagnostics", chart, *((listed,) if found else ()))


def _safety(health: Health) -> Html:
    if not health.task("safety") and not health.task("execution"):
        words = "No chunk executor reported during the recording."
        return _section("Executor and safety", element("p", words))
    parts: list[Html] = []
    interventions = health.interventions()
    if interventions:
        parts.append(table(("intervention of the safety layer", "times"),
                           interventions.most_common()))  # fmt: skip
    else:
        parts.append(element("p", "The safety layer did not intervene."))
    states = health.executor_states()
    if states:
        seen = sum(states.values())
        rows = [(state, f"{count} of {seen}") for state, count in states.most_common()]
        parts.append(table(("state of the executor", "reports"), rows))
    clamps = [(name.replace("_", " "), count) for name, count in sorted(health.clamps().items())]
    if clamps:
        parts.append(table(("counted by the executor", "during the recording"), clamps))
    shown = ("enabled", "estopped", "dry_run", "limits_missing", "workspace")
    last = health.last_values("safety")
    facts = [(name.replace("_", " "), last[name] or "none") for name in shown if name in last]
    if facts:
        parts.append(table(("at the end", ""), facts))
    return _section("Executor and safety", *parts)


def _backends(report: Report) -> Html:
    changes = report.frames.backend_changes()
    rows = [(f"{change.at_s:.1f} s", change.text) for change in changes]
    parts = [table(("from", "backend of the frames"), rows)]
    notes: dict[tuple[str, str], float] = {}
    for said in report.health.task("backend"):
        for key in ("notes", "failure", "verified_as", "verified_cosine"):
            text = said.values.get(key, "")
            if text:
                notes.setdefault((f"{said.values.get('active', '')}: {key}", text), said.at_s)
    if notes:
        said_rows = [(name, text, f"{at_s:.1f} s") for (name, text), at_s in notes.items()]
        parts.append(table(("backend", "said", "first at"), said_rows))
    settings = [(f"{at_s:.1f} s", *rest) for at_s, *rest in report.health.changes()]
    if settings:
        parts.append(table(("seen at", "setting that changed", "from", "to"), settings))
    return _section("Backends and settings", *parts)


def _moments(moments: list[Moment]) -> Html:
    cards = [_moment(moment) for moment in moments]
    if not cards:
        return _section("Worst moments", element("p", "No frame had a latency."))
    return _section("Worst moments", element("div", *cards, class_="moments"))


def _moment(moment: Moment) -> Html:
    frame, latency = moment.frame, moment.frame.latency
    pictures = []
    for slot, uri in moment.images.items():
        before_ms = (frame.at_s - frame.stamps_s[slot]) * 1e3
        words = f"{slot}, taken {before_ms:.0f} ms before the frame was done"
        alt = f"Image of {slot} that the frame {moment.at_s:.2f} s into the recording was made from"
        image = element("img", src=uri, alt=alt)
        pictures.append(element("figure", image, element("figcaption", words)))
    stages = ", ".join(
        f"{stage} {float(latency[f'{stage}_ms']):.1f}"
        for stage in ("wait", *STAGES) if f"{stage}_ms" in latency
    )  # fmt: skip
    shown = element("div", *pictures, class_="images") if pictures else element(
        "p", f"no image: {moment.missing or 'none was asked for'}", class_="soft")  # fmt: skip
    return element(
        "article",
        element("b", f"{moment.at_s:.2f} s: {'; '.join(moment.why)}"),
        shown,
        element("p", f"“{frame.instruction}”"),
        element("p", f"{frame.decision}; chunk {frame.sequence}; ms: {stages or 'not in the bag'}",
                class_="soft"),
        class_="moment",
    )  # fmt: skip


def _run(report: Report) -> Html:
    facts = table(("this run", ""), report.facts)
    rows = [(name, _plain(value)) for name, value in sorted(report.parameters.items())]
    listed = element("details", element("summary", f"all {len(rows)} parameters of the node"),
                     table(("parameter", "value"), rows))  # fmt: skip
    return _section("The run", facts, *((listed,) if rows else ()))


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)

"""What the records say: success by task with intervals, pairs of backends, latency."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from thor_policy_ros.evaluation.intervals import wilson_interval
from thor_policy_ros.evaluation.libero.settings import LOST, REFUSED, EpisodeRecord
from thor_policy_ros.evaluation.pairs import pairs
from thor_policy_ros.evaluation.result_files import figure_table
from thor_policy_ros.sim.libero.wire import Task


def evaluation_summary(
    records: Sequence[EpisodeRecord], tasks: Sequence[Task], backends: Sequence[str]
) -> dict[str, Any]:
    """Counts of each backend in all and by task, and the first backend against each other."""
    by_backend = {name: [r for r in records if r.backend == name] for name in backends}
    return {
        "backends": {
            name: {
                **_counts(found),
                "digest": digest_of(found),
                "infer_ms": _latency(found),
                "tasks": [
                    {"task": number, "name": task.name, "language": task.language, **counts}
                    for number, task in enumerate(tasks)
                    if (counts := _counts([r for r in found if r.task == number]))["episodes"]
                ],
            }
            for name, found in by_backend.items()
        },
        "paired": [_paired(by_backend, backends[0], other) for other in backends[1:]],
    }


def digest_of(records: Sequence[EpisodeRecord]) -> str:
    """16 hex digits of what follows from seeds alone: tasks, trials, outcomes, steps and executed
    actions. Two evaluations of the same settings have the same, whoever played in what order."""
    found = sorted((r.task, r.trial, r.outcome, r.steps, r.actions) for r in records)
    return hashlib.blake2b(json.dumps(found).encode(), digest_size=8).hexdigest()


def _counts(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Episodes whose simulator was lost are counted, and in no rate."""
    played = [r for r in records if r.played]
    wins = [r for r in played if r.success]
    low, high = wilson_interval(len(wins), len(played))
    return {
        "episodes": len(records),
        "played": len(played),
        "successes": len(wins),
        "success_rate": len(wins) / len(played) if played else None,
        "wilson_95": [round(low, 4), round(high, 4)],
        "refused": sum(r.outcome == REFUSED for r in records),
        "simulator_lost": sum(r.outcome == LOST for r in records),
        "mean_steps": round(sum(r.steps for r in played) / len(played), 1) if played else None,
    }


def _latency(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Of every chunk, beside as many simulators as ran; batch: the most that shared a pass."""
    times = [one for record in records for one in record.infer_ms]
    if not times:
        return {"chunks": 0}
    p50, p95 = (round(float(one), 2) for one in np.percentile(times, (50, 95)))
    batch = max(record.batch for record in records)
    return {"chunks": len(times), "p50": p50, "p95": p95, "max": max(times), "batch": batch}


def _paired(found: dict[str, list[EpisodeRecord]], first: str, other: str) -> dict[str, Any]:
    """On scenes that both played; same_actions: executed to the bit."""
    scenes = {r.seed for r in found[first] if r.played}
    scenes &= {r.seed for r in found[other] if r.played}
    kept = {
        name: [r for r in found[name] if r.seed in scenes and r.played] for name in (first, other)
    }
    same = sum(a.actions == b.actions for a, b in zip(kept[first], kept[other], strict=True))
    return {**pairs(kept, first, other), "same_actions": same}


def summary_table(summary: dict[str, Any], title: str) -> Table:
    """Backend by backend: each task, then all of them."""
    table = figure_table(
        ("backend", "task", "success", "95 % interval"),
        ("lost", "p50 ms", "p95 ms"),
        title=title,
    )
    for name, counts in summary["backends"].items():
        for row in counts["tasks"]:
            table.add_row(name, str(row["task"]), *_figures(row))
        latency = counts["infer_ms"]
        times = (f"{latency[key]:.1f}" if key in latency else "" for key in ("p50", "p95"))
        table.add_row(name, "all", *_figures(counts), *times)
    return table


def pair_lines(summary: dict[str, Any]) -> list[str]:
    """A sentence for each pair of backends."""
    return [
        f"{p['second']} against {p['first']}, {p['scenes']} scenes: only {p['second']} solved"
        f" {p['only_by_second']}, only {p['first']} {p['only_by_first']} (McNemar's exact test:"
        f" p = {p['probability']:.3g}); the same actions to the bit in {p['same_actions']}"
        for p in summary["paired"]
    ]


def _figures(counts: dict[str, Any]) -> tuple[str, ...]:
    low, high = counts["wilson_95"]
    lost = counts["simulator_lost"]
    return (
        f"{counts['successes']}/{counts['played']}",
        f"{low:.1%} to {high:.1%}",
        str(lost) if lost else "",
    )

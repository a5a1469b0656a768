"""The reuse study's figures: success with its interval, smoothness, reaction, device time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from thor_policy_ros.evaluation.intervals import wilson_interval
from thor_policy_ros.evaluation.motion_trace import pooled
from thor_policy_ros.evaluation.result_files import figure_table
from thor_policy_ros.evaluation.reuse_cells import DEVICES, REFERENCE, REUSE, Cell

Record = Mapping[str, Any]


def study_report(
    chosen: Sequence[Cell], records: Sequence[Record], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Every cell's figures, as plain JSON data. Cells without an episode are left out."""
    by_cell = {cell.name: [r for r in records if r["cell"] == cell.name] for cell in chosen}
    played = [cell for cell in chosen if by_cell[cell.name]]
    return {
        "settings": {
            **settings,
            "devices": {name: asdict(profile) for name, profile in DEVICES.items()},
        },
        "cells": [_figures(cell, by_cell) for cell in played],
    }


def _figures(cell: Cell, by_cell: Mapping[str, list[Record]]) -> dict[str, Any]:
    records = by_cell[cell.name]
    motion = pooled([record["motion"] for record in records])
    seconds = sum(record["simulated_s"] for record in records)
    device = {k: sum(r["device"][k] for r in records) for k in records[0]["device"]}
    decisions: Counter[str] = Counter()
    for record in records:
        decisions.update(record["decisions"])
    outcome = _reactions(records) if cell.kind == "reaction" else _successes(cell, by_cell)
    return {
        "way": cell.way.name,
        "device": cell.device,
        "kind": cell.kind,
        "speed_m_s": cell.speed_m_s,
        "episodes": len(records),
        **outcome,
        **{name: _rounded(value) for name, value in motion.items()},
        "device_ms_per_s": _rounded(device["ms"] / seconds),
        "per_s": {k: _rounded(v / seconds) for k, v in device.items() if k != "ms"},
        "decisions": dict(decisions.most_common()),
    }


def _successes(cell: Cell, by_cell: Mapping[str, list[Record]]) -> dict[str, Any]:
    records = by_cell[cell.name]
    wins = {record["seed"] for record in records if record["success"]}
    low, high = wilson_interval(len(wins), len(records))
    durations = sorted(record["duration_s"] for record in records if record["success"])
    return {
        "successes": len(wins),
        "success_rate": _rounded(len(wins) / len(records)),
        "wilson_95": [_rounded(low), _rounded(high)],
        "median_success_s": durations[len(durations) // 2] if durations else None,
        "outcomes": dict(Counter(record["outcome"] for record in records)),
        "paired": _paired(records, by_cell.get(replace(cell, way=REFERENCE).name, [])),
        **_paired_with_reuse(cell, by_cell),
    }


def _paired(records: Sequence[Record], reference: Sequence[Record]) -> dict[str, int]:
    """Episodes of the same scene and noise: which of the two alone succeeded how often."""
    ours, theirs = ({r["seed"]: r["success"] for r in rows} for rows in (records, reference))
    both = ours.keys() & theirs.keys()
    return {
        "episodes": len(both),
        "only_this": sum(ours[seed] and not theirs[seed] for seed in both),
        "only_reference": sum(theirs[seed] and not ours[seed] for seed in both),
    }


def _paired_with_reuse(cell: Cell, by_cell: Mapping[str, list[Record]]) -> dict[str, Any]:
    """Where nothing is computed between refills: beside reusing the prefix there."""
    reuse = {way.every: way for way in REUSE}
    if cell.way.mode != "continue" or cell.way.every not in reuse:
        return {}
    other = replace(cell, way=reuse[cell.way.every]).name
    return {"paired_with_reuse": _paired(by_cell[cell.name], by_cell.get(other, []))}


def _reactions(records: Sequence[Record]) -> dict[str, Any]:
    """Quantiles over the episodes in which the arm had settled; those that never reacted or
    arrived count as slower than all."""
    settled = [record for record in records if record["settled"]]
    return {
        "settled": len(settled),
        **{
            f"{name}_{label}": _quantile([record[name] for record in settled], share)
            for name in ("reacted_s", "arrived_s")
            for label, share in (("median", 0.5), ("p90", 0.9))
        },
    }


def _quantile(values: Sequence[float | None], share: float) -> float | None:
    """Nearest rank; None for what never happened."""
    known = sorted(value for value in values if value is not None)
    rank = max(-(-len(values) * share // 1), 1)
    return _rounded(known[int(rank) - 1]) if len(known) >= rank else None


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def study_tables(report: Mapping[str, Any]) -> list[Table]:
    """One table a device: success by speed, smoothness and device time; and the reactions."""
    tables = []
    for device in report["settings"]["devices"]:
        rows = [c for c in report["cells"] if c["device"] == device and c["kind"] == "task"]
        if rows:
            tables.append(_task_table(rows, f"full frame {device}: success, by speed of targets"))
    reactions = [c for c in report["cells"] if c["kind"] == "reaction"]
    if reactions:
        tables.append(_reaction_table(reactions))
    return tables


def _task_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    speeds = sorted({row["speed_m_s"] for row in rows})
    heads = [f"{speed:g} m/s" for speed in speeds]
    table = figure_table(["way"], [*heads, "jerk", "jump", "device ms/s"], title)
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = {row["speed_m_s"]: row for row in rows if row["way"] == way}
        shown = [_success_cell(mine.get(speed)) for speed in speeds]
        fastest = mine[max(mine)]
        table.add_row(
            way,
            *shown,
            f"{fastest['jerk_rms']:.0f}",
            f"{fastest['jump_mean'] * 1e3:.0f}",
            f"{fastest['device_ms_per_s']:.0f}",
        )
    return table


def _success_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    low, high = row["wilson_95"]
    return f"{row['success_rate']:.0%} ({low:.0%}-{high:.0%})"


def _reaction_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = figure_table(
        ["way"], ["reacted p50", "p90", "arrived p50", "device ms/s"], "a target moved at once, s"
    )
    for row in rows:
        times = [row[k] for k in ("reacted_s_median", "reacted_s_p90", "arrived_s_median")]
        table.add_row(
            row["way"],
            *("never" if time_s is None else f"{time_s:.2f}" for time_s in times),
            f"{row['device_ms_per_s']:.0f}",
        )
    return table

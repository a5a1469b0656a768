"""What a latency study found: tables, verdicts against the targets, one picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from thor_policy_ros.evaluation.result_files import figure_table

TARGET_LATENCY_MS = 200.0
KEPT_OF_ZERO_LATENCY = {0.0: 0.9, 0.08: 0.7}
"""Share of the success without latency that the best blending keeps at 200 ms, by speed."""
PANELS = (
    ("success", "success"),
    ("jump_worst", "worst discontinuity, rad"),
    ("jerk_rms", "RMS jerk, rad/s³"),
)
MARKERS = {"latest": "v", "crossfade": "o", "temporal_ensemble": "s", "rtc": "D"}

Cells = Iterable[Mapping[str, Any]]


def success(cell: Mapping[str, Any]) -> float:
    return float(cell["successes"]) / float(cell["episodes"])


def tables(cells: Cells) -> Iterable[Table]:
    """One for each speed: success with its interval, discontinuity and jerk."""
    cells = list(cells)
    for speed in sorted({cell["speed_m_s"] for cell in cells}):
        table = figure_table(
            ("added", "blending"),
            ("success", "95 %", "worst jump", "mean jump", "RMS jerk"),
            f"objects at {speed:g} m/s",
        )
        for cell in (c for c in cells if c["speed_m_s"] == speed):
            low, high = cell["wilson_95"]
            table.add_row(
                f"{cell['latency_ms']:g} ms",
                cell["blending"],
                f"{cell['successes']}/{cell['episodes']}",
                f"{low:.0%} to {high:.0%}",
                f"{cell['jump_worst']:.3f}",
                f"{cell['jump_mean']:.3f}",
                f"{cell['jerk_rms']:.0f}",
            )
        yield table


def verdicts(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The targets that the cells suffice to judge: what was wanted, what came, by which blending.

    Zero latency is the best blending's there too. Discontinuities are compared cell by cell.
    """
    found: dict[str, Any] = {}
    for speed, share in KEPT_OF_ZERO_LATENCY.items():
        without, late = (_best(cells, ms, speed) for ms in (0.0, TARGET_LATENCY_MS))
        if without is None or late is None or not success(without):
            continue
        kept = success(late) / success(without)
        found[f"kept at {TARGET_LATENCY_MS:g} ms, {speed:g} m/s"] = {
            "wanted": share, "came": round(kept, 3), "blending": late["blending"],
            "met": kept >= share,
        }  # fmt: skip
    pairs = _pairs(cells, "rtc", "crossfade")
    if pairs:
        worst = max(pairs, key=lambda pair: pair[0]["jump_worst"] / pair[1]["jump_worst"])
        found["worst discontinuity of rtc below that of crossfade"] = {
            "cells": len(pairs),
            "cells_where_below": sum(a["jump_worst"] < b["jump_worst"] for a, b in pairs),
            "largest_ratio": round(worst[0]["jump_worst"] / worst[1]["jump_worst"], 3),
            "met": all(a["jump_worst"] < b["jump_worst"] for a, b in pairs),
        }
    return found


def _best(
    cells: Sequence[Mapping[str, Any]], latency_ms: float, speed: float
) -> Mapping[str, Any] | None:
    here = [c for c in cells if (c["latency_ms"], c["speed_m_s"]) == (latency_ms, speed)]
    return max(here, key=success, default=None)


def _pairs(
    cells: Sequence[Mapping[str, Any]], one: str, other: str
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    def at(blending: str) -> dict[tuple[float, float], Mapping[str, Any]]:
        return {(c["latency_ms"], c["speed_m_s"]): c for c in cells if c["blending"] == blending}

    ones, others = at(one), at(other)
    return [(ones[k], others[k]) for k in ones if k in others and others[k]["jump_worst"] > 0]


def measure_of(settings: Mapping[str, Any]) -> str:
    """What the latency is, for the axis."""
    kind = {"compute": "policy's time for a chunk", "transport": "chunk's way to the executor"}
    return f"added to the {kind[settings['kind']]}, ms"


def plot(cells: Sequence[Mapping[str, Any]], path: Path, measure: str) -> None:
    """Rows: success, worst discontinuity, jerk; a column for each speed. PNG, SVG or PDF.

    ValueError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--plot wants matplotlib; pip install matplotlib") from error
    speeds = sorted({cell["speed_m_s"] for cell in cells})
    figure = Figure(figsize=(3.4 * len(speeds) + 0.6, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(PANELS), len(speeds), squeeze=False, sharex=True, sharey="row")
    for column, speed in enumerate(speeds):
        here = [cell for cell in cells if cell["speed_m_s"] == speed]
        for row, (name, label) in enumerate(PANELS):
            axes = grid[row][column]
            _lines(axes, here, name)
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
        grid[0][column].set_title(f"objects at {speed:g} m/s", fontsize=10)
    for row in grid:  # once all lines of the shared axis are there
        row[0].set_ylim(bottom=0.0)
    grid[0][0].set_ylim(0.0, 1.05)
    grid[-1][len(speeds) // 2].set_xlabel(measure)
    grid[0][0].legend(fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _lines(axes: Any, cells: Sequence[Mapping[str, Any]], name: str) -> None:
    """One line for each blending, moved aside a little; bars are 95 % intervals."""
    blendings = list(dict.fromkeys(cell["blending"] for cell in cells))
    for place, blending in enumerate(blendings):
        row = sorted(
            (c for c in cells if c["blending"] == blending), key=lambda c: float(c["latency_ms"])
        )
        x = [c["latency_ms"] + 5.0 * (place - (len(blendings) - 1) / 2) for c in row]
        marker = MARKERS.get(blending, ".")
        if name != "success":
            axes.plot(x, [c[name] for c in row], marker=marker, markersize=4, label=blending)
            continue
        y = [success(c) for c in row]
        bars = [
            [a - c["wilson_95"][0] for a, c in zip(y, row, strict=True)],
            [c["wilson_95"][1] - a for a, c in zip(y, row, strict=True)],
        ]
        axes.errorbar(
            x, y, yerr=bars, marker=marker, markersize=4, label=blending, elinewidth=0.8, capsize=2
        )

"""The reuse study as a picture: success against device time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FAMILIES = (
    ("refill every tick", "black", "*"),
    ("reuse", "tab:red", "o"),
    ("continue", "tab:blue", "s"),
    ("adaptive", "tab:green", "^"),
    ("deadline", "tab:purple", "D"),
)
NAIVE_COLOUR = "tab:orange"
NOTES_AT = {"reuse": (4, 6), "continue": (-4, -13)}  # points from the marker
NAIVE_NOTE_AT = (5, -13)
BY_STATE_NOTE_AT = (-44, 6)


def plot_study(report: Mapping[str, Any], path: Path) -> None:
    """One panel a device and speed: success with its interval over device time per second, or
    over refills per second for a device that takes no time.

    path: PNG, SVG or PDF. ValueError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--plot wants matplotlib; pip install matplotlib") from error
    tasks = [cell for cell in report["cells"] if cell["kind"] == "task"]
    devices = list(dict.fromkeys(cell["device"] for cell in tasks))
    speeds = sorted({cell["speed_m_s"] for cell in tasks})
    figure = Figure(figsize=(4.2 * len(speeds), 4.0 * len(devices)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(devices), len(speeds), squeeze=False, sharex="row", sharey=True)
    labels: dict[str, Any] = {}
    for row, device in enumerate(devices):
        for column, speed in enumerate(speeds):
            panel = axes[row, column]
            shown = [c for c in tasks if c["device"] == device and c["speed_m_s"] == speed]
            labels |= _draw(panel, shown)
            panel.set_title(f"targets at {speed:g} m/s, full frame {device}", fontsize=10)
        instant = not any(c["device_ms_per_s"] for c in tasks if c["device"] == device)
        for panel in axes[row]:
            panel.set_xlabel("refills per s" if instant else "device time, ms per s of motion")
    for panel in axes[:, 0]:
        panel.set_ylabel("success, %")
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(panel: Any, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Points with intervals, each with what follows 'every' beside it; handles by label."""
    handles: dict[str, Any] = {}
    for cell in cells:
        name = cell["way"]
        family, colour, marker = next(f for f in FAMILIES if name.startswith(f[0]))
        naive = name.endswith("naive")
        low, high = cell["wilson_95"]
        rate = cell["success_rate"]
        place = (cell["device_ms_per_s"] or cell["per_s"]["prefills"], 100 * rate)
        label = f"{family}{', from index 0' if naive else ''}"
        handles[label] = panel.errorbar(
            *place,
            yerr=[[100 * max(rate - low, 0.0)], [100 * max(high - rate, 0.0)]],
            color=NAIVE_COLOUR if naive else colour,
            marker=marker,
            markersize=7,
            capsize=2,
            linewidth=0.8,
            linestyle="none",
            markerfacecolor="none" if "by state" in name else None,
        )
        if _note(name):
            offset = NAIVE_NOTE_AT if naive else NOTES_AT[family]
            offset = BY_STATE_NOTE_AT if "by state" in name else offset
            panel.annotate(
                _note(name), place, xytext=offset, textcoords="offset points", fontsize=7
            )
    panel.set_ylim(0, 112)
    panel.grid(alpha=0.3)
    return handles


def _note(way: str) -> str:
    """The period: '3' of 'reuse, every 3'."""
    if "by state" in way:
        return "3, by state"
    return way.partition("every ")[2].partition(",")[0] if way.startswith(("reuse", "cont")) else ""

"""Bench results as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

STAGES = ("vision", "prefill", "denoise")


def plot_latency(report: Mapping[str, Any], path: Path) -> None:
    """One bar a backend: medians of the stages, what is left of the frame, and its p95.

    path: PNG, SVG or PDF. ValueError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--plot wants matplotlib; pip install matplotlib") from error
    entries = list(reversed(report["backends"]))
    names = [f"{e['backend']['name']}\n{e['dtype']}" for e in entries]
    figure = Figure(figsize=(8, 1.6 + 0.7 * len(entries)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = [0.0] * len(entries)
    for stage, widths in _bars(entries).items():
        axes.barh(names, widths, left=left, label=stage, height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    p95 = [e["stages_ms"]["frame"]["p95"] for e in entries]
    axes.plot(p95, range(len(entries)), "k|", markersize=18, label="frame p95")
    settings = report["settings"]
    axes.set_xlabel("ms, medians")
    axes.set_title(
        f"{settings['config']} on {report['machine']['device']}: {settings['cameras']} cameras,"
        f" {settings['num_steps']} denoise steps",
        fontsize=10,
    )
    axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _bars(entries: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Widths by stage; `rest` is what the stages leave of the frame, 0 where they overlap."""
    medians = [{k: v["p50"] for k, v in e["stages_ms"].items()} for e in entries]
    bars = {stage: [m.get(stage, 0.0) for m in medians] for stage in STAGES}
    sums = [sum(stage) for stage in zip(*bars.values(), strict=True)]
    bars["rest"] = [max(m["frame"] - s, 0.0) for m, s in zip(medians, sums, strict=True)]
    return bars

"""What `make demo` leaves behind: a latency plot and the figures as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from thor_policy_ros.ros.demo_progress import DemoProgress

PLOTTED_STAGES = ("preprocess", "vision", "prefill", "denoise", "postprocess")


def write_summary(progress: DemoProgress, settings: dict[str, object], path: Path) -> None:
    """The run's settings and figures as one JSON file."""
    figures = {"settings": settings, **progress.summary()}
    path.write_text(json.dumps(figures, indent=1) + "\n")


def write_latency_plot(progress: DemoProgress, title: str, path: Path) -> None:
    """Stacked stage times of every frame, and the distribution of the whole frame; a PNG.

    Raises ValueError when no frame was seen.
    """
    if progress.frames == 0:
        raise ValueError("no frame was received, so there is no latency to plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (over_time, distribution) = plt.subplots(
        1, 2, figsize=(11, 4), width_ratios=(2, 1), layout="constrained"
    )
    over_time.stackplot(
        range(progress.frames),
        *(progress.stages_ms[stage] for stage in PLOTTED_STAGES),
        labels=PLOTTED_STAGES,
    )
    over_time.set(xlabel="frame", ylabel="ms", title="where each frame's time goes", ylim=(0, None))
    over_time.legend(loc="upper left", ncols=3, fontsize="small")
    distribution.hist(progress.stages_ms["total"], bins=40, alpha=0.7, label="inside the node")
    if progress.observation_to_chunk_ms:
        distribution.hist(
            progress.observation_to_chunk_ms, bins=40, alpha=0.7, label="camera stamp to chunk"
        )
    p50, _, p99 = progress.stage_quantiles_ms("total")
    for value in (p50, p99):
        distribution.axvline(value, color="black", linestyle=":", linewidth=1)
    distribution.set(
        xlabel="ms", ylabel="frames", title=f"inside the node: p50 {p50:.1f}, p99 {p99:.1f} ms"
    )
    distribution.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""Tables of benchmarks/results: each figure with its device, settings and file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
STAGES = ("vision", "prefill", "denoise")
COMPARED = ("keys", "values", "actions", "flow")
NOTHING = "No such run is stored yet.\n"

Row = Mapping[str, Any]


def backends() -> str:
    """Every name of the registry and what it is."""
    from thor_policy_ros.backends.registry import BACKENDS, ENGINES

    lines = ["| name | engine | prefix | MLP |", "|---|---|---|---|"]
    for name, spec in BACKENDS.items():
        every = "every tick" if spec.reuse_every == 1 else f"every {spec.reuse_every} ticks"
        prefix = "one frame ahead" if spec.pipelined else every
        mlp = f"{spec.mlp}, {spec.fp8_scale} scales" if spec.fp8_scale else spec.mlp
        lines.append(f"| `{name}` | {spec.engine} | {prefix} | {mlp} |")
    summaries = [f"- `{name}`: {engine.summary}" for name, engine in ENGINES.items()]
    return "\n".join([*lines, "", *summaries]) + "\n"


def latency(folder: Path = RESULTS) -> str:
    """Frames and stages of every stored `thor-policy bench latency`, GPUs first."""
    runs = sorted(stored(folder, "latency"), key=lambda run: _device(run[1]).startswith("cpu"))
    return "\n".join(_latency_run(file, run) for file, run in runs) or NOTHING


def _latency_run(file: Path, run: Row) -> str:
    lines = [
        _heading(file, run),
        "| backend | dtype | frame, ms: p50 / p95 / p99 | vision | prefill | denoise | "
        "times `pytorch`: median (5 to 95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in run["backends"]:
        stages, gain = row["stages_ms"], row["speedup"]
        frame = " / ".join(f"{stages['frame'][p]:.1f}" for p in ("p50", "p95", "p99"))
        cells = [f"{stages[name]['p50']:.1f}" if name in stages else "" for name in STAGES]
        ratio = f"{gain['median']:.2f} ({gain['p05']:.2f} to {gain['p95']:.2f})"
        name = f"`{row['backend']['name']}`"
        lines.append(f"| {' | '.join([name, row['dtype'], frame, *cells, ratio])} |")
    return "\n".join(lines) + "\n"


def precision(folder: Path = RESULTS) -> str:
    """Cosines to float32 of every stored `thor-policy bench precision`."""
    parts = []
    for file, run in stored(folder, "precision"):
        lines = [
            _heading(file, run),
            "| backend | dtype | keys | values | actions | flow |",
            "|---|---|---|---|---|---|",
        ]
        for row in run["backends"]:
            cells = [
                _cosine(row["worst"].get(name)) for name in ("keys", "values", "actions", "flow")
            ]
            name = f"`{row['backend']['name']}`"
            lines.append(f"| {' | '.join([name, row['dtype'], *cells])} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts) or NOTHING


def _cosine(worst: Row | None) -> str:
    return f"{worst['cosine']:.6f}" if worst else ""


def targets(folder: Path = RESULTS) -> str:
    """Rows of every stored run of benchmarks/fused_on_cuda.py on a GPU."""
    parts = []
    for file, run in everything(folder):
        table = run.get("sections", {}).get("table", {}) if isinstance(run, dict) else {}
        if not table.get("rows") or table.get("of") != "a GPU":
            continue
        lines = [
            f"`{run.get('command', file.name)}` ([{file.name}]({link(file)})):\n",
            "| engine | what | target | measured | p99 | met |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_target(row) for row in table["rows"]]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts) or NOTHING


def _target(row: Row) -> str:
    unit = "" if row["kind"] in ("worst cosine", "ready, s") else " ms"
    measured = "not measured" if row["measured"] is None else f"{row['measured']:.4g}{unit}"
    p99 = f"{row['p99']:.4g} ms" if "p99" in row else ""
    met = "yes" if row["met"] else "no"
    return (
        f"| `{row['engine']}` | {row['kind']} | {row['target']:g}{unit} | {measured} | {p99} | "
        f"{met} |"
    )


def stored(folder: Path, kind: str) -> Iterator[tuple[Path, Row]]:
    """Files of that kind; a run inside a larger file counts too."""
    for file, result in everything(folder):
        for run in _runs(result, kind):
            yield file, run


def everything(folder: Path) -> Iterator[tuple[Path, Any]]:
    for file in sorted(folder.glob("*.json")):
        yield file, json.loads(file.read_text())


def _runs(value: Any, kind: str) -> Iterator[Row]:
    if isinstance(value, dict):
        if value.get("kind") == kind and "backends" in value:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _runs(inner, kind)


def _heading(file: Path, run: Row) -> str:
    """Device, settings and command: a figure without them means nothing."""
    settings, versions = run["settings"], run["versions"]
    weights = "random weights" if settings["weights"] == "random" else f"`{settings['weights']}`"
    facts = [
        settings["config"],
        weights,
        f"{settings['cameras']} cameras",
        f"{settings['prompt_tokens']} prompt tokens",
        f"{settings['num_steps']} denoise steps",
        f"{settings['frames']} frames",
        f"torch {versions['torch']}",
    ]
    threads = run["machine"].get("threads")
    if threads:
        facts.append(f"{threads} CPU thread{'s' if threads > 1 else ''}")
    return f"**{_device(run)}**: {', '.join(facts)} ([{file.name}]({link(file)})).\n"


def _device(run: Row) -> str:
    return str(run["machine"]["device"])


def link(file: Path) -> str:
    """From a page of docs/."""
    return f"../benchmarks/results/{file.name}"

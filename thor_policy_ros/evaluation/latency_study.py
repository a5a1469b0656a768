"""`thor-policy latency-study`: how each way of blending chunks bears added latency.

The simulated arm is run, in simulated time, at every combination of added latency, speed of the
objects and blending, with the same scenes and the same noise in each. A cell is written to --out
as it is finished; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from thor_policy_ros.evaluation.closed_loop import CONTROL_DT_S, Conditions, run_episode
from thor_policy_ros.evaluation.intervals import wilson_interval
from thor_policy_ros.evaluation.latency_study_report import (
    measure_of,
    plot,
    tables,
    verdicts,
)
from thor_policy_ros.evaluation.motion_trace import MotionTrace, pooled
from thor_policy_ros.evaluation.result_files import command_line, machine_of, versions
from thor_policy_ros.evaluation.rollouts import FIRST_EPISODE_SEED, PolicyChoice, equip
from thor_policy_ros.runtime.blending import BLENDINGS
from thor_policy_ros.runtime.latency_injection import DISTRIBUTIONS, InjectedLatency
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.real_time_chunking import MODES, SCHEDULES, ChunkingRules
from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.types import StepResult

KINDS = ("compute", "transport")
RULES = ChunkingRules()


@dataclass(frozen=True)
class Cell:
    """One combination."""

    latency_ms: float
    speed_m_s: float
    blending: str

    @property
    def key(self) -> str:
        return f"{self.blending} {self.latency_ms:g} ms {self.speed_m_s:g} m/s"


@dataclass(frozen=True)
class Study:
    """What all cells share. kind: the latency is the policy's time to compute, so that chunks
    come as seldom ('compute'), or the way of a chunk to the executor ('transport')."""

    policy: PolicyChoice
    conditions: Conditions
    episodes: int
    kind: str = "compute"
    distribution: str = "constant"
    spike_ms: float = 0.0
    spike_ratio: float = 0.0

    def injected(self, cell: Cell) -> InjectedLatency:
        return InjectedLatency(cell.latency_ms, self.distribution, self.spike_ms, self.spike_ratio)

    def settings(self) -> dict[str, Any]:
        """All that a cell depends on, but the cell."""
        return json.loads(json.dumps(asdict(self)))


def run_cell(
    study: Study, cell: Cell, equipment: tuple[TabletopArm, PolicyRunner]
) -> dict[str, Any]:
    """Play the cell's episodes: counts, interval and figures of the motion."""
    env, runner = equipment
    started = time.perf_counter()
    conditions = replace(study.conditions, speed_m_s=cell.speed_m_s, blending=cell.blending)
    first = FIRST_EPISODE_SEED + conditions.seed * 100_000
    records, sums = [], []
    for seed in range(first, first + study.episodes):
        trace = MotionTrace(CONTROL_DT_S, np.isfinite(env.limits.velocity))
        takes_s, latency = _Delays(study, cell, seed), 0.0
        if study.kind == "transport":
            latency, takes_s.computing = cell.latency_ms, False
        records.append(
            run_episode(env, runner, replace(conditions, latency_ms=latency), seed, trace, takes_s)
        )
        sums.append(trace.sums())
    wins = [record.success for record in records]
    return {
        **asdict(cell),
        "episodes": len(records),
        "successes": sum(wins),
        "wilson_95": [round(x, 4) for x in wilson_interval(sum(wins), len(wins))],
        "won": "".join("1" if win else "0" for win in wins),
        "refused_chunks": sum(record.refused_chunks for record in records),
        **{name: round(value, 4) for name, value in pooled(sums).items()},
        "wall_s": round(time.perf_counter() - started, 1),
    }


class _Delays:
    """What the policy takes for each result, drawn from the episode's own seed: the same for
    every way of blending."""

    def __init__(self, study: Study, cell: Cell, seed: int) -> None:
        self.computing = True
        self._injected = study.injected(cell)
        self._random = np.random.default_rng((seed, study.conditions.seed))

    def __call__(self, result: StepResult) -> float:
        return self._injected.draw_s(self._random) if self.computing else 0.0


def cells(
    latencies_ms: Sequence[float], speeds_m_s: Sequence[float], blendings: Sequence[str]
) -> Iterator[Cell]:
    """Latency by latency, so that an unfinished study compares what it has."""
    for latency_ms in latencies_ms:
        for speed_m_s in speeds_m_s:
            for blending in blendings:
                yield Cell(latency_ms, speed_m_s, blending)


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="JSON; resumed if it exists")
    parser.add_argument("--plot", type=Path, help="picture of the result: PNG, SVG or PDF")
    parser.add_argument("--episodes", type=int, default=40, help="of each cell")
    parser.add_argument(
        "--latencies", type=_numbers, default=(0.0, 100.0, 200.0, 300.0, 400.0), help="ms"
    )
    parser.add_argument("--speeds", type=_numbers, default=(0.0, 0.08, 0.12), help="m/s")
    parser.add_argument(
        "--blendings", type=_names, default=BLENDINGS, help=f"of {','.join(BLENDINGS)}"
    )
    parser.add_argument(
        "--kind", choices=KINDS, default="compute",
        help="added to the policy's time (fewer chunks) or to a chunk's way to the executor",
    )  # fmt: skip
    parser.add_argument("--distribution", choices=DISTRIBUTIONS, default="constant")
    parser.add_argument("--spike-ms", type=float, default=0.0)
    parser.add_argument("--spike-ratio", type=float, default=0.0)
    parser.add_argument("--rtc-execution-horizon", type=int, default=RULES.execution_horizon)
    parser.add_argument("--rtc-max-weight", type=float, default=RULES.max_weight)
    parser.add_argument("--rtc-schedule", choices=SCHEDULES, default=RULES.schedule)
    parser.add_argument("--rtc-mode", choices=MODES, default=RULES.mode)
    parser.add_argument("--crossfade-s", type=float, default=0.1)
    parser.add_argument("--ensemble-decay", type=float, default=0.5)
    parser.add_argument("--num-steps", type=int, default=3, help="denoise steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="checkpoints/demo")
    parser.add_argument("--backend", default="pytorch")
    parser.add_argument("--device", default="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Run the cells that --out lacks; write, print and plot them all."""
    console = Console()
    study = _study(arguments)
    wanted = list(cells(arguments.latencies, arguments.speeds, arguments.blendings))
    done = _done(arguments.out, study)
    equipment = equip(study.policy)
    for cell in wanted:
        if cell.key in done:
            continue
        done[cell.key] = run_cell(study, cell, equipment)
        _write(arguments.out, study, done)
        found = done[cell.key]
        console.print(
            f"{cell.key}: {found['successes']}/{found['episodes']}, worst discontinuity "
            f"{found['jump_worst']:.3f} rad, jerk {found['jerk_rms']:.0f} rad/s^3"
        )
    for table in tables(done.values()):
        console.print(table)
    if arguments.plot is not None:
        plot(list(done.values()), arguments.plot, measure_of(study.settings()))
    return 0


def _study(arguments: argparse.Namespace) -> Study:
    rtc = ChunkingRules(
        execution_horizon=arguments.rtc_execution_horizon,
        max_weight=arguments.rtc_max_weight,
        schedule=arguments.rtc_schedule,
        mode=arguments.rtc_mode,
    )
    conditions = Conditions(
        num_steps=arguments.num_steps,
        seed=arguments.seed,
        crossfade_s=arguments.crossfade_s,
        ensemble_decay=arguments.ensemble_decay,
        rtc=rtc,
    )
    if arguments.episodes < 1:
        raise ValueError(f"--episodes wants at least 1, got {arguments.episodes}")
    unknown = sorted(set(arguments.blendings) - set(BLENDINGS))
    if unknown:
        raise ValueError(f"unknown blendings {unknown}; choose of: {', '.join(BLENDINGS)}")
    return Study(
        PolicyChoice(arguments.checkpoint, arguments.backend, arguments.device),
        conditions,
        arguments.episodes,
        arguments.kind,
        arguments.distribution,
        arguments.spike_ms,
        arguments.spike_ratio,
    )


def _done(path: Path, study: Study) -> dict[str, Any]:
    """Cells that `path` has already. ValueError where they are of another study."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["settings"] != study.settings():
        raise ValueError(f"{path} holds a study with other settings; name another file")
    kept: dict[str, Any] = found["cells"]
    return kept


def _write(path: Path, study: Study, done: Mapping[str, Any]) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "command": command_line(),
        "settings": study.settings(),
        "machine": machine_of(torch.device(study.policy.device)),
        "versions": versions(),
        "verdicts": verdicts(list(done.values())),
        "cells": done,
    }
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(path)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))

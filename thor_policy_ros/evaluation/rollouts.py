"""`thor-policy rollouts`: closed-loop success of a checkpoint on the simulated arm.

Episodes run in worker processes of one torch thread each; every episode follows from its
seed, so the number of workers changes nothing but the time taken. With --compare each backend
plays the same scenes with the same noise, under every --speed, and is judged in pairs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from thor_policy_ros.evaluation.closed_loop import (
    IMAGES,
    INSTRUCTIONS,
    Conditions,
    EpisodeRecord,
    run_episode,
)
from thor_policy_ros.evaluation.intervals import wilson_interval
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.sim.instructions import VERBS

FIRST_EPISODE_SEED = 1_000_000
"""Scenes are numbered from here. Training scenes have 31-bit random seeds of their own."""


@dataclass(frozen=True)
class PolicyChoice:
    """Which policy a worker loads."""

    checkpoint: str
    backend: str = "pytorch"
    device: str = "cpu"


def run_rollouts(
    policy: PolicyChoice, conditions: Conditions, episodes: int, workers: int
) -> Iterator[EpisodeRecord]:
    """Records of the episodes as they finish, in any order. An error in a worker is raised."""
    first = FIRST_EPISODE_SEED + conditions.seed * 100_000
    seeds = range(first, first + episodes)
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, episodes), _start_worker, (policy, conditions)) as pool:
        yield from pool.imap_unordered(_run_in_worker, seeds)


def summary(records: list[EpisodeRecord]) -> dict[str, Any]:
    """Success, its Wilson 95 % interval and what else happened, in all and by verb."""
    by_verb = {
        verb: _counts([r for r in records if r.verb == verb])
        for verb in VERBS
        if any(r.verb == verb for r in records)
    }
    return {**_counts(records), "by_verb": by_verb}


def _counts(records: list[EpisodeRecord]) -> dict[str, Any]:
    wins = [r for r in records if r.success]
    low, high = wilson_interval(len(wins), len(records))
    outcomes = sorted({r.outcome for r in records})
    durations = sorted(r.duration_s for r in wins)
    return {
        "episodes": len(records),
        "successes": len(wins),
        "success_rate": len(wins) / len(records) if records else 0.0,
        "wilson_95": [round(low, 4), round(high, 4)],
        "outcomes": {name: sum(r.outcome == name for r in records) for name in outcomes},
        "median_success_s": durations[len(durations) // 2] if durations else None,
        "refused_chunks": sum(r.refused_chunks for r in records),
    }


# Workers


@dataclass
class _Worker:
    """One process's policy and arm, made at its first episode: an error there is then raised
    to the caller, which a pool's initialiser would not do."""

    policy: PolicyChoice
    conditions: Conditions
    equipment: tuple[TabletopArm, PolicyRunner] | None = None


_worker: _Worker | None = None


def _start_worker(policy: PolicyChoice, conditions: Conditions) -> None:
    global _worker
    _worker = _Worker(policy, conditions)


def _run_in_worker(episode_seed: int) -> EpisodeRecord:
    assert _worker is not None
    if _worker.equipment is None:
        _worker.equipment = equip(_worker.policy)
    env, runner = _worker.equipment
    return run_episode(env, runner, _worker.conditions, episode_seed)


def equip(policy: PolicyChoice) -> tuple[TabletopArm, PolicyRunner]:
    import torch

    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

    torch.set_num_threads(1)
    env = TabletopArm()
    loaded = UnifiedPolicy(policy.checkpoint, policy.backend, device=policy.device)
    runner = PolicyRunner(loaded, env.limits, time.perf_counter, joint_names=env.joint_names)
    return env, runner


# Command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--episodes", type=_positive, default=200)
    parser.add_argument("--json", metavar="FILE", help="write settings and results; - for stdout")
    parser.add_argument(
        "--instruction", choices=INSTRUCTIONS, default="right",
        help="what the policy is told; success always means the object that was intended",
    )  # fmt: skip
    parser.add_argument("--images", choices=IMAGES, default="normal")
    parser.add_argument(
        "--speed", type=float, nargs="+", default=[0.12],
        help="of the objects, m/s; several of them with --compare",
    )  # fmt: skip
    parser.add_argument("--num-steps", type=_positive, default=3, help="denoise steps")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other scenes")
    parser.add_argument(
        "--latency-ms", type=float, default=0.0,
        help="simulated time from an observation to its chunk reaching the executor",
    )  # fmt: skip
    parser.add_argument(
        "--replan", type=_positive, default=1, help="policy ticks of 0.1 s between two chunks"
    )
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1)
    parser.add_argument("--checkpoint", default="checkpoints/demo")
    parser.add_argument("--backend", default="pytorch")
    parser.add_argument(
        "--compare", nargs="+", metavar="BACKEND", help="play the same scenes with these too"
    )
    parser.add_argument("--device", default="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Run the episodes with a progress bar, print a table, write JSON where asked."""
    if len(arguments.speed) > 1 and not arguments.compare:
        raise ValueError(f"one --speed without --compare, got {arguments.speed}")
    conditions = [
        Conditions(
            instruction=arguments.instruction,
            images=arguments.images,
            speed_m_s=speed,
            num_steps=arguments.num_steps,
            latency_ms=arguments.latency_ms,
            replan=arguments.replan,
            seed=arguments.seed,
        )
        for speed in arguments.speed
    ]
    with redirect_stdout(sys.stderr if arguments.json == "-" else sys.stdout):
        run_one = _run_paired if arguments.compare else _run_alone
        result = run_one(arguments, conditions, Console())
    _write(result, arguments.json)
    return 0


def _run_alone(
    arguments: argparse.Namespace, conditions: Sequence[Conditions], console: Console
) -> dict[str, Any]:
    policy = PolicyChoice(arguments.checkpoint, arguments.backend, arguments.device)
    started = time.perf_counter()
    records = _with_progress(policy, conditions[0], arguments, console)
    result = rollouts_report(policy, conditions[0], records, time.perf_counter() - started)
    console.print(report_table(result))
    return result


def _run_paired(
    arguments: argparse.Namespace, conditions: Sequence[Conditions], console: Console
) -> dict[str, Any]:
    from thor_policy_ros.evaluation.paired_success import paired_report, paired_table

    names = dict.fromkeys((arguments.backend, *arguments.compare))
    policies = [PolicyChoice(arguments.checkpoint, name, arguments.device) for name in names]
    if len(policies) < 2:
        raise ValueError(f"--compare wants another backend than {arguments.backend!r}")
    started = time.perf_counter()
    result = paired_report(
        policies,
        conditions,
        lambda policy, condition: _with_progress(policy, condition, arguments, console),
    )
    console.print(paired_table(result))
    return {**result, "wall_s": round(time.perf_counter() - started, 1)}


def rollouts_report(
    policy: PolicyChoice, conditions: Conditions, records: list[EpisodeRecord], seconds: float
) -> dict[str, Any]:
    """Settings, engine, versions, results and every episode, as plain JSON data."""
    return {
        "settings": {**asdict(conditions), "episodes": len(records)},
        "checkpoint": policy.checkpoint,
        **backend_facts(policy),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "mujoco", "numpy")},
        },
        "machine": platform.machine(),
        "wall_s": round(seconds, 1),
        **summary(records),
        "failures": [asdict(r) for r in records if not r.success][:50],
    }


def backend_facts(policy: PolicyChoice) -> dict[str, Any]:
    """The row of the registry, and where and how precisely it ran."""
    import torch

    from thor_policy_ros.backends.pytorch import checked_dtype
    from thor_policy_ros.backends.registry import spec_of

    return {
        "backend": asdict(spec_of(policy.backend)),
        "device": policy.device,
        "dtype": str(checked_dtype(None, torch.device(policy.device))).removeprefix("torch."),
    }


def _with_progress(
    policy: PolicyChoice,
    conditions: Conditions,
    arguments: argparse.Namespace,
    console: Console,
) -> list[EpisodeRecord]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    records: list[EpisodeRecord] = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting workers", total=arguments.episodes)
        for record in run_rollouts(policy, conditions, arguments.episodes, arguments.workers):
            records.append(record)
            solved = sum(r.success for r in records)
            progress.update(task, advance=1, description=f"{solved}/{len(records)} solved")
    return sorted(records, key=lambda r: r.seed)


def report_table(result: dict[str, Any]) -> Table:
    """Success by verb of one `rollouts_report`."""
    settings = result["settings"]
    table = Table(
        title=f"{settings['instruction']} instruction, {settings['images']} images, "
        f"{settings['speed_m_s']:g} m/s, {settings['num_steps']} steps, "
        f"{settings['latency_ms']:g} ms latency ({result['backend']['name']})"
    )
    for name in ("", "success", "95 % interval", "outcomes", "median time"):
        table.add_column(name)
    for name, counts in (("all", result), *result["by_verb"].items()):
        low, high = counts["wilson_95"]
        seconds = counts["median_success_s"]
        table.add_row(
            name,
            f"{counts['successes']}/{counts['episodes']} = {counts['success_rate']:.1%}",
            f"{low:.1%} to {high:.1%}",
            ", ".join(f"{n} {outcome}" for outcome, n in counts["outcomes"].items()),
            "" if seconds is None else f"{seconds:.1f} s",
        )
    return table


def _write(result: dict[str, Any], destination: str | None) -> None:
    text = json.dumps(result, indent=2)
    if destination == "-":
        print(text)
    elif destination:
        path = Path(destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"wanted at least 1, got {number}")
    return number

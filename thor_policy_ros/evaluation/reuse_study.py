"""What reusing the prefix costs and saves, beside simply continuing the chunk in hand.

Every cell plays the same scenes with the same noise: a way to use the time between refills, on
a device of given stage times, with targets at rest or moving. Episodes are appended to --log as
they end, in rounds over all cells, so that a run may be cut off, continued and extended; --json
and --plot are made of the log. All times are simulated: how fast this machine is changes
nothing but the time taken.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from thor_policy_ros.evaluation.closed_loop import CONTROL_DT_S, Conditions, run_episode
from thor_policy_ros.evaluation.motion_trace import MotionTrace
from thor_policy_ros.evaluation.reaction import measure_reaction
from thor_policy_ros.evaluation.result_files import command_line, versions, write_json
from thor_policy_ros.evaluation.reuse_cells import DEVICES, Cell, cells
from thor_policy_ros.evaluation.reuse_plot import plot_study
from thor_policy_ros.evaluation.reuse_report import study_report, study_tables
from thor_policy_ros.evaluation.rollouts import FIRST_EPISODE_SEED
from thor_policy_ros.evaluation.simulated_device import SimulatedDevice
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.sim.arm_env import TICK_S, TabletopArm
from thor_policy_ros.types import Observation, StepResult

ROUND = 10
"""Episodes of a cell before the next cell has its turn."""
WARM_UP_TICKS = 12
SEEDS_FROM = FIRST_EPISODE_SEED + 50_000

Record = dict[str, Any]


class Frames:
    """Counts the decisions of an episode, and says how long each frame took."""

    def __init__(self) -> None:
        self.decisions: Counter[str] = Counter()

    def takes_s(self, result: StepResult) -> float:
        """By the clock of the simulated device."""
        self.decisions[spoken(result.decision)] += 1
        return result.timing.total_ms / 1e3


def spoken(decision: str) -> str:
    """A decision without cameras and numbers: 'refill: image changed', 'reuse, fewer steps'."""
    said, _, details = decision.partition(" (")
    return ":".join(said.split(":")[:2]) + (", fewer steps" if " step" in details else "")


class Bench:
    """One arm and one policy, which play the episodes of all cells."""

    def __init__(self, checkpoint: str, backend: str, num_steps: int) -> None:
        self._env = TabletopArm()
        self._policy = UnifiedPolicy(checkpoint, backend, device="cpu")
        self._num_steps = num_steps
        self._arm = np.isfinite(self._env.limits.velocity)

    def play(self, cell: Cell, seed: int) -> Record:
        """One episode of a cell, as a line of the log."""
        spec = replace(self._policy.spec, reuse_every=cell.way.every)
        device = SimulatedDevice(self._policy, DEVICES[cell.device], spec)
        env, frames, trace = self._env, Frames(), MotionTrace(CONTROL_DT_S, self._arm)
        runner = PolicyRunner(device, env.limits, device.clock, joint_names=env.joint_names)
        runner.rules = cell.way.rules
        conditions = Conditions(
            speed_m_s=cell.speed_m_s, num_steps=self._num_steps, indexing=cell.way.indexing
        )
        self._warm_up(runner)
        device.begin(seed)
        outcome: dict[str, Any]
        if cell.kind == "reaction":
            every = cell.way.every
            outcome = asdict(
                measure_reaction(env, runner, conditions, seed, every, trace, frames.takes_s)
            )
        else:
            played = run_episode(env, runner, conditions, seed, trace, frames.takes_s)
            outcome = {"success": played.success, **asdict(played)}
        return {
            "cell": cell.name,
            **outcome,
            "simulated_s": env.time_s,
            "motion": dict(trace.sums()),
            "device": device.use.as_dict(),
            "decisions": dict(frames.decisions),
        }

    def _warm_up(self, runner: PolicyRunner) -> None:
        """A robot that runs knows what its frames take: 'deadline' begins with that."""
        if runner.rules.mode != "deadline":
            return
        self._env.reset(0, 0.0)
        images, state = self._env.images(), self._env.state()
        for tick in range(WARM_UP_TICKS):
            now_s = tick * TICK_S
            observation = Observation(images, state, self._env.instruction, now_s)
            runner.step(observation, now_s, tick, self._num_steps, seed=tick)


def wanted(
    chosen: list[Cell], episodes: int, done: set[tuple[str, int]]
) -> Iterator[tuple[Cell, int]]:
    """What is still to be played, in rounds, so that at any time all cells know as much."""
    for first in range(0, episodes, ROUND):
        for cell in chosen:
            for number in range(first, min(first + ROUND, episodes)):
                if (cell.name, SEEDS_FROM + number) not in done:
                    yield cell, SEEDS_FROM + number


def read_log(path: Path) -> list[Record]:
    """The episodes of a log; a last line that was cut off does not count."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--episodes", type=int, default=60, help="of each cell")
    parser.add_argument(
        "--log", type=Path, default=Path("out/reuse_study.jsonl"),
        help="episodes played so far; those are not played again",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, help="play no more episodes after so long")
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--json", metavar="FILE", help="figures of the log; - for stdout")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--num-steps", type=int, default=3, help="denoise steps")
    parser.add_argument("--checkpoint", default="checkpoints/demo")
    parser.add_argument("--backend", default="pytorch")


def run(arguments: argparse.Namespace) -> int:
    """Play what the log lacks, then report it."""
    import torch

    torch.set_num_threads(1)
    chosen = [cell for cell in cells() if arguments.only in cell.name]
    if not chosen or arguments.episodes < 1:
        raise ValueError(
            f"wanted cells to play and at least 1 episode; got {len(chosen)} cells that hold"
            f" {arguments.only!r} and {arguments.episodes} episodes"
        )
    console = Console(stderr=arguments.json == "-")
    _play(chosen, arguments, console)
    end = SEEDS_FROM + arguments.episodes
    records = [record for record in read_log(arguments.log) if record["seed"] < end]
    settings = {
        "command": command_line(),
        "checkpoint": arguments.checkpoint,
        "backend": arguments.backend,
        "num_steps": arguments.num_steps,
        "versions": versions(),
    }
    report = study_report(chosen, records, settings)
    for table in study_tables(report):
        console.print(table)
    write_json(report, arguments.json)
    if arguments.plot is not None:
        plot_study(report, arguments.plot)
    return 0


def _play(chosen: list[Cell], arguments: argparse.Namespace, console: Console) -> None:
    done = {(record["cell"], record["seed"]) for record in read_log(arguments.log)}
    todo = list(wanted(chosen, arguments.episodes, done))
    if not todo:
        return
    bench = Bench(arguments.checkpoint, arguments.backend, arguments.num_steps)
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    begun_s = time.perf_counter()
    with arguments.log.open("a") as log:
        for number, (cell, seed) in enumerate(todo):
            if arguments.seconds and time.perf_counter() - begun_s > arguments.seconds:
                console.print(f"{len(todo) - number} episodes are left; run it again for them")
                return
            log.write(json.dumps(bench.play(cell, seed)) + "\n")
            log.flush()
            if (number + 1) % ROUND == 0:
                spent_s = time.perf_counter() - begun_s
                console.print(f"{number + 1}/{len(todo)} episodes, {spent_s:.0f} s: {cell.name}")

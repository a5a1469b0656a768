"""Two backends on the same scenes with the same noise: does one solve what the other does not?

`thor-policy rollouts --backend A --compare B C`. Every episode is played once by each backend, so
that the difference is judged within pairs (McNemar's exact test), not by two rates that scenes
make vary. Beside it stands how far the engines' commands are apart on equal inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from rich.table import Table

from thor_policy_ros.evaluation.closed_loop import (
    Conditions,
    EpisodeRecord,
    noise_seed,
    run_episode,
)
from thor_policy_ros.evaluation.intervals import wilson_interval
from thor_policy_ros.evaluation.pairs import pairs
from thor_policy_ros.evaluation.result_files import command_line, figure_table, versions
from thor_policy_ros.evaluation.rollouts import (
    FIRST_EPISODE_SEED,
    PolicyChoice,
    backend_facts,
    summary,
)
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.types import ModelInputs, Observation

DIFFERENCE_EPISODES = 3
"""Whose observations the engines' commands are compared on."""

Play = Callable[[PolicyChoice, Conditions], list[EpisodeRecord]]
"""All episodes of the conditions with this policy, sorted by seed."""


def paired_report(
    policies: Sequence[PolicyChoice], conditions: Sequence[Conditions], play: Play
) -> dict[str, Any]:
    """The first policy against each of the others, under each of the conditions."""
    first, *others = policies
    facts = [backend_facts(policy) for policy in policies]  # an unknown name is told at once
    rounds = []
    for condition in conditions:
        records = {policy.backend: play(policy, condition) for policy in policies}
        rounds.append(
            {
                "settings": asdict(condition),
                "success": {name: success_of(found) for name, found in records.items()},
                "paired": [pairs(records, first.backend, other.backend) for other in others],
            }
        )
    return {
        "command": command_line(),
        "checkpoint": first.checkpoint,
        "backends": facts,
        "versions": versions(),
        "engine_difference": [engine_difference(first, other, conditions[0]) for other in others],
        "rounds": rounds,
    }


def success_of(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """won: by scene, in the order of their seeds."""
    return {
        **summary(list(records)),
        "first_seed": records[0].seed,
        "won": "".join("1" if record.success else "0" for record in records),
    }


def engine_difference(
    first: PolicyChoice, second: PolicyChoice, conditions: Conditions
) -> dict[str, Any]:
    """Largest difference of a command, robot units, on the observations that the first policy
    meets in closed loop: equal inputs and noise, a fresh prefix for both.
    """
    with (
        UnifiedPolicy(first.checkpoint, first.backend, device=first.device) as ours,
        UnifiedPolicy(second.checkpoint, second.backend, device=second.device) as theirs,
    ):
        seen = observations_met(ours, conditions)
        largest = 0.0
        for index, observation in enumerate(seen):
            seed = noise_seed(conditions, FIRST_EPISODE_SEED, index)
            one, other = (
                policy.infer(observation, conditions.num_steps, seed=seed).actions
                for policy in (ours, theirs)
            )
            largest = max(largest, float(np.abs(one - other).max()))
    return {
        "first": first.backend,
        "second": second.backend,
        "observations": len(seen),
        "max_abs_difference": largest,
    }


def observations_met(policy: UnifiedPolicy, conditions: Conditions) -> list[Observation]:
    """Every observation that the policy was given in DIFFERENCE_EPISODES episodes."""
    env, watching = TabletopArm(), _Watching(policy)
    runner = PolicyRunner(watching, env.limits, lambda: 0.0, joint_names=env.joint_names)
    first = FIRST_EPISODE_SEED + conditions.seed * 100_000
    for seed in range(first, first + DIFFERENCE_EPISODES):
        run_episode(env, runner, replace(conditions, instruction="right"), seed)
    return watching.seen


class _Watching:
    """A policy that keeps what it is shown."""

    def __init__(self, policy: UnifiedPolicy) -> None:
        self._policy = policy
        self.seen: list[Observation] = []

    def preprocess(self, observation: Observation) -> ModelInputs:
        self.seen.append(observation)
        return self._policy.preprocess(observation)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


def paired_table(report: dict[str, Any]) -> Table:
    """Speed by speed: each backend's success, then each pair."""
    table = figure_table(
        ("m/s", "backend", "success", "95 % interval"),
        ("only this", "only first", "p"),
        title=f"{report['checkpoint']}: same scenes, same noise",
    )
    for played in report["rounds"]:
        found = {pair["second"]: pair for pair in played["paired"]}
        for name, counts in played["success"].items():
            low, high = wilson_interval(counts["successes"], counts["episodes"])
            pair = found.get(name)
            table.add_row(
                f"{played['settings']['speed_m_s']:g}",
                name,
                f"{counts['successes']}/{counts['episodes']}",
                f"{low:.1%} to {high:.1%}",
                *((str(pair["only_by_second"]), str(pair["only_by_first"])) if pair else ("", "")),
                f"{pair['probability']:.3g}" if pair else "",
            )
    return table

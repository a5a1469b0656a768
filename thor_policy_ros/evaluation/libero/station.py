"""Where episodes are played: simulators that are replaced when they are lost, beside one policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thor_policy_ros.evaluation.libero.episode import BASE, WRIST, Infer, play_episode
from thor_policy_ros.evaluation.libero.settings import (
    LOST,
    Episode,
    EpisodeRecord,
    Played,
    Settings,
    episode_noise,
)
from thor_policy_ros.evaluation.libero.simulator_process import SimulatorLostError, SimulatorProcess
from thor_policy_ros.evaluation.verified_policy import PolicyChoice, open_policy, open_verified
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.runtime.verification import verification_json
from thor_policy_ros.serving.inference_worker import Answer, InferenceWorker
from thor_policy_ros.serving.served_policy import LocalPolicy, Request
from thor_policy_ros.sim.libero.wire import ACTION_DIM, Task
from thor_policy_ros.types import Observation, Verification

FILMED = ("failures", "all", "none")
STATE_DIM = 8
TOLD = ("cosine", "max_abs_error", "observations")
"""Of a verification that passed, in an evaluation's summary."""


@dataclass(frozen=True)
class Plan:
    """What a process needs to play episodes with one backend; plain data.

    python: of the simulator's environment. logs: folder for what simulators print.
    environments: simulators beside one policy. batch: the most of them that share one pass.
    threads: of torch on a CPU, so that sums split alike everywhere. timeouts: see
    `SimulatorProcess`.
    """

    choice: PolicyChoice
    settings: Settings
    python: Path
    logs: Path
    environments: int = 1
    batch: int = 1
    threads: int = 1
    verify: bool = True
    filmed: str = "failures"
    timeout_s: float = 60.0
    start_timeout_s: float = 600.0


class SharedPolicy:
    """The policy of a plan in a thread of its own, for several episodes at once.

    Loading raises what is wrong with checkpoint, config or backend. facts: what the policy says
    of itself, and under `verified` how it compared with the reference, None where the plan did
    not ask.
    """

    def __init__(self, plan: Plan) -> None:
        self._settings = plan.settings
        compared: list[Verification] = []
        self._worker = InferenceWorker(
            lambda: _opened(plan, compared), max(1, plan.environments), time.perf_counter
        )
        try:
            policy = self._worker.opened.result()
            check_robot(policy.config, plan.settings)
        except BaseException:
            self.close()
            raise
        verified = {n: verification_json(compared[0])[n] for n in TOLD} if compared else None
        self.facts: dict[str, Any] = {**policy.facts(), "verified": verified}
        model = policy.config.model
        self._noise_shape = (model.action_horizon, model.action_dim)

    def infer_for(self, episode: Episode) -> Infer:
        """Its chunks: noise follows from the episode and the number of the chunk."""

        def infer(observation: Observation, chunk: int) -> Answer:
            noise = episode_noise(self._settings, episode, chunk, self._noise_shape)
            request = Request(observation, self._settings.num_steps, noise)
            return self._worker.submit(request).result()

        return infer

    def close(self) -> None:
        self._worker.end(timeout_s=60.0)


class Station:
    """One simulator after the other. One thread plays; any other may close.

    start: a new simulator. A simulator that is lost costs its episode, and is replaced.
    """

    def __init__(
        self, start: Callable[[], SimulatorProcess], settings: Settings, filmed: str
    ) -> None:
        self._start = start
        self._settings = settings
        self._filmed = filmed
        self._simulator: SimulatorProcess | None = None
        self._closed = False

    def simulator(self) -> SimulatorProcess:
        """The one that runs, or a new one. SimulatorLostError, SimulatorRefusedError."""
        if self._simulator is None:
            self._simulator = self._start()
        return self._simulator

    def tasks(self) -> tuple[Task, ...]:
        return self.simulator().tasks

    def play(self, episode: Episode, infer: Infer) -> Played:
        try:
            simulator = self.simulator()
            task = simulator.tasks[episode.task]
            filmed = self._filmed != "none"
            played = play_episode(simulator, episode, task, self._settings, infer, filmed)
        except SimulatorLostError as error:
            self.close()
            return Played(
                EpisodeRecord(episode.backend, episode.task, episode.trial, LOST, reason=str(error))
            )
        if self._filmed == "failures" and played.record.success:
            return Played(played.record)
        return played

    def close(self) -> None:
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            simulator.close()


def stations_of(plan: Plan, label: str = "") -> list[Station]:
    """As many as the plan has environments; none is started yet. label: of their logs."""
    plan.logs.mkdir(parents=True, exist_ok=True)

    def starting(number: int) -> Callable[[], SimulatorProcess]:
        log = plan.logs / f"simulator_{label}{number}.log"
        return lambda: SimulatorProcess(
            plan.python, plan.settings.suite, log, plan.timeout_s, plan.start_timeout_s
        )

    return [
        Station(starting(number), plan.settings, plan.filmed) for number in range(plan.environments)
    ]


def check_robot(config: PolicyConfig, settings: Settings) -> None:
    """ValueError for a policy that is none for LIBERO's robot."""
    missing = [slot for slot in (BASE, WRIST) if slot not in config.camera_slots]
    if missing or config.state_dim != STATE_DIM or config.action_dim != ACTION_DIM:
        raise ValueError(
            f"config {config.name!r} has cameras {list(config.camera_slots)}, a state of"
            f" {config.state_dim} and actions of {config.action_dim}; LIBERO's robot wants"
            f" {BASE} and {WRIST}, {STATE_DIM} and {ACTION_DIM}, as pi05_libero has"
        )
    if settings.replan > config.model.action_horizon:
        raise ValueError(
            f"wanted to execute {settings.replan} actions of a chunk, which has"
            f" {config.model.action_horizon}; lower --replan"
        )


def _opened(plan: Plan, compared: list[Verification]) -> LocalPolicy:
    """In the policy's thread. compared: gets what the verification found."""
    import torch

    torch.set_num_threads(plan.threads)
    if not plan.verify:
        return LocalPolicy(open_policy(plan.choice), plan.batch)
    policy, found = open_verified(plan.choice)
    compared.append(found)
    return LocalPolicy(policy, plan.batch)

"""An evaluation from its options to its summary: journal, crew, progress, films."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thor_policy_ros.backends.registry import spec_of
from thor_policy_ros.evaluation.libero import options
from thor_policy_ros.evaluation.libero.crew import Crew, LocalCrew, play_all
from thor_policy_ros.evaluation.libero.episode_queue import EpisodeQueue
from thor_policy_ros.evaluation.libero.films import write_film
from thor_policy_ros.evaluation.libero.journal import Journal
from thor_policy_ros.evaluation.libero.report import evaluation_summary
from thor_policy_ros.evaluation.libero.settings import (
    Episode,
    Played,
    all_episodes,
)
from thor_policy_ros.evaluation.libero.simulator_process import checked_python, played_tasks
from thor_policy_ros.evaluation.libero.station import Plan, SharedPolicy, Station, stations_of
from thor_policy_ros.evaluation.result_files import command_line, versions, write_json
from thor_policy_ros.evaluation.verified_policy import PolicyChoice
from thor_policy_ros.model.json_fields import read_object
from thor_policy_ros.sim.libero.wire import Task

POLICIES = "policies.json"
"""In the evaluation's folder: what each backend said of itself when it was loaded."""


@dataclass(frozen=True)
class _Simulators:
    """Stations of this process, and what the simulator says that it is."""

    stations: Sequence[Station]
    name: str
    tasks: Sequence[Task]


def evaluate(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Play what is not in the journal yet; returns the summary, which is written to the folder.

    ValueError and OSError for what a user got wrong; VerificationFailedError;
    SimulatorLostError, ActorsLostError.
    """
    backends = options.backends_of(arguments)
    workers = options.workers_of(arguments)
    if arguments.checkpoint is None:
        raise ValueError("--checkpoint is needed: the folder of a policy for LIBERO's robot")
    folder = arguments.out or Path("out/libero") / arguments.suite
    plans = {name: _plan(arguments, name, folder, workers) for name in backends}
    wanted = options.journal_settings(arguments, plans[backends[0]].settings)
    journal = Journal(folder, wanted, arguments.retry_lost)
    try:
        with _simulators(plans[backends[0]]) as simulators:
            numbers = played_tasks(simulators.tasks, arguments.tasks, arguments.episodes)
            episodes = {n: all_episodes(n, numbers, arguments.episodes) for n in backends}
            facts = _play(arguments, plans, episodes, simulators, journal, console)
        asked = {episode for one in episodes.values() for episode in one}
        records = [record for record in journal.records if record.episode in asked]
    finally:
        journal.close()
    summary = {
        "command": command_line(),
        "settings": wanted,
        "protocol": options.deviations(arguments),
        "simulator": simulators.name,
        "versions": versions(),
        "policies": facts,
        **evaluation_summary(records, simulators.tasks, backends),
    }
    write_json(summary, str(folder / "summary.json"))
    return summary


def _plan(arguments: argparse.Namespace, backend: str, folder: Path, workers: int | None) -> Plan:
    spec_of(backend)  # an unknown name is told before anything is loaded
    return Plan(
        choice=PolicyChoice(
            arguments.checkpoint,
            backend,
            arguments.config,
            arguments.tokenizer,
            arguments.device,
            arguments.dtype,
        ),
        settings=options.settings_of(arguments),
        python=checked_python(Path(arguments.environment).expanduser().absolute()),
        logs=folder.absolute() / "logs",
        environments=arguments.environments if workers is None else workers,
        batch=arguments.batch,
        threads=arguments.threads,
        verify=not arguments.no_verify,
        filmed=arguments.films,
        timeout_s=float(arguments.timeout),
    )


@contextmanager
def _simulators(plan: Plan) -> Iterator[_Simulators]:
    """The first one is started, to say which tasks there are."""
    stations = stations_of(plan)
    try:
        first = stations[0].simulator()
        yield _Simulators(stations, first.name, first.tasks)
    finally:
        for station in stations:
            station.close()


def _play(
    arguments: argparse.Namespace,
    plans: dict[str, Plan],
    episodes: dict[str, list[Episode]],
    simulators: _Simulators,
    journal: Journal,
    console: Console,
) -> dict[str, Any]:
    """Backend by backend, so that one at a time is in memory. Returns what each said of itself,
    now or when it last played into this folder."""
    told = journal.path.with_name(POLICIES)
    facts: dict[str, Any] = dict(read_object(told)) if told.is_file() else {}
    left = {n: [e for e in found if not journal.holds(e)] for n, found in episodes.items()}
    total, done = (sum(map(len, which.values())) for which in (episodes, left))
    with _progress(console, total, total - done) as progress, _cluster(arguments):
        for name, plan in plans.items():
            if not left[name]:
                continue
            progress.begin(name)
            crew, facts[name] = _crew(arguments, plan, simulators)
            write_json(facts, str(told))
            try:
                play_all(crew, EpisodeQueue(left[name]), _finishing(journal, progress, plan))
            finally:
                crew.close()
            if crew.replaced:
                facts[name]["actors_replaced"] = crew.replaced
                write_json(facts, str(told))
                console.print(
                    f"{name}: {crew.replaced} of Ray's actors were lost and replaced; their"
                    " episodes were played again",
                    markup=False,
                )
    return {name: facts[name] for name in plans if name in facts}


def _crew(
    arguments: argparse.Namespace, plan: Plan, simulators: _Simulators
) -> tuple[Crew, dict[str, Any]]:
    if options.workers_of(arguments) is not None:
        policy = SharedPolicy(plan)
        return LocalCrew(simulators.stations, policy), policy.facts
    from thor_policy_ros.evaluation.libero.ray_crew import RayCrew, cluster_gpus

    for station in simulators.stations:
        station.close()  # the actors have their own
    gpus = cluster_gpus()
    on_gpu = gpus > 0 and not str(arguments.device or "cuda").startswith("cpu")
    crew = RayCrew(plan, arguments.actors or (gpus if on_gpu else 1), 1.0 if on_gpu else 0.0)
    facts = {k: v for k, v in crew.facts[0].items() if k != "pid"}
    return crew, {**facts, "actors": len(crew.facts), "environments": plan.environments}


@contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator[None]:
    if options.workers_of(arguments) is not None:
        yield
        return
    from thor_policy_ros.evaluation.libero.ray_crew import start_ray, stop_ray

    start_ray(arguments.ray_address, arguments.actors or 1)
    try:
        yield
    finally:
        stop_ray()


def _finishing(journal: Journal, progress: _Bar, plan: Plan) -> Any:
    def finish(played: Played) -> None:
        film = write_film(played, plan.logs.parent / "films")
        journal.add(played.record)
        progress.add(played, film)

    return finish


class _Bar:
    """Episodes done of all, how many of this run were solved, and the time left."""

    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=total, completed=done)
        self._solved = self._played = self._lost = 0
        self._backend = ""

    def begin(self, backend: str) -> None:
        self._backend = backend
        self._progress.update(self._task, description=f"{backend}: loading")

    def add(self, played: Played, film: Path | None) -> None:
        record = played.record
        self._lost += not record.played
        self._played += record.played
        self._solved += record.success
        said = f"{self._backend}: {self._solved}/{self._played} solved"
        if self._lost:
            said += f", {self._lost} lost"
        self._progress.update(self._task, advance=1, description=said)
        if record.reason:
            self._progress.console.print(f"{record.episode.name}: {record.outcome}: "
                                         f"{record.reason}", markup=False)  # fmt: skip


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[_Bar]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, total, done)

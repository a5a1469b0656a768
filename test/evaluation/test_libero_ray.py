"""`thor-policy libero --workers ray` on one machine: the same numbers, and a killed actor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_simulator import write_environment
from support.libero_checkpoint import write_libero_checkpoint

from thor_policy_ros.evaluation.libero.crew import LocalCrew, play_all
from thor_policy_ros.evaluation.libero.episode_queue import EpisodeQueue
from thor_policy_ros.evaluation.libero.ray_crew import RayCrew, start_ray, stop_ray
from thor_policy_ros.evaluation.libero.settings import EpisodeRecord, Settings, all_episodes
from thor_policy_ros.evaluation.libero.station import Plan, SharedPolicy, stations_of
from thor_policy_ros.evaluation.verified_policy import PolicyChoice

pytest.importorskip("ray", reason="Ray is an extra: pip install -r requirements/ray.txt")

EPISODES = all_episodes("pytorch", [0, 1, 2], 3)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_ray(None, actors=2)
    yield
    stop_ray()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("ray")
    return Plan(
        PolicyChoice(write_libero_checkpoint(folder / "checkpoint"), "pytorch", device="cpu"),
        Settings("libero_spatial", max_steps=20, num_steps=1),
        write_environment(folder / "simulator") / "bin" / "python",
        folder / "logs",
        environments=2,
        verify=False,
        filmed="none",
    )


@pytest.fixture(scope="module")
def alone(plan: Plan) -> dict[Any, Any]:
    """What one process finds."""
    stations, policy = stations_of(plan, "alone_"), SharedPolicy(plan)
    crew, records = LocalCrew(stations, policy), []
    try:
        play_all(crew, EpisodeQueue(EPISODES), lambda played: records.append(played.record))
    finally:
        crew.close()
        for station in stations:
            station.close()
    return essence(records)


def essence(records: list[EpisodeRecord]) -> dict[Any, Any]:
    assert len({r.episode for r in records}) == len(records), "an episode came twice"
    return {r.episode: (r.outcome, r.steps, r.actions) for r in records}


def test_two_actors_find_what_one_process_finds(plan: Plan, alone: dict[Any, Any]) -> None:
    crew = RayCrew(plan, actors=2, gpus=0)
    records: list[EpisodeRecord] = []
    try:
        assert len({facts["pid"] for facts in crew.facts} | {os.getpid()}) == 3
        play_all(crew, EpisodeQueue(EPISODES), lambda played: records.append(played.record))
    finally:
        crew.close()
    assert essence(records) == alone and crew.replaced == 0


def test_a_killed_actor_is_replaced_and_its_episodes_played_again(
    plan: Plan, alone: dict[Any, Any]
) -> None:
    crew = RayCrew(plan, actors=2, gpus=0)
    records: list[EpisodeRecord] = []

    def finish(played: Any) -> None:
        records.append(played.record)
        if len(records) == 2:
            os.kill(crew.facts[0]["pid"], signal.SIGKILL)

    try:
        play_all(crew, EpisodeQueue(EPISODES), finish)
    finally:
        crew.close()
    assert crew.replaced >= 1  # Ray also gives up on one that a busy machine keeps waiting
    assert essence(records) == alone


def test_what_is_wrong_with_a_policy_is_said_as_without_ray(plan: Plan, tmp_path: Path) -> None:
    import dataclasses

    missing = PolicyChoice(tmp_path / "nothing", "pytorch", device="cpu")
    with pytest.raises(FileNotFoundError, match="wanted a checkpoint folder"):
        RayCrew(dataclasses.replace(plan, choice=missing), actors=1, gpus=0)

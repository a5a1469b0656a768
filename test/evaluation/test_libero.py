"""`thor-policy libero` with a real simulator's process that needs nothing and crashes when told."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_simulator import read_log, write_environment
from support.libero_checkpoint import TOY_LIBERO, write_libero_checkpoint
from support.toy_checkpoint import toy_observation

from thor_policy_ros.backends.pipelined import PipelinedBackend
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.intervals import wilson_interval
from thor_policy_ros.evaluation.libero.settings import Episode, Settings
from thor_policy_ros.evaluation.libero.station import Plan, SharedPolicy
from thor_policy_ros.evaluation.verified_policy import PolicyChoice
from thor_policy_ros.serving.inference_worker import Answer

TASKS = ("--tasks", "0", "1")
SHORT = ("--max-steps", "20", "--num-steps", "1", "--device", "cpu", "--no-verify",
         "--films", "none")  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_libero_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def whole_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an evaluation that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    honest = write_environment(folder / "simulator")
    assert main(command(checkpoint, honest, folder / "out")) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def whole(whole_folder: Path) -> dict[Any, Any]:
    """What it finds."""
    return essence(lines(whole_folder))


@pytest.fixture
def simulator(tmp_path: Path) -> Path:
    return write_environment(tmp_path / "simulator")


def command(checkpoint: Path, simulator: Path, out: Path, *more: str) -> list[str]:
    places = ("--checkpoint", checkpoint, "--environment", simulator, "--out", out)
    return ["libero", *map(str, places), *TASKS, "--episodes", "3", *SHORT, *more]


def verified_command(checkpoint: Path, simulator: Path, out: Path, *more: str) -> list[str]:
    words = [word for word in command(checkpoint, simulator, out, *more) if word != "--no-verify"]
    return [*words, "--tasks", "0", "--episodes", "1"]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()][1:]


def essence(records: Sequence[dict[str, Any]]) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    """What follows from seeds alone."""
    return {
        (r["backend"], r["task"], r["trial"]): (r["outcome"], r["steps"], r["actions"])
        for r in records
    }


def digest(out: Path) -> str:
    found = json.loads((out / "summary.json").read_text())["backends"]["pytorch"]["digest"]
    assert isinstance(found, str)
    return found


def test_an_evaluation_from_the_command_line(
    checkpoint: Path, simulator: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    backends = ("--backend", "pytorch_pipelined", "--compare", "pytorch", "--films", "failures")
    assert main(command(checkpoint, simulator, out, *backends)) == 0
    records = lines(out)
    assert len(records) == 2 * 2 * 3
    outcomes = {(r["task"], r["outcome"]) for r in records}
    assert {(0, "success"), (1, "failure")} <= outcomes and (1, "success") not in outcomes
    summary = json.loads((out / "summary.json").read_text())
    for name, counts in summary["backends"].items():
        mine = [r for r in records if r["backend"] == name]
        wins = sum(r["outcome"] == "success" for r in mine)
        assert (counts["successes"], counts["played"]) == (wins, 6)
        assert counts["wilson_95"] == pytest.approx(wilson_interval(wins, 6), abs=1e-4)
        assert [t["language"] for t in counts["tasks"]] == ["go near", "go far"]
        assert counts["infer_ms"]["chunks"] == sum(len(r["infer_ms"]) for r in mine) > 0
        assert 0 < counts["infer_ms"]["p50"] <= counts["infer_ms"]["max"]
    (pair,) = summary["paired"]
    assert (pair["first"], pair["second"]) == ("pytorch", "pytorch_pipelined")
    assert pair["scenes"] == 6 and pair["probability"] == 1.0
    assert pair["same_actions"] == 6, "the same engine on the same scenes with the same noise"
    assert summary["simulator"] == "fake 1.0"
    assert [facts["verified"] for facts in summary["policies"].values()] == [None, None]
    assert summary["protocol"] == {"benchmark": False, "other_than_openpi": {"max_steps": 20}}
    films = sorted(p.name for p in (out / "films").iterdir())
    failures = sum(r["outcome"] == "failure" for r in records)
    assert len(films) == failures and "pytorch_task_01_trial_00_failure.mp4" in films
    assert all((out / "films" / name).stat().st_size > 500 for name in films)


def test_backends_are_held_to_the_reference_before_they_play(
    checkpoint: Path, simulator: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = verified_command(checkpoint, simulator, out, "--backend", "fused", "--compare",
                             "pytorch")  # fmt: skip
    for _ in range(2):  # the second time nothing is loaded, and what was said is still known
        assert main(words) == 0
        told = json.loads((out / "summary.json").read_text())["policies"]
        assert list(told) == ["pytorch", "fused"]
        for facts in told.values():
            assert 0.99999 < facts["verified"]["cosine"] <= 1.000001
            assert facts["verified"]["observations"] == 3
        assert told["fused"]["verified"]["max_abs_error"] > 0, "another engine rounds otherwise"


def test_a_backend_that_is_not_the_policy_plays_nothing(
    checkpoint: Path,
    simulator: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    denoise = PipelinedBackend.denoise

    def wrong(*given: Any, **named: Any) -> Any:
        return denoise(*given, **named)[::-1].copy()  # rows of the chunk in another order

    monkeypatch.setattr(PipelinedBackend, "denoise", wrong)
    words = verified_command(checkpoint, simulator, tmp_path / "out")
    assert main([*words, "--backend", "pytorch_pipelined"]) == 1
    assert "stopped: backend 'pytorch_pipelined': actions: cosine" in capsys.readouterr().err
    assert lines(tmp_path / "out") == []


def test_another_seed_is_seen_in_the_actions(
    checkpoint: Path, simulator: Path, tmp_path: Path, whole: dict[Any, Any], whole_folder: Path
) -> None:
    out = tmp_path / "out"
    assert main(command(checkpoint, simulator, out, "--seed", "8")) == 0
    other = {actions for _, _, actions in whole.values()}
    assert len(other) == 6 and not {r["actions"] for r in lines(out)} & other
    assert digest(out) != digest(whole_folder)


def test_the_number_of_simulators_changes_no_result(
    checkpoint: Path, simulator: Path, tmp_path: Path, whole: dict[Any, Any], whole_folder: Path
) -> None:
    out = tmp_path / "out"
    assert main(command(checkpoint, simulator, out, "--workers", "3")) == 0
    assert essence(lines(out)) == whole
    assert digest(out) == digest(whole_folder)


@pytest.mark.parametrize("kind", ["crash", "hang", "fail", "garble"])
def test_a_lost_simulator_costs_one_episode(
    checkpoint: Path, tmp_path: Path, whole: dict[Any, Any], kind: str
) -> None:
    faulty = write_environment(tmp_path / "faulty", {"0/1": kind})
    out = tmp_path / "out"
    hurry = ("--timeout", "1") if kind == "hang" else ()
    assert main(command(checkpoint, faulty, out, *hurry)) == 0
    expected, found = dict(whole), essence(lines(out))
    lost = ("pytorch", 0, 1)
    assert found.pop(lost)[0] == "simulator_lost" and expected.pop(lost)
    assert found == expected, "the others are what they would have been"
    (record,) = [r for r in lines(out) if r["outcome"] == "simulator_lost"]
    said = {
        "crash": "ended during act with status 77; the end of its log",
        "hang": "hung: no answer",
        "fail": "RuntimeError: physics exploded",
        "garble": "ended during act",
    }
    assert said[kind] in record["reason"]
    assert ("segmentation fault, as it were" in record["reason"]) == (kind == "crash")
    counts = json.loads((out / "summary.json").read_text())["backends"]["pytorch"]
    assert (counts["episodes"], counts["played"], counts["simulator_lost"]) == (6, 5, 1)
    assert sum(line.startswith("started") for line in read_log(faulty)) == 2
    assert main(command(checkpoint, faulty, out, *hurry, "--retry-lost")) == 0
    assert essence(lines(out)) == whole, "the later line of an episode is the one that counts"


def test_simulators_that_are_always_lost_end_the_evaluation(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    always = {f"{task}/{trial}": "crash" for task in (0, 1) for trial in range(3)}
    faulty = write_environment(tmp_path / "faulty", {**always, "times": 99})
    assert main(command(checkpoint, faulty, tmp_path / "out")) == 1
    assert "5 simulators were lost one after the other" in capsys.readouterr().err
    assert len(lines(tmp_path / "out")) == 5


def test_a_killed_evaluation_goes_on_where_it_was(
    checkpoint: Path, tmp_path: Path, whole: dict[Any, Any]
) -> None:
    slow = write_environment(tmp_path / "slow", {"1/1": "hang"})
    fast = write_environment(tmp_path / "fast")
    out = tmp_path / "out"
    code = "import sys; from thor_policy_ros.evaluation.cli import main; sys.exit(main())"
    words = command(checkpoint, slow, out)
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(line.startswith("hang") for line in read_log(slow)))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(lines(out)) == 4
    with (out / "episodes.jsonl").open("a") as journal:
        journal.write('{"backend": "pytorch", "task": 1, "tri')  # torn off by a crash
    assert main(command(checkpoint, fast, out)) == 0
    assert essence(lines(out)) == whole and len(lines(out)) == 6
    played = [line.split(" pid=")[0] for line in read_log(fast) if line.startswith("reset")]
    assert played == ["reset 1/1", "reset 1/2"], "nothing is repeated"
    wait_for(lambda: not alive(read_log(slow)[0]), "the simulator outlived its evaluation")


def alive(line: str) -> bool:
    stat = Path("/proc") / line.split("pid=")[1] / "stat"
    return stat.exists() and stat.read_text().split()[2] != "Z"


def wait_for(true: Any, why: str = "it did not happen in time", seconds: float = 240.0) -> None:
    until_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until_s, why
        time.sleep(0.05)


def test_nothing_is_played_twice_and_more_can_be_asked_for(
    checkpoint: Path, simulator: Path, tmp_path: Path
) -> None:
    words = command(checkpoint, simulator, tmp_path / "out")
    assert main(words) == 0 and main(words) == 0
    assert len(read_log(simulator)) == 1 + 6 + 1
    assert main([*words, "--tasks", "0", "1", "2", "--episodes", "3"]) == 0
    assert len(lines(tmp_path / "out")) == 9


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--suite", "libero_goal"), "LIBERO's meshes are missing: fetch them"),
        (("--tasks", "7"), r"wanted tasks of 0 to 2, got [7]"),
        (("--episodes", "4"), "task 1 has 3 initial states, wanted 4"),
        (("--replan", "11"), "wanted to execute 11 actions of a chunk, which has 10"),
        (("--workers", "many"), "--workers wants a number of at least 1 or 'ray', got 'many'"),
        (("--compare", "pytorch"), "--compare wants another backend than 'pytorch'"),
        (("--environment", "/nowhere"), "make one with `thor-policy libero --make-environment"),
        (("--checkpoint", "checkpoints/demo"), "config 'demo' has cameras"),
    ],
)
def test_what_cannot_be_played_is_said(
    checkpoint: Path, simulator: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    assert main(command(checkpoint, simulator, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err


def test_results_of_other_settings_are_not_mixed(
    checkpoint: Path, simulator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(checkpoint, simulator, tmp_path / "out")
    assert main(words) == 0
    assert main([*words, "--replan", "4"]) == 2
    assert "begun with other settings: replan 5, now 4" in capsys.readouterr().err


def test_observations_that_share_a_pass_get_what_they_would_alone_to_rounding(
    checkpoint: Path, tmp_path: Path
) -> None:
    choice = PolicyChoice(checkpoint, "pytorch", device="cpu")
    settings = Settings("libero_spatial", max_steps=20, num_steps=2)
    alone = Plan(choice, settings, tmp_path, tmp_path, environments=8, verify=False)
    chunks = {}
    for plan in (alone, dataclasses.replace(alone, batch=8)):
        policy = SharedPolicy(plan)
        try:
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(partial(asked, policy), range(16)))
        finally:
            policy.close()
        assert (max(one.batch for one in answers) > 1) == (plan.batch > 1)
        chunks[plan.batch] = np.stack([one.chunk.actions for one in answers])
    assert np.abs(chunks[8] - chunks[1]).max() < 1e-5


def asked(policy: SharedPolicy, number: int) -> Answer:
    observation = toy_observation(TOY_LIBERO, seed=number)
    return policy.infer_for(Episode("pytorch", 0, number))(observation, 0)


real = os.environ.get("THOR_POLICY_SIMULATOR", "")


@pytest.mark.skipif(not real, reason="no simulator: $THOR_POLICY_SIMULATOR names its environment")
@pytest.mark.slow
def test_robosuite_itself(checkpoint: Path, tmp_path: Path) -> None:
    """The real process, wiring alone: a random policy solves nothing."""
    out = tmp_path / "out"
    words = command(checkpoint, Path(real), out, "--suite", "robosuite_lift", "--max-steps", "5")
    assert main([*words, "--tasks", "0", "--episodes", "1"]) == 0
    (record,) = lines(out)
    assert record["outcome"] == "failure" and record["steps"] == 15
    assert "robosuite 1.4.0" in json.loads((out / "summary.json").read_text())["simulator"]
    assert np.isfinite(record["infer_ms"]).all()

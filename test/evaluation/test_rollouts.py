"""Counting successes, and the command line in worker processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.arm_checkpoint import write_arm_checkpoint

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.closed_loop import Conditions, EpisodeRecord
from thor_policy_ros.evaluation.intervals import wilson_interval
from thor_policy_ros.evaluation.rollouts import (
    FIRST_EPISODE_SEED,
    PolicyChoice,
    run_rollouts,
    summary,
)


def record(seed: int, verb: str, outcome: str, seconds: float = 2.0) -> EpisodeRecord:
    return EpisodeRecord(seed, verb, f"{verb} the red cube", "", outcome, seconds, 1)


def test_summary_counts_by_verb() -> None:
    records = [
        record(0, "pick up", "success", 1.0),
        record(1, "pick up", "wrong_object"),
        record(2, "pick up", "success", 3.0),
        record(3, "follow", "timeout", 8.0),
    ]
    result = summary(records)
    assert (result["episodes"], result["successes"], result["success_rate"]) == (4, 2, 0.5)
    assert result["wilson_95"] == pytest.approx(wilson_interval(2, 4), abs=1e-4)
    assert result["outcomes"] == {"success": 2, "timeout": 1, "wrong_object": 1}
    assert result["refused_chunks"] == 4
    pick_up, follow = result["by_verb"]["pick up"], result["by_verb"]["follow"]
    assert (pick_up["successes"], pick_up["episodes"]) == (2, 3)
    assert pick_up["median_success_s"] == 3.0
    assert follow["success_rate"] == 0 and follow["median_success_s"] is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arm_checkpoint(tmp_path_factory.mktemp("arm"))


def test_the_number_of_workers_changes_nothing(checkpoint: Path) -> None:
    policy, conditions = PolicyChoice(str(checkpoint)), Conditions(num_steps=1)
    alone = list(run_rollouts(policy, conditions, 2, 1))
    together = list(run_rollouts(policy, conditions, 2, 2))
    assert sorted(together, key=lambda r: r.seed) == sorted(alone, key=lambda r: r.seed)
    assert {r.seed for r in alone} == {FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + 1}


def test_the_command_writes_settings_and_results(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "result.json"
    options = "--episodes 1 --workers 1 --num-steps 1 --images black --instruction wrong --seed 7"
    status = main(
        ["rollouts", *options.split(), "--checkpoint", str(checkpoint), "--json", str(path)]
    )
    assert status == 0
    result = json.loads(path.read_text())
    wanted = {"instruction": "wrong", "images": "black", "seed": 7, "episodes": 1}
    assert wanted.items() <= result["settings"].items()
    assert result["backend"]["name"] == "pytorch" and result["device"] == "cpu"
    assert {"torch", "mujoco", "numpy", "python"} == set(result["versions"])
    assert result["failures"][0]["seed"] == FIRST_EPISODE_SEED + 7 * 100_000
    assert "wrong instruction, black images" in " ".join(capsys.readouterr().out.split())


def test_json_alone_goes_to_stdout(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--episodes 1 --workers 1 --num-steps 1 --json -"
    assert main(["rollouts", *options.split(), "--checkpoint", str(checkpoint)]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 1


def test_a_missing_checkpoint_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none")
    assert main(["rollouts", "--episodes", "2", "--checkpoint", missing]) == 2
    assert "wanted a checkpoint folder" in capsys.readouterr().err


def test_no_episodes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rollouts", "--episodes", "0"])
    assert "wanted at least 1, got 0" in capsys.readouterr().err


def test_the_installed_command_starts_worker_processes(checkpoint: Path, tmp_path: Path) -> None:
    command = shutil.which(
        "thor-policy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if command is None:
        pytest.skip("thor-policy is not installed: run make setup")
    path = tmp_path / "result.json"
    options = f"--episodes 2 --workers 2 --num-steps 1 --checkpoint {checkpoint} --json {path}"
    subprocess.run([command, "rollouts", *options.split()], check=True, timeout=120, cwd=tmp_path)
    assert json.loads(path.read_text())["episodes"] == 2

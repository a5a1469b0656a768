"""Pairs of episodes: counting them, and the command with two backends that are one engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.arm_checkpoint import write_arm_checkpoint

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.evaluation import paired_success, rollouts
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.closed_loop import Conditions, EpisodeRecord, run_episode
from thor_policy_ros.evaluation.intervals import mcnemar_exact
from thor_policy_ros.evaluation.pairs import pairs
from thor_policy_ros.evaluation.rollouts import PolicyChoice

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"


def records(won: str, first_seed: int = 5) -> list[EpisodeRecord]:
    return [
        EpisodeRecord(seed, "follow", "", "", "success" if win == "1" else "timeout", 2.0, 0)
        for seed, win in enumerate(won, first_seed)
    ]


def test_scenes_are_compared_one_by_one() -> None:
    found = pairs({"a": records("1110001"), "b": records("1001100")}, "a", "b")
    assert found["scenes"] == 7 and found["solved_by_both"] == 1
    assert (found["only_by_first"], found["only_by_second"]) == (3, 2)
    assert found["probability"] == round(mcnemar_exact(3, 2), 5) == 1.0
    assert found["rate_difference"] == pytest.approx(-1 / 7, abs=1e-4)


def test_other_scenes_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="a and b were not played on the same scenes"):
        pairs({"a": records("11"), "b": records("11", first_seed=6)}, "a", "b")


def test_the_command_plays_the_same_scenes_with_each_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pairs.json"

    def here(
        policy: PolicyChoice, conditions: Conditions, episodes: int, workers: int
    ) -> Iterator[EpisodeRecord]:
        """As `run_rollouts`, which is tested elsewhere, without its processes."""
        equipment = rollouts.equip(policy)
        for seed in range(rollouts.FIRST_EPISODE_SEED, rollouts.FIRST_EPISODE_SEED + episodes):
            yield run_episode(*equipment, conditions, seed)

    monkeypatch.setattr(rollouts, "run_rollouts", here)
    monkeypatch.setattr(paired_success, "DIFFERENCE_EPISODES", 1)
    options = "--compare pytorch_pipelined --speed 0 0.08 --episodes 2 --workers 1 --json"
    assert main(["rollouts", *options.split(), str(path), "--checkpoint", str(DEMO)]) == 0
    report = json.loads(path.read_text())
    assert [played["settings"]["speed_m_s"] for played in report["rounds"]] == [0.0, 0.08]
    for played in report["rounds"]:
        assert list(played["success"]) == ["pytorch", "pytorch_pipelined"]
        assert all(len(counts["won"]) == 2 for counts in played["success"].values())
        (pair,) = played["paired"]
        assert (pair["first"], pair["second"]) == ("pytorch", "pytorch_pipelined")
        assert pair["scenes"] == 2 and 0.0 < pair["probability"] <= 1.0
    assert [facts["backend"]["name"] for facts in report["backends"]] == list(played["success"])
    (difference,) = report["engine_difference"]
    assert difference["observations"] > 10
    assert difference["max_abs_difference"] == 0.0, "one engine: equal bit for bit"


def test_the_difference_of_engines_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PyTorchBackend.denoise

    def off(self: PyTorchBackend, *args: object, **more: object) -> object:
        return plain(self, *args, **more) + (0.25 if self.spec.pipelined else 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr(PyTorchBackend, "denoise", off)
    monkeypatch.setattr(paired_success, "DIFFERENCE_EPISODES", 1)
    folder = str(write_arm_checkpoint(tmp_path))
    choices = (PolicyChoice(folder), PolicyChoice(folder, "pytorch_pipelined"))
    found = paired_success.engine_difference(*choices, Conditions(num_steps=1))
    assert found["max_abs_difference"] == pytest.approx(0.25 * 0.02, rel=0.01), "half the range"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--speed 0 0.08", "one --speed without --compare"),
        ("--compare pytorch", "wants another backend than 'pytorch'"),
        ("--compare trt", "unknown backend 'trt'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*options.split(), "--episodes", "1", "--checkpoint", str(DEMO)]
    assert main(["rollouts", *arguments]) == 2
    assert said in capsys.readouterr().err

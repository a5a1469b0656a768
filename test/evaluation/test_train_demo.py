"""`thor-policy train-demo` from nothing to an evaluated checkpoint, in two steps of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thor_policy_ros.evaluation import train_demo
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.model.named_configs import DEMO, load_policy_config

OPTIONS = [
    "--device",
    "cpu",
    "--steps",
    "2",
    "--batch-size",
    "4",
    "--report-every",
    "1",
    "--workers",
    "1",
]


def test_it_records_trains_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    monkeypatch.setattr(train_demo, "EVALUATED", {"blank": train_demo.EVALUATED["blank"]})
    assert (
        main(["train-demo", "--out", str(out), *OPTIONS, "--episodes", "2", "--evaluate", "1"]) == 0
    )
    assert load_policy_config(out) == DEMO
    training = json.loads((out / "training.json").read_text())
    assert [report["step"] for report in training["curve"]] == [1, 2]
    assert training["data"]["episodes"] == 2 and training["parameters"] < 3e6
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["blank"]["settings"]["instruction"] == "blank"
    assert evaluation["blank"]["outcomes"] == {"timeout": 1}
    printed = " ".join(capsys.readouterr().out.split())
    assert "48 frames of the expert" in printed and "step 2:" in printed

    # Another number of episodes than were recorded there is a user's mistake.
    assert main(["train-demo", "--out", str(out), *OPTIONS, "--episodes", "3"]) == 2
    assert "holds 2 episodes, 3 are wanted" in capsys.readouterr().err


def test_the_conditions_of_the_evaluation() -> None:
    assert set(train_demo.EVALUATED) == {"right", "blank", "wrong", "black"}
    assert {c.speed_m_s for c in train_demo.EVALUATED.values()} == {0.12}

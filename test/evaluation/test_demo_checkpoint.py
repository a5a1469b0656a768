"""The committed demo policy: small, complete, and good at what it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from thor_policy_ros.evaluation.closed_loop import Conditions
from thor_policy_ros.evaluation.rollouts import PolicyChoice, run_rollouts
from thor_policy_ros.model.checksums import verify_checksums
from thor_policy_ros.model.named_configs import DEMO, load_policy_config

FOLDER = Path(__file__).parents[2] / "checkpoints" / "demo"


def solved(conditions: Conditions, episodes: int) -> int:
    policy = PolicyChoice(str(FOLDER))
    return sum(r.success for r in run_rollouts(policy, conditions, episodes, 2))


def test_it_is_below_ten_megabytes() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 10e6


def test_its_files_are_those_in_its_checksums() -> None:
    assert verify_checksums(FOLDER, required=True) == (
        "assets/demo/norm_stats.json", "config.json", "model.safetensors", "tokenizer.model",
    )  # fmt: skip


def test_it_was_trained_with_the_named_config() -> None:
    assert load_policy_config(FOLDER) == DEMO


def test_it_solves_moving_scenes() -> None:
    assert solved(Conditions(latency_ms=40.0), 8) >= 7


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(instruction="blank"),
        Conditions(instruction="wrong"),
        Conditions(images="black"),
    ],
)
def test_without_the_words_or_the_images_it_does_not(conditions: Conditions) -> None:
    assert solved(conditions, 2) == 0

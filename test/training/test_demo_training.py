"""From frames to a checkpoint folder that the runtime loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.demo_training import IMAGE_SIZE, toy_config, toy_data

from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.checksums import verify_checksums
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.training.demo_training import expert_data, train_demo
from thor_policy_ros.training.flow_trainer import Recipe, Report
from thor_policy_ros.types import Observation

RECIPE = Recipe(steps=2, batch_size=4, draws=1, report_every=1)
TINY = replace(toy_config(), name="tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[Report]]:
    out = tmp_path_factory.mktemp("out") / "checkpoint"
    reports: list[Report] = []
    return out, train_demo(TINY, RECIPE, toy_data(), "cpu", out, reports.append), reports


def test_the_runtime_runs_what_training_wrote(trained: tuple) -> None:
    data = toy_data()
    slots = dict(zip(TINY.camera_slots, data.images[0], strict=True))
    observation = Observation(slots, data.state[0], "follow the red object", 0.0)
    with UnifiedPolicy(trained[0], device="cpu") as policy:
        assert policy.config == TINY
        chunk = policy.infer(observation, num_steps=2, seed=0)
    assert chunk.actions.shape == (10, 5) and np.isfinite(chunk.actions).all()


def test_weights_are_half_precision_and_readable_by_all(trained: tuple) -> None:
    path = trained[0] / "model.safetensors"
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_size < 2.2 * trained[1]["parameters"] + 20_000
    assert load_pi05(trained[0], TINY.model).dtype == torch.float32
    assert "model.safetensors" in verify_checksums(trained[0], required=True)


def test_the_record_holds_recipe_and_curve(trained: tuple) -> None:
    out, record, reports = trained
    assert record["recipe"] == RECIPE.to_json()
    assert record["curve"] == [r.to_json() for r in reports] and len(reports) == 2
    json.dumps(record)
    assert (out / "partial" / "model.safetensors").is_file()


def test_frames_are_recorded_once(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    (tmp_path / "frames.unfinished").mkdir()  # an earlier recording was cut short
    first = expert_data(folder, 1, 0, 1, IMAGE_SIZE)
    written = (folder / "images.npy").stat().st_mtime_ns
    again = expert_data(folder, 1, 0, 1, IMAGE_SIZE)
    assert (folder / "images.npy").stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.images, again.images)
    with pytest.raises(ValueError, match="holds 1 episodes, 2 are wanted"):
        expert_data(folder, 2, 0, 1, IMAGE_SIZE)

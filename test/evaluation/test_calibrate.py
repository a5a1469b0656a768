"""`thor-policy calibrate`: frames in, scales beside the weights out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint

from thor_policy_ros.backends.fp8_scales import read_scales
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.recorded_observations import read_observations, write_observations
from thor_policy_ros.model.named_configs import load_policy_config

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
LAYERS = TINY.model.language.depth - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_toy_checkpoint(tmp_path / "tiny")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "seen.safetensors"
    write_observations(path, [toy_observation(seed=n) for n in range(4)])
    return path


def calibrate(folder: Path, *arguments: object) -> int:
    return main(["calibrate", "--checkpoint", str(folder), "--device", "cpu", *map(str, arguments)])


def test_recorded_observations_give_scales(
    folder: Path, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(folder, "--recorded", recorded, "--percentile", 50) == 0
    scales = read_scales(folder, LAYERS)
    assert scales is not None
    assert (scales.frames, scales.percentile, scales.source) == (
        4,
        50,
        "recorded: seen.safetensors",
    )
    assert all(0 < layer.input.kept < layer.input.largest for layer in scales.layers)
    assert "4 frames" in capsys.readouterr().out


def test_the_simulated_arm_calibrates_the_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    assert calibrate(folder, "--episodes", 1) == 0
    depth = load_policy_config(folder).model.language.depth
    scales = read_scales(folder, depth - 1)
    assert scales is not None and scales.frames > 5
    assert scales.source == "simulated arm, 1 episodes"


def test_another_robot_wants_recorded_frames(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("thor_policy_ros.sim.arm_env.TabletopArm.images", lambda env: {"top": None})
    assert calibrate(folder) == 2
    assert "--recorded FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--percentile", 0), "0 to 100"), (("--episodes", 0), "at least 1")],
)
def test_mistakes_are_told(
    folder: Path, arguments: tuple[object, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(folder, *arguments) == 2
    assert said in capsys.readouterr().err


def test_observations_come_back_from_their_file(recorded: Path) -> None:
    for n, observation in enumerate(read_observations(recorded)):
        wanted = toy_observation(seed=n)
        assert observation.prompt == wanted.prompt
        assert np.array_equal(observation.state, wanted.state)
        assert all(np.array_equal(observation.images[s], wanted.images[s]) for s in wanted.images)


@pytest.mark.parametrize(
    ("arrays", "prompts", "said"),
    [
        ({"state": np.zeros((2, 3))}, '["go"]', "wants arrays image.SLOT"),
        ({"state": np.zeros((2, 3)), "image.a": np.zeros((2, 4))}, "[]", "0 prompts"),
        ({"state": np.zeros((2, 3)), "image.a": np.zeros((3, 4))}, '["go"]', "2 states but"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], prompts: str, said: str
) -> None:
    save_file(arrays, tmp_path / "bad.safetensors", metadata={"prompts": prompts})
    with pytest.raises(ValueError, match=said):
        read_observations(tmp_path / "bad.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot read"):
        read_observations(tmp_path / "junk.safetensors")

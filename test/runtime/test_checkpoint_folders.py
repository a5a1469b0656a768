"""Folders as openpi's converter and LeRobot leave them: the same weights give the same chunk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.toy_checkpoint import TINY, norm_stats_json, toy_observation, write_toy_checkpoint

from thor_policy_ros.model.config import to_json
from thor_policy_ros.model.weight_files import CheckpointError
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.types import F32

LEROBOT_CONFIG = {
    "type": "pi05",
    "n_obs_steps": 1,
    "chunk_size": TINY.model.action_horizon,
    "n_action_steps": TINY.model.action_horizon,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "input_features": {"observation.state": {"type": "STATE", "shape": [TINY.state_dim]}},
    "output_features": {"action": {"type": "ACTION", "shape": [TINY.action_dim]}},
    "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
    "tokenizer_max_length": TINY.model.max_token_len,
    "use_relative_actions": True,
}
STATE_FILE = "policy_preprocessor_step_3_normalizer_processor.safetensors"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("ours"))


@pytest.fixture
def openpi(ours: Path, tmp_path: Path) -> Path:
    """As `convert_jax_model_to_pytorch.py` leaves it, and a tokenizer."""
    folder = Path(shutil.copytree(ours, tmp_path / "openpi"))
    saved = {"action_dim": 32, "action_horizon": TINY.model.action_horizon}
    variants = {"paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m"}
    write_config(folder, {**saved, **variants, "precision": "bfloat16"})
    return folder


@pytest.fixture
def lerobot(ours: Path, tmp_path: Path) -> Path:
    """As `save_pretrained` of policy and processors leaves it, and a tokenizer."""
    folder = tmp_path / "lerobot"
    folder.mkdir()
    weights = load_file(ours / "model.safetensors")
    save_file({f"model.{key}": tensor for key, tensor in weights.items()},
              folder / "model.safetensors")  # fmt: skip
    write_config(folder, LEROBOT_CONFIG)
    (folder / "train_config.json").write_text("{}")
    write_processors(folder)
    shutil.copy(ours / "tokenizer.model", folder)
    return folder


def write_config(folder: Path, saved: object) -> None:
    (folder / "config.json").write_text(json.dumps(saved))


def write_processors(folder: Path) -> None:
    groups = norm_stats_json(TINY)["norm_stats"]
    assert isinstance(groups, dict)
    names = {"observation.state": "state", "action": "actions"}
    tensors = {
        f"{name}.{statistic}": np.array(values, np.float32)
        for name, group in names.items()
        for statistic, values in groups[group].items()
    }
    save_file(tensors, folder / STATE_FILE)
    steps = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "normalizer_processor", "config": {}, "state_file": STATE_FILE},
        {"registry_name": "tokenizer_processor", "config": {"max_length": 200}},
    ]
    pipeline = {"name": "policy_preprocessor", "steps": steps}
    (folder / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    (folder / "policy_postprocessor.json").write_text('{"name": "policy_postprocessor"}')
    save_file(tensors, folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")


def actions_of(folder: Path, config: object = None) -> F32:
    with UnifiedPolicy(folder, config=config, device="cpu") as policy:  # type: ignore[arg-type]
        return policy.infer(toy_observation(), num_steps=2, seed=1).actions


def test_every_layout_gives_the_same_chunk(ours: Path, openpi: Path, lerobot: Path) -> None:
    wanted = actions_of(ours)
    assert np.array_equal(actions_of(openpi, TINY), wanted)
    assert np.allclose(actions_of(lerobot, TINY), wanted, atol=1e-5)  # statistics in float32


def test_a_json_file_of_conventions_serves_as_well(openpi: Path, tmp_path: Path) -> None:
    path = tmp_path / "robot.json"
    path.write_text(json.dumps(to_json(TINY)))
    assert np.array_equal(actions_of(openpi, path), actions_of(openpi, TINY))


@pytest.mark.parametrize("layout", ["openpi", "lerobot"])
def test_without_a_name_the_policy_is_not_guessed(
    layout: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ValueError, match=r'has no "policy" entry.*name the config'):
        UnifiedPolicy(request.getfixturevalue(layout))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "pi0"}, "type is 'pi0', the config wants 'pi05'"),
        ({"chunk_size": 50}, "chunk_size is 50, the config wants 6"),
        (
            {"normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "QUANTILES"}},
            r"normalization_mapping\.STATE is 'MEAN_STD', the config wants 'QUANTILES'",
        ),
        ({"use_relative_actions": False}, "use_relative_actions is False, the config wants True"),
        ({"use_visual_memory": True}, "use_visual_memory is True, the config wants False"),
    ],
)
def test_what_lerobot_saved_contradicts_the_config(
    lerobot: Path, change: dict[str, object], reason: str
) -> None:
    write_config(lerobot, {**LEROBOT_CONFIG, **change})
    with pytest.raises(ValueError, match=f"saved for another policy than config 'tiny': {reason}"):
        UnifiedPolicy(lerobot, config=TINY)


def test_what_openpi_saved_contradicts_the_config(openpi: Path) -> None:
    write_config(openpi, {"action_dim": 32, "action_horizon": 15})
    with pytest.raises(ValueError, match="action_horizon is 15, the config wants 6"):
        UnifiedPolicy(openpi, config=TINY)


def test_statistics_of_another_robot_are_refused(openpi: Path) -> None:
    (openpi / "config.json").unlink()
    shutil.copytree(openpi / "assets" / "tiny", openpi / "assets" / "droid")
    with pytest.raises(ValueError, match=r"state\.q01 has 4 dimensions, the config wants 8"):
        UnifiedPolicy(openpi, config="pi05_droid")


def test_a_key_that_is_missing_in_lerobots_layout_is_named(lerobot: Path) -> None:
    weights = load_file(lerobot / "model.safetensors")
    del weights["model.action_out_proj.bias"]
    save_file(weights, lerobot / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(1\):\s+model\.action_out_proj\.bias"):
        UnifiedPolicy(lerobot, config=TINY)


def test_missing_statistics_say_what_to_copy(openpi: Path) -> None:
    shutil.rmtree(openpi / "assets")
    with pytest.raises(FileNotFoundError, match="Copy the `assets` folder"):
        UnifiedPolicy(openpi, config=TINY)

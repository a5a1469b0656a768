"""Statistics are found in openpi's and in LeRobot's files, and their absence is explained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.toy_checkpoint import TINY, norm_stats_json

from thor_policy_ros.model.norm_stats import NormStats, load_norm_stats

VECTORS = norm_stats_json(TINY)["norm_stats"]
LEROBOT_FILE = "policy_preprocessor_step_3_normalizer_processor.safetensors"


def write_openpi(folder: Path, asset_id: str, groups: object) -> None:
    target = folder / "assets" / asset_id
    target.mkdir(parents=True)
    (target / "norm_stats.json").write_text(json.dumps({"norm_stats": groups}))


def write_lerobot(folder: Path, name: str = LEROBOT_FILE) -> None:
    """As LeRobot's normaliser step saves its state, image statistics and counts included."""
    assert isinstance(VECTORS, dict)
    tensors = {
        f"{key}.{stat}": np.array(values, np.float32)
        for key, part in (("observation.state", "state"), ("action", "actions"))
        for stat, values in VECTORS[part].items()
    }
    tensors["action.count"] = np.array([7], np.float32)
    tensors["observation.images.top.mean"] = np.zeros((3, 1, 1), np.float32)
    tensors["observation.state.extra.mean"] = np.zeros(2, np.float32)
    save_file(tensors, folder / name)


def test_both_layouts_give_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_openpi(tmp_path / "a", "some/robot", VECTORS)
    write_lerobot(tmp_path / "b")
    openpi = load_norm_stats(tmp_path / "a", "some/robot")
    lerobot = load_norm_stats(tmp_path / "b", "some/robot")
    for part, dims in (("state", 4), ("actions", 3)):
        for kind in ("quantile", "zscore"):
            x = np.linspace(-1, 1, dims)
            ours = openpi.affine(part, kind, dims).normalise(x)
            theirs = lerobot.affine(part, kind, dims).normalise(x)
            assert np.allclose(ours, theirs, rtol=1e-5)


def test_lerobots_file_is_the_one_its_pipeline_names(tmp_path: Path) -> None:
    write_lerobot(tmp_path, "state_of_step_5.safetensors")
    steps = [
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "normalizer_processor", "state_file": "state_of_step_5.safetensors"},
    ]
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
    assert load_norm_stats(tmp_path, "x").source.endswith("state_of_step_5.safetensors")


def test_quantiles_map_to_minus_one_and_one(tmp_path: Path) -> None:
    stats = NormStats({"q01": np.array([2.0]), "q99": np.array([6.0])}, {}, "test")
    affine = stats.affine("state", "quantile", 1)
    ends = affine.normalise(np.array([[2.0], [6.0], [8.0]])).ravel()
    assert ends == pytest.approx([-1.0, 1.0, 2.0], abs=1e-6)  # nothing is clipped


def test_a_folder_without_statistics_says_what_was_wanted_and_found(tmp_path: Path) -> None:
    write_openpi(tmp_path, "droid", VECTORS)
    with pytest.raises(FileNotFoundError) as missing:
        load_norm_stats(tmp_path, "trossen")
    assert "assets/trossen/norm_stats.json" in str(missing.value)
    assert "found norm_stats.json in ['assets/droid']" in str(missing.value)


def test_missing_groups_statistics_and_dimensions_are_named(tmp_path: Path) -> None:
    assert isinstance(VECTORS, dict)
    write_openpi(tmp_path, "half", {"state": VECTORS["state"]})
    with pytest.raises(ValueError, match=r"missing: \['actions'\]"):
        load_norm_stats(tmp_path, "half")
    no_quantiles = {p: {"mean": g["mean"], "std": g["std"]} for p, g in VECTORS.items()}
    write_openpi(tmp_path, "old", {**no_quantiles})
    stats = load_norm_stats(tmp_path, "old")
    with pytest.raises(ValueError, match=r"state has no 'q01', only \['mean', 'std'\]"):
        stats.affine("state", "quantile", 4)
    with pytest.raises(ValueError, match=r"actions\.mean has 3 dimensions, the config wants 7"):
        stats.affine("actions", "zscore", 7)

"""`thor-policy convert`: a whole checkpoint moves, with everything that a policy needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint

from thor_policy_ros.backends.fp8_scales import (
    Fp8Scales,
    LayerRanges,
    Range,
    read_scales,
    write_scales,
)
from thor_policy_ros.backends.fp8_stored import read_stored_fp8
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.convert import _lerobot_notes
from thor_policy_ros.model.checksums import verify_checksums
from thor_policy_ros.model.named_configs import ALOHA, LIBERO
from thor_policy_ros.model.norm_stats import load_norm_stats
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

NOISE = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_toy_checkpoint(tmp_path / "source")


def chunk(folder: Path, **options: Any) -> np.ndarray:
    with UnifiedPolicy(folder, device="cpu", dtype="float32", **options) as policy:
        return policy.infer(toy_observation(), 3, noise=NOISE).actions


def converted(source: Path, layout: str, *options: str) -> Path:
    folder = source.parent / layout
    assert main(["convert", str(source), str(folder), "--to", layout, *options]) == 0
    return folder


@pytest.mark.parametrize("layout", ["openpi", "merged"])
def test_what_was_converted_is_the_same_policy_by_itself(source: Path, layout: str) -> None:
    """float32 weights, so that nothing is rounded on the way."""
    made = converted(source, layout, "--dtype", "float32")
    assert np.array_equal(chunk(made), chunk(source))


def test_lerobots_layout_is_the_same_policy_once_its_config_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = converted(source, "lerobot")
    assert "note: LeRobot builds its own processors" in capsys.readouterr().out
    fields = tmp_path / "tiny.json"
    fields.write_text(json.dumps(json.loads((source / "config.json").read_text())["policy"]))
    assert np.abs(chunk(made, config=fields) - chunk(source)).max() < 1e-6  # float32 statistics
    saved = json.loads((made / "config.json").read_text())
    assert (saved["type"], saved["chunk_size"], saved["use_relative_actions"]) == ("pi05", 6, True)
    with pytest.raises(ValueError, match="chunk_size is 6, the config wants 10"):
        UnifiedPolicy(made, config=LIBERO)


def test_statistics_go_there_and_back(source: Path) -> None:
    lerobot = converted(source, "lerobot")
    fields = source.parent / "tiny.json"
    fields.write_text(json.dumps(json.loads((source / "config.json").read_text())["policy"]))
    back = lerobot.parent / "back"
    options = ["--to", "openpi", "--config", str(fields)]
    assert main(["convert", str(lerobot), str(back), *options]) == 0
    ours, theirs = (load_norm_stats(folder, "tiny") for folder in (back, source))
    for part in ("state", "actions"):
        group = getattr(theirs, part)
        assert all(np.allclose(getattr(ours, part)[name], group[name]) for name in group)
    assert np.abs(chunk(back) - chunk(source)).max() < 1e-6


def test_fp8_weights_scales_and_hash_come_along(source: Path) -> None:
    fine = LayerRanges(Range(1.0, 1.0), Range(1.0, 1.0))
    layers = (fine,) * (TINY.model.language.depth - 1)
    scales = Fp8Scales(checkpoint_hash(source), 99.9, 4, "test", layers)
    write_scales(source, scales)
    made = converted(source, "merged", "--fp8")
    assert {"fp8_mlp.safetensors", "weights_hash.json"} < set(verify_checksums(made, required=True))
    kept = read_scales(made, len(layers))
    assert kept == replace(scales, checkpoint=checkpoint_hash(made))
    stored = read_stored_fp8(made, len(layers))
    assert stored is not None and set(stored) == {0}
    assert json.loads((made / "weights_hash.json").read_text())["sha256"] == checkpoint_hash(made)


def test_json_says_what_was_written(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = converted(source, "merged", "--fp8", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["config"], found["layout"]) == ("tiny", "merged")
    assert {Path(p).name for p in found["files"]} == {"model.safetensors", "fp8_mlp.safetensors"}
    weights = made / "model.safetensors"
    assert found["files"][str(weights)] == weights.stat().st_size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "openpi", "--fp8"], "--fp8 wants --to merged"),
        (["--to", "merged", "--config", "pi05_libero"], "statistics"),
        (["--to", "merged", "--config", "pi06"], "unknown policy config 'pi06'"),
    ],
)
def test_what_cannot_be_converted_is_one_message(
    source: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = source.parent / "made"
    assert main(["convert", str(source), str(destination), *options]) == 2
    assert said in capsys.readouterr().err
    assert not destination.exists()


def test_a_folder_with_something_in_it_is_left_alone(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(source), str(source), "--to", "merged"]) == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err


def test_what_is_not_there_to_copy_is_said(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "tokenizer.model").unlink()
    converted(source, "merged")
    assert "note: no tokenizer was found to copy" in capsys.readouterr().out


def test_what_lerobot_does_otherwise_is_said() -> None:
    assert any("into every prompt" in note for note in _lerobot_notes(LIBERO))
    assert any("Aloha's joint signs" in note for note in _lerobot_notes(ALOHA))

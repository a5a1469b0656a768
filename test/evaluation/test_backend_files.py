"""`thor-policy backends --checkpoint`: which files of a checkpoint the backends lack."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from thor_policy_ros.backends.engine_cache import EngineCache, EngineKey
from thor_policy_ros.backends.fp8_scales import Fp8Scales, LayerRanges, Range, write_scales
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation import backend_files, backends_table
from thor_policy_ros.evaluation.backend_files import read_files
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.model.weight_files import checkpoint_hash

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
SEEN = Range(1.0, 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "demo"))


@pytest.fixture(autouse=True)
def machine_that_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends_table, "availability", lambda name: ())
    monkeypatch.setattr(backend_files, "present_capability", lambda: "sm_120")


def calibrated(folder: Path, inputs: dict[str, Range]) -> None:
    layers = (LayerRanges(SEEN, SEEN),) * 3
    write_scales(folder, Fp8Scales(checkpoint_hash(folder), 99.9, 1, "test", layers, inputs))


def rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    options = ["--checkpoint", str(folder), "--engine-cache", str(folder / "cache")]
    main(["backends", "--json", *options])
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_scales_are_missing_until_the_checkpoint_is_calibrated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(folder, capsys)
    for name in ("fused_fp8", "tensorrt_fp8"):
        assert not found[name]["available"]
        (said,) = found[name]["missing"]
        assert said == f"FP8 scales of {folder}; `thor-policy calibrate --checkpoint {folder}`"
    assert found["fp8_mlp"]["available"] and "dynamic ones" in found["fp8_mlp"]["notes"][0]
    assert found["fp8_mlp_dynamic"]["notes"] == found["pytorch"]["notes"] == []
    calibrated(folder, {})
    found = rows(folder, capsys)
    assert not found["fused_fp8"]["available"], "scales of the MLPs alone, as once written"
    assert found["tensorrt_fp8"]["available"] and found["fp8_mlp"]["notes"] == []
    calibrated(folder, {"vision.patch": SEEN})
    assert rows(folder, capsys)["fused_fp8"]["available"]


def key(folder: Path, **changes: Any) -> EngineKey:
    plain = EngineKey(
        checkpoint=checkpoint_hash(folder), engine="tensorrt_rtx", engine_version="1.7",
        gpu="any", capability="sm_120", precision="bfloat16", part="prefix", shapes="",
        settings="optimization level 2", sources="",
    )  # fmt: skip
    return replace(plain, **changes)


def unbuilt(folder: Path, name: str) -> str:
    notes = read_files(folder, None, folder / "cache").notes(BACKENDS[name])
    return notes[0].split("yet: ")[1].split(";")[0] if notes else ""


def test_engines_that_were_not_built_are_named_and_how_to_build_them(folder: Path) -> None:
    cache = EngineCache(folder / "cache")
    names = ("tensorrt", "tensorrt_fp8", "torch_trt")
    assert [unbuilt(folder, name) for name in names] == ["vision, prefix, denoise"] * 3
    assert unbuilt(folder, "pytorch") == ""
    for part in ("vision", "prefix", "denoise"):
        cache.fetch(key(folder, part=part, capability="sm_89"), lambda: b"for another GPU")
        cache.fetch(key(folder, part=part, checkpoint="0" * 64), lambda: b"of other weights")
    assert unbuilt(folder, "tensorrt") == "vision, prefix, denoise"
    for part in ("vision", "prefix", "denoise"):
        cache.fetch(key(folder, part=part), lambda: b"an engine")
    assert [unbuilt(folder, name) for name in names[:2]] == ["", "prefix"]
    cache.fetch(key(folder, settings="level 2, MLPs in FP8 [1.0]"), lambda: b"another prefix")
    assert unbuilt(folder, "tensorrt_fp8") == ""
    (folder / "torch_trt.json").write_text('{"compiled": ["prefix"]}')
    assert unbuilt(folder, "torch_trt") == "prefix", "the others are left in PyTorch"
    cache.fetch(key(folder, engine="torch_tensorrt", part="torch_trt_prefix"), lambda: b"one more")
    assert unbuilt(folder, "torch_trt") == ""


def test_the_table_says_it_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["backends", "--checkpoint", str(folder)])
    said = " ".join(capsys.readouterr().out.split())
    assert "fused_fp8_freq3 cannot run here; missing: FP8 scales of" in said
    assert "torch_trt_freq3: no engine of" in said
    assert "thor-policy build --backend torch_trt --checkpoint" in said


def test_a_folder_without_a_checkpoint_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backends", "--checkpoint", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err

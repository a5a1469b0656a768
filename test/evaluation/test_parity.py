"""`thor-policy parity`: passes on the recorded folders and fails on what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import TOY, TOY_LEROBOT
from torch import Tensor

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.comparison import compare_arrays


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["parity", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TOY, tmp_path / "checkpoint"))


def change(path: Path, changes: Mapping[str, Tensor]) -> None:
    save_file({**load_file(path), **changes}, path)


def test_both_recorded_layouts_pass(capsys: pytest.CaptureFixture[str]) -> None:
    for folder, layout in ((TOY, "openpi"), (TOY_LEROBOT, "lerobot")):
        status, found = report(capsys, str(folder), "--recorded", str(TOY))
        assert status == 0 and found["passed"] and found["layout"] == layout
        names = {row["name"] for row in found["rows"]}
        assert set(load_file(TOY / "outputs.safetensors")) <= names
        assert {"actions_10_steps (backend)", "prefix_k (backend)"} <= names
        assert all(row["max_abs_error"] < 1e-5 for row in found["rows"])
        assert all(row["cosine"] == pytest.approx(1.0, abs=1e-6) for row in found["rows"])


def test_the_table_has_every_array_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(TOY)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in load_file(TOY / "outputs.safetensors"))
    assert "parity: 18 of 18 arrays within 0.0002" in out


def test_a_tighter_tolerance_fails(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = report(capsys, str(TOY), "--tolerance", "1e-12")
    assert status == 1 and not found["passed"]


def test_a_changed_weight_fails_where_it_matters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder / "model.safetensors"
    key = "paligemma_with_expert.gemma_expert.model.norm.dense.bias"
    change(weights, {key: load_file(weights)[key] + 0.01})
    status, found = report(capsys, str(folder))
    wrong = {row["name"] for row in found["rows"] if not row["within"]}
    assert status == 1
    assert "velocity_t1.0" in wrong and "actions_10_steps (backend)" in wrong
    assert not wrong & {"prefix_k", "prefix_v (backend)", "vision_0", "time_embedding_t0.7"}


def test_rows_of_padding_and_masked_cameras_are_not_compared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = folder / "outputs.safetensors"
    outputs = load_file(recorded)
    outputs["prefix_k"][..., ~outputs["prefix_pad_mask"][0], :] = 1e6
    change(recorded, {"prefix_k": outputs["prefix_k"]})
    assert report(capsys, str(folder))[0] == 0
    outputs["prefix_k"][..., outputs["prefix_pad_mask"][0], :] += 0.001
    change(recorded, {"prefix_k": outputs["prefix_k"]})
    assert report(capsys, str(folder))[0] == 1


@pytest.mark.parametrize(
    ("ours", "within"),
    [
        (torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1.0, 2.1]), False),
        (torch.tensor([1.0, float("nan")]), False),
        (torch.tensor([1.0, float("inf")]), False),
        (torch.tensor([[1.0, 2.0]]), False),
    ],
)
def test_arrays_within_the_tolerance(ours: Tensor, within: bool) -> None:
    assert compare_arrays("x", ours, torch.tensor([1.0, 2.0]), 2e-4).within is within


def test_bfloat16_is_close_but_not_within_the_float32_tolerance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, found = report(capsys, str(TOY), "--dtype", "bfloat16")
    actions = next(row for row in found["rows"] if row["name"] == "actions_10_steps")
    assert status == 1 and 0.99 < actions["cosine"] < 1


def test_a_folder_without_recordings_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(TOY_LEROBOT)]) == 2
    said = capsys.readouterr().err
    assert "no inputs.safetensors and no outputs.safetensors" in said and "--recorded DIR" in said


def test_sizes_come_from_the_option_the_folder_or_the_recording(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(capsys, str(folder))[1]["sizes_from"] == str(folder / "config.json")
    sizes = shutil.move(folder / "config.json", folder / "sizes.json")
    status, found = report(capsys, str(folder), "--config", str(sizes))
    assert status == 0 and found["sizes_from"] == str(sizes)
    status, found = report(capsys, str(folder), "--recorded", str(TOY))
    assert status == 0 and found["sizes_from"] == str(TOY / "config.json")


def test_sizes_that_nothing_says_are_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.json").unlink()
    assert main(["parity", str(folder)]) == 2
    assert "give the sizes as a config JSON" in capsys.readouterr().err
    assert main(["parity", str(folder), "--config", "pi06"]) == 2
    assert "neither a file nor one of: demo, pi05_aloha" in capsys.readouterr().err
    assert main(["parity", str(folder), "--config", "demo"]) == 2
    assert "wrong shape" in capsys.readouterr().err


def test_an_array_that_cannot_be_computed_is_not_passed_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder / "outputs.safetensors", {"logits": torch.zeros(1)})
    assert main(["parity", str(folder)]) == 2
    assert "'logits' is not one that this version can compute" in capsys.readouterr().err


def test_incomplete_inputs_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = load_file(folder / "inputs.safetensors")
    del inputs["noise"]
    save_file(inputs, folder / "inputs.safetensors")
    assert main(["parity", str(folder)]) == 2
    assert "missing ['noise']" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(TOY), "--device", "cuda"]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err

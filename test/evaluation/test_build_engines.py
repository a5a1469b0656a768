"""`thor-policy build`: real engines of the toy model, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.trt_engines import obtain, requests_for, target_of
from thor_policy_ros.backends.trt_module import import_tensorrt, installed_module
from thor_policy_ros.backends.trt_parts import PARTS, prefix_lengths
from thor_policy_ros.backends.trt_weights import checkpoint_weights
from thor_policy_ros.evaluation.cli import main

pytestmark = pytest.mark.skipif(installed_module() is None, reason="no TensorRT is installed")
TARGET = "sm_120"


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("tiny"))


def build(folder: Path, cache: Path, *arguments: object) -> int:
    fixed = ("--checkpoint", folder, "--target", TARGET, "--cache", cache)
    return main(["build", *map(str, (*fixed, *arguments))])


@pytest.fixture(scope="module", name="built")
def _built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The cache, and the figures of building all three parts into it."""
    cache = tmp_path_factory.mktemp("engines")
    assert build(folder, cache, "--json", cache / "figures.json") == 0
    return cache, json.loads((cache / "figures.json").read_text())


def test_every_part_is_built_and_measured(built: tuple[Path, dict[str, Any]]) -> None:
    cache, figures = built
    assert figures["settings"]["target"] == TARGET
    assert figures["settings"]["optimization_level"] == 2
    assert list(figures["parts"]) == list(PARTS)
    for part in figures["parts"].values():
        assert part["built"] and part["replaced"] == ""
        assert part["build_seconds"] > 0 and part["peak_rss_bytes"] > 1e8
        assert part["bytes"] < (cache / part["file"]).stat().st_size < part["bytes"] + 10_000
        assert part["layers"] == sum(part["layer_types"].values()) > 10
        assert part["layer_dtypes"]["REDUCE"] == ["FLOAT"]  # norms
        assert "BF16" in part["layer_dtypes"]["MATRIX_MULTIPLY"]


def test_inputs_and_outputs_are_those_of_the_model(built: tuple[Path, dict[str, Any]]) -> None:
    def tensors(part: str, kind: str) -> dict[str, tuple[str, list[int]]]:
        return {t["name"]: (t["dtype"], t["shape"]) for t in built[1]["parts"][part][kind]}

    config, gemma = TINY.model, TINY.model.language
    stacked = ("BF16", [gemma.depth, gemma.num_kv_heads, -1, gemma.head_dim])
    assert tensors("vision", "outputs") == {"image_tokens": ("BF16", [-1, gemma.width])}
    assert tensors("prefix", "outputs") == {"keys": stacked, "values": stacked}
    flow = ("FLOAT", [config.action_horizon, config.action_dim])
    assert tensors("denoise", "outputs") == {"velocity": flow, "next_x": flow}
    given = tensors("denoise", "inputs")
    assert given["keys"] == given["values"] == stacked and given["x"] == flow
    buckets = built[1]["parts"]["prefix"]["buckets"]
    assert [bucket["bias"][0] for bucket in buckets] == list(prefix_lengths(config))


def test_the_backend_finds_what_was_built(built: tuple[Path, dict[str, Any]], folder: Path) -> None:
    """The same requests as `tensorrt.load` makes: nothing is built twice."""
    tensorrt, weights = import_tensorrt(), checkpoint_weights(folder, TINY.model)
    target = target_of(tensorrt, TARGET)
    for request in requests_for(tensorrt, weights, torch.bfloat16, target, 2).values():
        assert not obtain(request, EngineCache(built[0])).built


def test_what_is_there_is_found_and_rebuilt_on_request(
    built: tuple[Path, dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(*arguments: str) -> dict[str, Any]:
        assert build(folder, built[0], "--parts", "vision", "--json", "-", *arguments) == 0
        part: dict[str, Any] = json.loads(capsys.readouterr().out)["parts"]["vision"]
        return part

    assert again() == {
        "built": False,
        "file": built[1]["parts"]["vision"]["file"],
        "bytes": built[1]["parts"]["vision"]["bytes"],
        "replaced": "",
    }
    assert again("--rebuild")["built"]
    path = built[0] / built[1]["parts"]["vision"]["file"]
    path.write_bytes(b"nonsense")
    part = again()
    assert part["built"] and f"{path}: does not begin as an engine file" in part["replaced"]


def test_a_table_is_printed_for_people(
    built: tuple[Path, dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(folder, built[0]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in PARTS) and said.count("found") == 3
    assert f"engines in {built[0]}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--target", "sm_110"),
            "does not build for sm_110; `thor-policy build --target` takes: sm_75",
        ),
        (("--target", "thor"), "wanted target 'current' or a capability as 'sm_110', got 'thor'"),
        (("--parts", "vision,head"), "one or more of: vision, prefix, denoise; got 'vision,head'"),
        (("--random-weights",), "give --checkpoint DIR, or --random-weights with --config NAME"),
        (("--cache-limit", "0"), "above 0 GiB"),
    ],
)
def test_mistakes_are_told(
    folder: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build(folder, tmp_path / "none", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_random_weights_want_a_named_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--target", TARGET, "--random-weights", "--config", "pi6"]) == 2
    assert "one of: demo, pi05_aloha, pi05_droid, pi05_libero; got 'pi6'" in capsys.readouterr().err


def test_this_machine_without_a_gpu_is_no_target(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert build(folder, tmp_path, "--target", "current") == 2
    said = capsys.readouterr().err
    assert "target 'current' wants a CUDA GPU" in said
    assert "; `thor-policy build --target` takes: sm_75, " in said

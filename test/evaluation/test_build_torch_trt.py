"""`thor-policy build --backend torch_trt`: the backend's own requests, or what is missing.

The GPU, the packages and the process that converts are stand-ins; cache and report are real.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.torch_trt_machine import Machine
from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.backends import torch_trt_engines
from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.registry import ENGINES
from thor_policy_ros.backends.torch_trt import requests_for
from thor_policy_ros.backends.torch_trt_engines import GraphRequest
from thor_policy_ros.backends.torch_trt_package import import_flavour, installed
from thor_policy_ros.backends.torch_trt_settings import FILE, read_settings
from thor_policy_ros.backends.trt_parts import PARTS
from thor_policy_ros.backends.trt_weights import checkpoint_weights
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.engine_plans import PLANS
from thor_policy_ros.types import EngineOptions


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return write_toy_checkpoint(tmp_path / "tiny")


@pytest.fixture(name="machine")
def _machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """An RTX 5090 with torch-tensorrt, and a few bytes in place of what a converter makes."""

    def converts(request: GraphRequest, cache: EngineCache) -> dict[str, Any]:
        fetched = cache.fetch(request.key, request.part.encode)
        return {"replaced": fetched.replaced, "convert_seconds": 7.5, "operations": {"add": 9}}

    monkeypatch.setattr(torch_trt_engines, "run_build_process", converts)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("thor_policy_ros.evaluation.build_engines.machine_of", lambda device: {})
    return Machine(monkeypatch)


def build(folder: Path, cache: Path, *arguments: object) -> int:
    fixed = ("--backend", "torch_trt", "--checkpoint", folder, "--cache", cache)
    return main(["build", *map(str, (*fixed, *arguments))])


def figures(folder: Path, cache: Path, *arguments: object) -> dict[str, Any]:
    out = cache.with_suffix(".json")
    assert build(folder, cache, "--json", out, *arguments) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_what_is_built_is_what_the_backend_asks_for(
    folder: Path, tmp_path: Path, machine: Machine
) -> None:
    found = figures(folder, tmp_path / "engines", "--target", "sm_120")
    assert found["kind"] == "torch_trt engines"
    assert found["settings"]["tensorrt"] == "torch-tensorrt 2.13.0, tensorrt 10.13.3"
    assert (found["settings"]["target"], found["settings"]["gpu"]) == ("sm_120", "RTX 5090")
    assert {name: part["built"] for name, part in found["parts"].items()} == dict.fromkeys(
        PARTS, True
    )
    package = installed()
    assert package is not None
    requests = requests_for(
        checkpoint_weights(folder, TINY.model),
        torch.bfloat16,
        EngineOptions(),
        read_settings(folder),
        package,
        import_flavour(package.flavour),
    )
    cache = EngineCache(tmp_path / "engines")
    assert {name: cache.path(r.key).name for name, r in requests.items()} == {
        name: part["file"] for name, part in found["parts"].items()
    }
    again = figures(folder, tmp_path / "engines")
    assert not any(part["built"] for part in again["parts"].values())
    rebuilt = figures(folder, tmp_path / "engines", "--parts", "prefix", "--rebuild")
    assert rebuilt["parts"]["prefix"]["built"] and rebuilt["parts"]["prefix"]["bytes"] == 6


def test_the_table_is_the_same_as_for_tensorrt(
    folder: Path, tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(folder, tmp_path / "engines") == 0
    said = capsys.readouterr().out
    assert all(part in said for part in PARTS) and said.count("built") == 3 and "7.5" in said


def test_only_compiled_parts_are_built(
    folder: Path, tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / FILE).write_text(json.dumps({"compiled": ["prefix", "denoise"]}))
    assert list(figures(folder, tmp_path / "engines")["parts"]) == ["prefix", "denoise"]
    assert build(folder, tmp_path / "engines", "--parts", "vision") == 2
    assert "torch_trt.json leaves vision in PyTorch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("packages", "target", "said"),
    [
        ({}, "current", "package torch-tensorrt==2.13.* or torch-tensorrt-rtx==2.13.*"),
        ({"torch-tensorrt": "2.11.0"}, "current", "torch-tensorrt==2.13.* for torch 2.13.0"),
        ({"torch-tensorrt": "2.13.0"}, "sm_110", "a GPU of sm_110 (here is sm_120)"),
        ({"torch-tensorrt-rtx": "2.13.0"}, "sm_89", "a GPU of sm_89 (here is sm_120)"),
        ({"torch-tensorrt": "2.13.0"}, "thor", "wanted target 'current' or a capability as"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(
    folder: Path,
    tmp_path: Path,
    machine: Machine,
    packages: dict[str, str],
    target: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine.packages, machine.targets = packages, ("sm_89", "sm_120")
    assert build(folder, tmp_path / "none", "--target", target) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_machine_without_a_gpu_says_what_it_lacks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert build(folder, tmp_path / "none", "--target", "sm_120") == 2
    said = capsys.readouterr().err
    assert "engines of 'torch_trt' want a CUDA GPU" in said
    assert "a GPU of sm_120 (here is none)" in said


def test_every_backend_with_engines_can_be_named() -> None:
    assert set(PLANS) == {name for name, engine in ENGINES.items() if engine.takes_options}

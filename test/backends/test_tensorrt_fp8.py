"""Backend tensorrt_fp8: what its products compute, real engines of the toy model, and refusals."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise, toy_outputs
from support.toy_checkpoint import TINY, write_toy_checkpoint
from support.trt_stand_in import TapedGraphs, plan_of, stand_in

from thor_policy_ros.backends import tensorrt, tensorrt_fp8
from thor_policy_ros.backends.engine_cache import EngineKey
from thor_policy_ros.backends.fp8 import Fp8Linear, emulated_matmul
from thor_policy_ros.backends.fp8_scales import Fp8Scales, LayerRanges, Range, write_scales
from thor_policy_ros.backends.network_ops import TorchOps
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.backends.tensorrt import on_device
from thor_policy_ros.backends.tensorrt_fp8 import absmax_of, calibration, lacking_fp8
from thor_policy_ros.backends.trt_backend import TensorRTBackend
from thor_policy_ros.backends.trt_builder import (
    BuildSettings,
    BuiltEngine,
    EngineBuildError,
    build_engine,
)
from thor_policy_ros.backends.trt_engines import Target, requests_for
from thor_policy_ros.backends.trt_execution import DeviceEngine
from thor_policy_ros.backends.trt_module import import_tensorrt, installed_module
from thor_policy_ros.backends.trt_parts import PARTS, in_no_engine, network_of
from thor_policy_ros.backends.trt_weights import checkpoint_weights
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.runtime.engine_difference import cosine
from thor_policy_ros.types import BackendUnavailableError

CONFIG = toy_config()
ABSMAX = (4.0, None, 6.0)
wants_tensorrt = pytest.mark.skipif(installed_module() is None, reason="no TensorRT is installed")


def frame(mlp_absmax: tuple[float | None, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and actions of the recorded inputs, by engines that torch computes."""
    library = stand_in(load_pi05(TOY, CONFIG, dtype=torch.bfloat16), mlp_absmax=mlp_absmax)
    engines = {name: DeviceEngine(library, memoryview(plan_of(name)), name) for name in PARTS}
    backend = TensorRTBackend(
        BACKENDS["tensorrt_fp8"],
        checkpoint_weights(TOY, CONFIG).load(in_no_engine, torch.bfloat16),
        on_device(engines, torch.device("cpu")),
        recorder=TapedGraphs(),
    )
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    keys = prefix.keys.float().clone()
    actions = torch.from_numpy(backend.denoise(prefix, toy_noise()[0].numpy(), 10))
    backend.close()
    return keys, actions


def test_a_product_is_that_of_the_other_fp8_engines() -> None:
    torch.manual_seed(0)
    x, weight = (3 * torch.randn(24, 64)).bfloat16(), torch.randn(96, 64).bfloat16()
    x[0, 0] = 50.0  # saturates
    ours = TorchOps({}).fp8_product(x, weight, 7.0)
    assert torch.equal(ours, Fp8Linear(weight, 7.0, emulated_matmul)(x))
    exact = x.float().clamp(-7.0, 7.0) @ weight.float().t()
    assert 0.999 < cosine(ours.float().numpy(), exact.numpy()) < 1.0


def test_the_frame_stays_near_the_recorded_one_and_is_not_the_dense_one() -> None:
    keys, actions = frame(ABSMAX)
    dense_keys, _ = frame(())
    assert not torch.equal(keys, dense_keys)
    assert torch.equal(keys[:1], dense_keys[:1]), "the first layer's keys precede every MLP"
    assert cosine(keys.numpy(), dense_keys.numpy()) > 0.999
    assert cosine(actions.numpy(), toy_outputs()["actions_10_steps"][0].numpy()) > 0.999


def prefix_engine(target: str, mlp_absmax: tuple[float | None, ...]) -> BuiltEngine:
    model = load_pi05(TOY, CONFIG, dtype=torch.bfloat16)
    buckets = PARTS["prefix"].buckets(CONFIG)[:1]
    settings = BuildSettings(target, 0)
    network = network_of("prefix", mlp_absmax)
    return build_engine(import_tensorrt(), lambda ops: network(ops, model), buckets, settings)


@wants_tensorrt
def test_real_engines_hold_quantise_nodes_and_weights_of_one_byte() -> None:
    built, dense = prefix_engine("sm_120", ABSMAX), prefix_engine("sm_120", ())
    quantised = sum(absmax is not None for absmax in ABSMAX)
    counts = Counter(built.facts.layer_types)
    assert (counts["QUANTIZE"], counts["DEQUANTIZE"]) == (quantised, 2 * quantised)
    assert built.facts.layer_dtypes["QUANTIZE"] == ("FP8",)
    assert "FP8" in built.facts.layer_dtypes["CONSTANT"]
    assert "QUANTIZE" not in dense.facts.layer_types
    size = 2 * CONFIG.language.width * CONFIG.language.mlp_dim
    scales = 8 * quantised
    assert dense.facts.weight_bytes - built.facts.weight_bytes == size * quantised - scales
    assert len(built.plan) > 0


@wants_tensorrt
def test_a_gpu_without_fp8_is_refused_by_the_builder_and_before_it() -> None:
    with pytest.raises(EngineBuildError, match="fp8"):
        prefix_engine("sm_86", ABSMAX)
    assert lacking_fp8("sm_86") == ("a GPU of capability 8.9 or later for FP8 (sm_86 has none)",)
    assert lacking_fp8("sm_89") == lacking_fp8("sm_110") == ()


def calibrated(folder: Path, largest: list[float]) -> Path:
    """Scales of inputs that keep 5.0 in every layer, and were seen to reach `largest`."""
    ranges = [Range(5.0, reached) for reached in largest]
    layers = tuple(LayerRanges(seen, seen) for seen in ranges)
    write_scales(folder, Fp8Scales(checkpoint_hash(folder), 99.9, 1, "a test", layers))
    return folder


def test_scales_are_those_of_calibration_and_layers_that_overflow_stay_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(TOY, tmp_path / "toy"))
    with pytest.raises(BackendUnavailableError, match="run `thor-policy calibrate`"):
        calibration(folder, CONFIG)
    calibrated(folder, [50.0, 6.0, 6.0])
    assert absmax_of(calibration(folder, CONFIG)) == (None, 5.0, 5.0)
    given: list[Any] = []
    monkeypatch.setattr(tensorrt, "load", lambda *arguments: given.extend(arguments))
    monkeypatch.setattr(tensorrt_fp8, "checked_device", torch.device)
    tensorrt_fp8.load(BACKENDS["tensorrt_fp8"], folder, CONFIG, "cuda", None)
    said = ("MLPs of layers 0 stay bfloat16: they overflow E4M3",)
    assert given[-2:] == [(None, 5.0, 5.0), said]
    calibrated(folder, [6.0])
    with pytest.raises(ValueError, match="wanted scales of 3 layers"):
        calibration(folder, CONFIG)


def test_of_the_engines_the_prefix_alone_is_another_one() -> None:
    library = stand_in(load_pi05(TOY, CONFIG))
    weights, target = checkpoint_weights(TOY, CONFIG), Target("sm_120", "any", "sm_120")

    def keys(mlp_absmax: tuple[float | None, ...]) -> dict[str, EngineKey]:
        asked = requests_for(library, weights, torch.bfloat16, target, 2, mlp_absmax)
        return {part: request.key for part, request in asked.items()}

    dense, quantised, wider = keys(()), keys((1.0, None, 1.0)), keys((2.0, None, 1.0))
    assert {part for part in dense if dense[part] != quantised[part]} == {"prefix"}
    assert len({str(one["prefix"]) for one in (dense, quantised, wider)}) == 3


def test_what_it_cannot_do_is_said_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = calibrated(Path(shutil.copytree(TOY, tmp_path / "toy")), [6.0, 6.0, 6.0])
    spec = BACKENDS["tensorrt_fp8"]
    with pytest.raises(BackendUnavailableError, match="'tensorrt_fp8' wants a CUDA device"):
        tensorrt_fp8.load(spec, folder, CONFIG, "cpu", None)
    monkeypatch.setattr(tensorrt_fp8, "checked_device", torch.device)
    with pytest.raises(BackendUnavailableError, match="wants dtype 'bfloat16'"):
        tensorrt_fp8.load(spec, folder, CONFIG, "cuda", "float32")


@wants_tensorrt
def test_it_is_built_ahead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, report = write_toy_checkpoint(tmp_path / "tiny"), tmp_path / "report.json"
    fixed = ["build", "--backend", "tensorrt_fp8", "--checkpoint", str(folder)]
    fixed += ["--cache", str(tmp_path / "engines"), "--level", "0", "--parts", "prefix"]
    for arguments, said in (
        (["--target", "sm_120"], "run `thor-policy calibrate`"),
        (["--target", "sm_86"], "a GPU of capability 8.9 or later for FP8 (sm_86 has none)"),
        (["--target", "sm_120", "--precision", "float32"], "and --precision bfloat16"),
    ):
        assert main([*fixed, *arguments]) == 2
        assert said in capsys.readouterr().err
    layers = TINY.model.language.depth - 1
    calibrated(folder, [6.0] * layers)
    for built in (True, False):
        assert main([*fixed, "--target", "sm_120", "--json", str(report)]) == 0
        part = json.loads(report.read_text())["parts"]["prefix"]
        assert part["built"] is built
        assert not built or part["layer_types"]["QUANTIZE"] == layers

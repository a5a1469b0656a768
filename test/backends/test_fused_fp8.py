"""The fused engine in FP8, with emulated products on a CPU: what is quantised, and how closely."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fused_engine import padded
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise

from thor_policy_ros.backends import fused_fp8
from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.fp8_calibration import ActivationRanges
from thor_policy_ros.backends.fp8_scales import Fp8Scales, Range, read_scales, write_scales
from thor_policy_ros.backends.fused import FusedBackend
from thor_policy_ros.backends.fused_weights import quantisable
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, availability, create_backend
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.types import BackendUnavailableError

NOISE = toy_noise()[0].numpy()


@pytest.fixture(scope="module")
def scales() -> Fp8Scales:
    """Measured on the recorded frame."""
    model = load_pi05(TOY, toy_config())
    ranges, backend = ActivationRanges(model), PyTorchBackend(BACKENDS["pytorch"], model)
    with ranges.recording():
        backend.prefill(toy_model_inputs(), 0.0)
    found = ranges.layers(100.0), ranges.inputs(100.0)
    return Fp8Scales(checkpoint_hash(TOY), 100.0, 1, "test", *found)


def quantised_backend(scales: Fp8Scales) -> FusedBackend:
    model = fused_fp8.quantised(load_pi05(TOY, toy_config(), dtype=torch.bfloat16), scales)
    notes = fused_fp8.notes_of(model)
    return FusedBackend(BACKENDS["fused_fp8"], model, padded(20), notes=notes)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


def test_every_product_of_vision_and_prefix_is_measured(scales: Fp8Scales) -> None:
    names = set(scales.inputs)
    assert names == {name for name, _ in quantisable(load_pi05(TOY, toy_config()))}
    assert "projector" in names and "vision.layers.2.fc2" in names
    assert "language.layers.2.mlp.down_proj" in names
    assert not any(name.startswith(("language.layers.3.", "expert.")) for name in names)
    assert all(0 < seen.kept <= seen.largest for seen in scales.inputs.values())


def test_actions_and_prefix_stay_close_to_float32(scales: Fp8Scales) -> None:
    reference = PyTorchBackend(BACKENDS["pytorch"], load_pi05(TOY, toy_config()))
    ours = quantised_backend(scales)
    given, wanted = (b.prefill(toy_model_inputs(), 0.0) for b in (ours, reference))
    for layer in range(toy_config().language.depth):
        for got, right in ((given.keys, wanted.keys), (given.values, wanted.values)):
            assert cosine(got[layer].float().numpy(), right[layer].numpy()) > 0.99
    actions = ours.denoise(given, NOISE, 10)
    assert 0.999 < cosine(actions, reference.denoise(wanted, NOISE, 10)) < 1.0


def test_what_is_aligned_is_quantised_and_its_original_is_gone(scales: Fp8Scales) -> None:
    source = load_pi05(TOY, toy_config(), dtype=torch.bfloat16)
    model = fused_fp8.quantised(source, scales)
    layer = model.prefix.layers[0]
    assert layer.gate_up.weight.dtype == E4M3 and layer.o.weight.dtype == E4M3
    assert source.language.layers[0].mlp.gate_up_proj.weight.numel() == 0
    expert = model.expert.layers[0]
    assert expert.qkv.data.dtype == E4M3 and expert.qkv.scale is not None
    assert source.expert.layers[0].self_attn.qkv_proj.weight.numel() == 0
    assert model.prefix.last_kv.weight.dtype == torch.bfloat16
    # The toy's vision tower is 40 wide, which no product of 16 aligned values fits.
    assert model.vision.layers[0].fc1.weight.dtype == torch.bfloat16
    assert "vision.layers.0.fc1" in fused_fp8.notes_of(model)[0]


def test_an_input_that_overflows_keeps_its_product_dense(scales: Fp8Scales) -> None:
    name = "language.layers.1.mlp.down_proj"
    outlier = replace(scales, inputs={**scales.inputs, name: Range(kept=1.0, largest=100.0)})
    model = fused_fp8.quantised(load_pi05(TOY, toy_config(), dtype=torch.bfloat16), outlier)
    assert model.prefix.layers[1].down.weight.dtype == torch.bfloat16
    assert name in model.left_dense
    assert model.prefix.layers[1].gate_up.weight.dtype == E4M3


def test_scales_survive_their_file_and_older_files_are_read(
    scales: Fp8Scales, tmp_path: Path
) -> None:
    shutil.copy(TOY / "model.safetensors", tmp_path)
    path = write_scales(tmp_path, scales)
    assert read_scales(tmp_path, toy_config().language.depth - 1) == scales
    data = json.loads(path.read_text())
    del data["inputs"]
    path.write_text(json.dumps(data))
    older = read_scales(tmp_path, toy_config().language.depth - 1)
    assert older is not None and older.inputs == {}
    assert asdict(older)["layers"] == asdict(scales)["layers"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_a_gpu_it_says_so() -> None:
    for name in ("fused_fp8", "fused_fp8_freq1"):
        assert "a CUDA GPU of capability 8.9 or later" in availability(name)[0]
        with pytest.raises(BackendUnavailableError, match="CUDA GPU of capability"):
            create_backend(name, TOY, toy_config())


def test_a_checkpoint_without_scales_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine with scales of its own making: what would be measured per frame is refused."""
    monkeypatch.setattr(fused_fp8, "_missing_on", lambda device: ())
    with pytest.raises(BackendUnavailableError, match="run `thor-policy calibrate` on it"):
        fused_fp8.load(BACKENDS["fused_fp8"], TOY, toy_config(), "cpu", "bfloat16")

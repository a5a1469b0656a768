"""The fp8_mlp engine: calibration, its file, what it replaces, and where it cannot run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise
from torch import Tensor

from thor_policy_ros.backends import fp8_mlp
from thor_policy_ros.backends.fp8 import emulated_matmul
from thor_policy_ros.backends.fp8_calibration import ActivationRanges
from thor_policy_ros.backends.fp8_mlp import HybridMlp, notes_of, quantise_mlps, warnings_of
from thor_policy_ros.backends.fp8_scales import (
    Fp8Scales,
    LayerRanges,
    Range,
    read_scales,
    scales_path,
    write_scales,
)
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, availability, create_backend
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.gemma import Mlp
from thor_policy_ros.model.weight_files import CheckpointError, checkpoint_hash
from thor_policy_ros.types import BackendUnavailableError

SPEC = BACKENDS["fp8_mlp"]
NOISE = toy_noise()[0].numpy()
LAYERS = toy_config().language.depth - 1


def scales_of(folder: Path = TOY, percentile: float = 100.0) -> Fp8Scales:
    """Measured on the recorded frame and a darker one."""
    model = load_pi05(folder, toy_config())
    ranges, backend = ActivationRanges(model), PyTorchBackend(BACKENDS["pytorch"], model)
    given = toy_model_inputs()
    darker = type(given)(given.images / 2, given.image_mask, given.tokens, given.token_mask)
    with ranges.recording():
        backend.prefill(given, 0.0)
        backend.prefill(darker, 0.1)
    backend.prefill(given, 0.2)
    measured = ranges.layers(percentile)
    return Fp8Scales(checkpoint_hash(folder), percentile, 2, "test", measured)


def emulated(scales: Fp8Scales | None) -> PyTorchBackend:
    model = load_pi05(TOY, toy_config())
    quantise_mlps(model, scales, emulated_matmul)
    return PyTorchBackend(SPEC, model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.safetensors", "config.json"):
        shutil.copy(TOY / name, tmp_path / name)
    return tmp_path


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))


class TestEngine:
    @pytest.mark.parametrize("static", [True, False])
    def test_stays_close_to_the_reference_in_every_layer(self, static: bool) -> None:
        ours = emulated(scales_of() if static else None)
        reference = PyTorchBackend(BACKENDS["pytorch"], load_pi05(TOY, toy_config()))
        got, wanted = (b.prefill(toy_model_inputs(), 0.0) for b in (ours, reference))
        for layer in range(LAYERS + 1):
            assert cosine(got.keys[layer], wanted.keys[layer]) > 0.99
            assert cosine(got.values[layer], wanted.values[layer]) > 0.99
        assert torch.equal(got.keys[0], wanted.keys[0]), "before the first MLP"
        assert not torch.equal(got.keys[1], wanted.keys[1])
        actions, exact = (b.denoise(p, NOISE, 3) for b, p in ((ours, got), (reference, wanted)))
        assert cosine(torch.from_numpy(actions), torch.from_numpy(exact)) > 0.99

    def test_replaces_the_mlps_that_a_prefix_computes(self) -> None:
        model = load_pi05(TOY, toy_config())
        quantise_mlps(model, None, emulated_matmul)
        kinds = [type(layer.mlp) for layer in model.language.layers]
        assert kinds == [HybridMlp] * LAYERS + [Mlp]
        assert all(isinstance(layer.mlp, Mlp) for layer in model.expert.layers)

    def test_layers_that_overflow_stay_as_they_were_and_are_named(self) -> None:
        fine = LayerRanges(Range(1.0, 1.5), Range(1.0, 1.5))
        outlier = LayerRanges(Range(1.0, 400.0), Range(1.0, 1.5))
        layers = (fine,) * (LAYERS - 1) + (outlier,)
        scales = Fp8Scales("", 99.9, 9, "test", layers)
        model = load_pi05(TOY, toy_config())
        quantise_mlps(model, scales, emulated_matmul)
        assert type(model.language.layers[LAYERS - 1].mlp) is Mlp
        said = f"MLPs of layers {LAYERS - 1} stay bfloat16: they overflow E4M3"
        assert notes_of(scales) == (said,) and warnings_of(SPEC, scales) == ()

    def test_says_when_scales_are_missing(self) -> None:
        assert "thor-policy calibrate" in warnings_of(SPEC, None)[0]
        assert warnings_of(BACKENDS["fp8_mlp_dynamic"], None) == ()
        assert warnings_of(SPEC, scales_of()) == notes_of(scales_of()) == notes_of(None) == ()


class TestAvailability:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    @pytest.mark.parametrize("name", [n for n, s in BACKENDS.items() if s.engine == "fp8_mlp"])
    def test_without_a_gpu_it_is_unavailable_not_emulated(self, name: str) -> None:
        assert "a CUDA GPU of capability 8.9 or later" in availability(name)[0]
        with pytest.raises(BackendUnavailableError, match=r"capability 8\.9 or later"):
            create_backend(name, TOY, toy_config())

    def test_an_older_gpu_is_named_with_its_capability(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 7))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Orin")
        assert availability("fp8_mlp") == ("a GPU of capability 8.9 or later (Orin has 8.7)",)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (11, 0))
        assert availability("fp8_mlp") == ()

    def test_another_device_or_dtype_is_refused(self) -> None:
        with pytest.raises(BackendUnavailableError, match=r"device is 'cpu'.*dtype 'bfloat16'"):
            fp8_mlp.load(SPEC, TOY, toy_config(), "cpu", "float32")


class TestScales:
    def test_keep_a_percentile_of_the_absmax_of_each_layer(self) -> None:
        top, middle = scales_of(percentile=100.0), scales_of(percentile=50.0)
        assert len(top.layers) == LAYERS
        for high, low in zip(top.layers, middle.layers, strict=True):
            assert high.input.kept == high.input.largest == low.input.largest
            assert 0 < low.input.kept < high.input.kept
            assert 0 < low.hidden.kept < high.hidden.kept

    def test_without_a_frame_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 1 frame"):
            ActivationRanges(load_pi05(TOY, toy_config())).layers(99.9)

    def test_come_back_from_their_file(self, folder: Path) -> None:
        assert read_scales(folder, LAYERS) is None
        scales = scales_of(folder)
        path = write_scales(folder, scales)
        assert path == scales_path(folder, checkpoint_hash(folder))
        assert read_scales(folder, LAYERS) == scales
        assert sorted(p.name for p in folder.iterdir() if "fp8" in p.name) == [path.name]

    def test_are_not_those_of_other_weights(self, folder: Path) -> None:
        write_scales(folder, scales_of(folder))
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "model.safetensors").write_bytes(weights)
        assert read_scales(folder, LAYERS) is None

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda data: {**data, "format": 0},
            lambda data: {**data, "checkpoint": "f" * 64},
            lambda data: {**data, "layers": data["layers"][:-1]},
            lambda data: {key: value for key, value in data.items() if key != "layers"},
        ],
    )
    def test_that_are_wrong_are_refused(self, folder: Path, spoil: object) -> None:
        path = write_scales(folder, scales_of(folder))
        path.write_text(json.dumps(spoil(json.loads(path.read_text()))))  # type: ignore[operator]
        with pytest.raises(ValueError, match="calibrate again"):
            read_scales(folder, LAYERS)

    def test_a_failed_write_leaves_the_old_file(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scales = scales_of(folder)
        path = write_scales(folder, scales)
        before = path.read_bytes()
        monkeypatch.setattr("os.replace", _fails)
        with pytest.raises(OSError, match="disk"):
            write_scales(folder, scales)
        assert path.read_bytes() == before
        assert [p.name for p in folder.iterdir() if "partial" in p.name] == []


class TestHash:
    def test_follows_the_bytes_of_the_weights_alone(self, folder: Path) -> None:
        before = checkpoint_hash(folder)
        (folder / "config.json").write_text("{}")
        assert checkpoint_hash(folder) == before == checkpoint_hash(TOY)
        assert len(before) == 64

    def test_wants_weights(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"wanted model\.safetensors"):
            checkpoint_hash(tmp_path)


def _fails(*arguments: object) -> None:
    raise OSError("disk full")


def test_nan_in_an_activation_reaches_the_actions() -> None:
    """Saturation must not turn a broken network into plausible motion."""
    backend = emulated(scales_of())
    given = toy_model_inputs()
    broken = type(given)(
        np.full_like(given.images, np.nan), given.image_mask, given.tokens, given.token_mask
    )
    assert np.isnan(backend.denoise(backend.prefill(broken, 0.0), NOISE, 1)).any()

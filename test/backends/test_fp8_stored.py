"""FP8 weights stored beside a merged checkpoint: what loading would make itself, and read once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.golden import TOY, toy_config

from thor_policy_ros.backends.fp8 import E4M3, Fp8Linear, emulated_matmul
from thor_policy_ros.backends.fp8_mlp import HybridMlp, load_quantised
from thor_policy_ros.backends.fp8_scales import Fp8Scales, LayerRanges, Range
from thor_policy_ros.backends.fp8_stored import read_stored_fp8, store_fp8
from thor_policy_ros.model import checkpoint
from thor_policy_ros.model.conversion import convert_weights
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.model.weight_files import CheckpointError

CONFIG = toy_config()
LAYERS = CONFIG.language.depth - 1


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    convert_weights(TOY, tmp_path, CONFIG, "merged")
    return tmp_path


def load(folder: Path, scales: Fp8Scales | None = None) -> Pi05:
    return load_quantised(folder, CONFIG, torch.device("cpu"), scales, emulated_matmul)


def same_tensors(a: Pi05, b: Pi05) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return set(ours) == set(theirs) and all(
        torch.equal(ours[name].float(), theirs[name].float()) for name in ours
    )


def scales(overflowing: int | None = None) -> Fp8Scales:
    def layer(index: int) -> LayerRanges:
        fine, wild = Range(4.0, 5.0), Range(4.0, 900.0)
        return LayerRanges(wild if index == overflowing else fine, fine)

    return Fp8Scales("0" * 64, 99.9, 1, "test", tuple(map(layer, range(LAYERS))))


@pytest.mark.parametrize("with_scales", [None, scales(), scales(overflowing=1)])
def test_stored_weights_are_those_that_loading_would_cast(
    merged: Path, with_scales: Fp8Scales | None
) -> None:
    cast = load(merged, with_scales)
    store_fp8(merged, CONFIG.language)
    stored = load(merged, with_scales)
    assert same_tensors(stored, cast)
    assert not any(p.is_meta for p in stored.parameters()) and not stored.training
    kinds = [isinstance(layer.mlp, HybridMlp) for layer in stored.language.layers]
    assert kinds == [isinstance(layer.mlp, HybridMlp) for layer in cast.language.layers]


def test_the_dense_weights_of_stored_layers_are_not_read(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Size] = []
    copy = checkpoint._copy

    def counting(destination: torch.Tensor, source: torch.Tensor) -> None:
        read.append(destination.shape)
        copy(destination, source)

    monkeypatch.setattr(checkpoint, "_copy", counting)
    load(merged)
    everything = read.copy()
    store_fp8(merged, CONFIG.language)
    read.clear()
    load(merged)
    gate_up = torch.Size([2 * CONFIG.language.mlp_dim, CONFIG.language.width])
    assert everything.count(gate_up) - read.count(gate_up) == LAYERS
    assert len(everything) - len(read) == LAYERS


def test_nothing_stored_is_no_error(merged: Path) -> None:
    assert read_stored_fp8(merged, LAYERS) is None


def test_weights_that_changed_since_are_refused(merged: Path) -> None:
    store_fp8(merged, CONFIG.language)
    convert_weights(TOY, merged / "other", CONFIG, "merged", torch.float32)
    (merged / "other" / "model.safetensors").rename(merged / "model.safetensors")
    with pytest.raises(CheckpointError, match="was made from other weights"):
        load(merged)


def test_a_file_of_fewer_layers_is_refused(merged: Path) -> None:
    fewer = dataclasses.replace(CONFIG.language, depth=CONFIG.language.depth - 1)
    store_fp8(merged, fewer)
    with pytest.raises(CheckpointError, match=rf"lacks \['language.layers.{LAYERS - 1}.mlp"):
        load(merged)


def test_only_a_merged_checkpoint_has_a_place_for_it() -> None:
    with pytest.raises(ValueError, match="beside a merged checkpoint alone"):
        store_fp8(TOY, CONFIG.language)


def test_a_quantised_layer_wants_its_own_form() -> None:
    made = Fp8Linear(torch.randn(24, 20))
    again = Fp8Linear.quantised(made.weight, made.weight_scale, (24, 20), 3.0, emulated_matmul)
    other = Fp8Linear(torch.zeros(24, 20), 3.0, emulated_matmul)
    assert again.weight.dtype == E4M3 and torch.equal(again.input_scale, other.input_scale)  # type: ignore[arg-type]
    x = torch.randn(3, 20)
    assert again(x).shape == (3, 24)
    with pytest.raises(
        ValueError, match=r"wanted torch.float8_e4m3fn \[32, 48\], got .* \[32, 32\]"
    ):
        Fp8Linear.quantised(made.weight, made.weight_scale, (24, 40))

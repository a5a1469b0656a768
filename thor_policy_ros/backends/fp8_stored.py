"""FP8 weights kept beside a merged checkpoint, so that loading neither reads nor casts the dense
ones: gate and up of every MLP that a prefix computes, as `Fp8Linear` has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import ALIGNMENT, E4M3, Fp8Linear
from thor_policy_ros.model.checksums import renew_checksums
from thor_policy_ros.model.config import GemmaConfig
from thor_policy_ros.model.weight_files import (
    WEIGHTS,
    CheckpointError,
    checkpoint_hash,
    opened,
    read_contents,
)
from thor_policy_ros.model.weight_writer import TensorPlan, write_safetensors

FILE = "fp8_mlp.safetensors"
WEIGHTS_HASH = "weights_sha256"
"""Of the checkpoint that the file was made from, in its metadata."""


class StoredFp8(NamedTuple):
    """weight: e4m3, rows and columns filled up to ALIGNMENT. scale: f32[]. On the host."""

    weight: Tensor
    scale: Tensor


def gate_up_name(layer: int) -> str:
    """The parameter of `Pi05` that is stored for a layer of the prefix."""
    return f"language.layers.{layer}.mlp.gate_up_proj.weight"


def store_fp8(folder: Path | str, config: GemmaConfig) -> Path:
    """Quantise the MLPs of a merged checkpoint, one at a time, and write them beside it."""
    folder = Path(folder)
    if read_contents(folder).layout != "merged":
        raise ValueError(f"{folder}: FP8 weights are stored beside a merged checkpoint alone")
    shape = (_filled(2 * config.mlp_dim), _filled(config.width))
    with opened(folder / WEIGHTS) as file:

        def quantised(layer: int) -> Fp8Linear:
            return Fp8Linear(file.get_tensor(gate_up_name(layer)).bfloat16())

        plans: list[TensorPlan] = []
        for layer in range(config.depth - 1):
            plans += _plans(layer, shape, quantised)
        metadata = {"format": "pt", WEIGHTS_HASH: checkpoint_hash(folder)}
        write_safetensors(folder / FILE, plans, metadata)
    renew_checksums(folder, (FILE,))
    return folder / FILE


def read_stored_fp8(folder: Path | str, layers: int) -> Mapping[int, StoredFp8] | None:
    """By layer, mapped from the file; None where none is stored. CheckpointError for a file
    that was made from other weights: convert again."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    with opened(path) as file:
        made_from, wanted = (file.metadata() or {}).get(WEIGHTS_HASH), checkpoint_hash(folder)
        if made_from != wanted:
            raise CheckpointError(
                f"{path} was made from other weights ({str(made_from)[:16]}) than those beside it"
                f" ({wanted[:16]}); convert the checkpoint again, or delete it"
            )
        names = set(file.keys())
        missing = [gate_up_name(i) for i in range(layers) if gate_up_name(i) not in names]
        if missing:
            raise CheckpointError(f"{path} lacks {missing}; convert the checkpoint again")
        return {
            layer: StoredFp8(
                file.get_tensor(gate_up_name(layer)),
                file.get_tensor(f"{gate_up_name(layer)}_scale")[0],
            )
            for layer in range(layers)
        }


def _plans(layer: int, shape: tuple[int, ...], quantised: object) -> Iterator[TensorPlan]:
    assert callable(quantised)
    name = gate_up_name(layer)
    yield TensorPlan(name, shape, E4M3, lambda: iter([quantised(layer).weight]))
    yield TensorPlan(
        f"{name}_scale", (1,), torch.float32, lambda: iter([quantised(layer).weight_scale[None]])
    )


def _filled(size: int) -> int:
    return size + -size % ALIGNMENT

"""The recorded pi0.5 outputs under test/data/golden, as tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from thor_policy_ros.model.config import Pi05Config, model_config_from_json
from thor_policy_ros.types import ModelInputs

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TOY, TOY_LEROBOT = GOLDEN / "pi05_toy", GOLDEN / "pi05_toy_lerobot"
TOLERANCE = 2e-4


def toy_config() -> Pi05Config:
    return model_config_from_json(json.loads((TOY / "config.json").read_text()))


def toy_outputs() -> dict[str, Tensor]:
    return load_file(TOY / "outputs.safetensors")


def toy_noise() -> Tensor:
    return load_file(TOY / "inputs.safetensors")["noise"]


def toy_inputs() -> dict[str, Tensor]:
    """Keyword arguments of `Pi05.prefill`."""
    recorded = load_file(TOY / "inputs.safetensors")
    return {
        "images": torch.stack([recorded[f"image_{i}"] for i in range(3)], 1),
        "image_mask": recorded["image_masks"][None],
        "tokens": recorded["tokens"],
        "token_mask": recorded["token_mask"],
    }


def largest_error(ours: Tensor, recorded: Tensor) -> float:
    assert ours.shape == recorded.shape
    return float((ours.double() - recorded.double()).abs().max())


def toy_model_inputs() -> ModelInputs:
    """The recorded inputs as the transforms would hand them over."""
    recorded = toy_inputs()
    return ModelInputs(
        images=recorded["images"][0].numpy(),
        image_mask=recorded["image_mask"][0].numpy(),
        tokens=recorded["tokens"][0].numpy().astype(np.int32),
        token_mask=recorded["token_mask"][0].numpy(),
    )

"""Where an engine's weights come from: a checkpoint, or random numbers to measure with.

A part is loaded alone, so that building needs no more memory than the part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from thor_policy_ros.model.checkpoint import allocate, load_pi05
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.model.weight_files import checkpoint_hash

Wanted = Callable[[str], bool]
RANDOM_STD = 0.02


@dataclass(frozen=True)
class Weights:
    """identity: what the engines are kept under, see `checkpoint_weights` and `random_weights`.
    folder: of the checkpoint; None for random ones."""

    identity: str
    config: Pi05Config
    folder: Path | None = None

    def load(self, wanted: Wanted, dtype: torch.dtype, device: torch.device | str = "cpu") -> Pi05:
        """The model with memory and weights for the wanted parameters alone. Raises
        CheckpointError for a folder that does not fit the whole model."""
        if self.folder is not None:
            return load_pi05(self.folder, self.config, device, dtype, wanted)
        return _random(self.config, wanted, dtype, torch.device(device))


def checkpoint_weights(folder: Path | str, config: Pi05Config) -> Weights:
    """Known by the hash of the files, which reads all of them."""
    return Weights(checkpoint_hash(folder), config, Path(folder))


def random_weights(config: Pi05Config) -> Weights:
    """The same ones for the same sizes; for figures, not for a robot."""
    return Weights("random", config)


def _random(config: Pi05Config, wanted: Wanted, dtype: torch.dtype, device: torch.device) -> Pi05:
    with torch.device("meta"):
        model = Pi05(config)
    allocate(model, device, dtype, wanted)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_meta:
                parameter.normal_(std=RANDOM_STD, generator=generator)
    return model.eval().requires_grad_(False)

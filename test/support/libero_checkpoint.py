"""A toy checkpoint for LIBERO's robot: random weights, pi05_libero's cameras, state and actions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.model.named_configs import LIBERO

TOY_LIBERO = dataclasses.replace(
    LIBERO,
    name="toy_libero",
    model=dataclasses.replace(TINY.model, num_cameras=3, action_horizon=10, max_token_len=120),
    asset_id="toy",
)


def write_libero_checkpoint(folder: Path, seed: int = 0) -> Path:
    return write_toy_checkpoint(folder, TOY_LIBERO, seed)

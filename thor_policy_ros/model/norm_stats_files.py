"""Normalisation statistics written as openpi and LeRobot keep them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from thor_policy_ros.model.norm_stats import LEROBOT_KEYS, NormStats
from thor_policy_ros.model.whole_file import write_whole

LEROBOT_STATS = "policy_preprocessor_step_3_normalizer_processor.safetensors"
"""The name under which LeRobot's own pipeline for pi0.5 saves its third step."""


def write_openpi_stats(folder: Path, asset_id: str, stats: NormStats) -> Path:
    path = folder / "assets" / asset_id / "norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = {
        part: {name: vector.tolist() for name, vector in getattr(stats, part).items()}
        for part in ("state", "actions")
    }
    write_whole(path, json.dumps({"norm_stats": groups}, indent=1) + "\n")
    return path


def write_lerobot_stats(folder: Path, stats: NormStats) -> Path:
    path = folder / LEROBOT_STATS
    tensors = {
        f"{LEROBOT_KEYS[part]}.{name}": vector.astype(np.float32)
        for part in ("state", "actions")
        for name, vector in getattr(stats, part).items()
    }
    return write_whole(path, save(tensors))

"""A trained demo policy as a checkpoint folder: openpi's layout, half precision."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from thor_policy_ros.model.checkpoint import save_pi05
from thor_policy_ros.model.checksums import write_checksums
from thor_policy_ros.model.config import PolicyConfig, to_json
from thor_policy_ros.model.pi05 import Pi05

TOKENIZER = "tokenizer.model"


def write_checkpoint(
    folder: Path,
    config: PolicyConfig,
    model: Pi05,
    norm_stats: dict[str, dict[str, list[float]]],
    tokenizer: bytes,
) -> Path:
    """Write everything that `UnifiedPolicy` reads; returns the folder.

    float16 halves the file; the demo's weights and activations are far inside its range.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors makes files that only their owner can read
    save_pi05(model, folder, torch.float16).chmod(0o644)
    _write_json(folder / "config.json", {"policy": to_json(config)})
    stats = folder / "assets" / config.asset_id / "norm_stats.json"
    stats.parent.mkdir(parents=True, exist_ok=True)
    _write_json(stats, {"norm_stats": norm_stats})
    (folder / TOKENIZER).write_bytes(tokenizer)
    write_checksums(folder)
    return folder


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")

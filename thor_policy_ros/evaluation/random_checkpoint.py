"""A checkpoint of random weights at any size, made tensor by tensor: to measure loading with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from thor_policy_ros.model.config import PolicyConfig, to_json
from thor_policy_ros.model.conversion import EXPERT_HEAD
from thor_policy_ros.model.key_layout import EMBEDDING_KEYS, LAYOUT_PREFIXES, all_parts
from thor_policy_ros.model.pi05 import Pi05, stays_float32
from thor_policy_ros.model.weight_files import WEIGHTS
from thor_policy_ros.model.weight_writer import BLOCK_BYTES, TensorPlan, write_safetensors

DEVIATION = 0.02


def write_random_checkpoint(
    folder: Path,
    config: PolicyConfig,
    layout: str = "openpi",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    progress: Callable[[int], None] = lambda num_bytes: None,
    device: torch.device | str = "cpu",
) -> Path:
    """`folder` with weights in openpi's or LeRobot's layout, statistics and config.json, but no
    tokenizer; returns the weights' path. The weights of a seed and a device are the same in both
    layouts.

    dtype: of all but the parts that stay float32, as openpi stores them.
    device: draws the numbers; a GPU is done long before a CPU core's half minute for pi0.5.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = torch.device(device)
    with torch.device("meta"):
        parameters = dict(Pi05(config.model).named_parameters())
    prefix, plans = LAYOUT_PREFIXES[layout], []
    for index, (key, part) in enumerate(all_parts(parameters.items(), config.model).items()):
        kind = torch.float32 if stays_float32(part.parameter) else dtype
        keys: tuple[str, ...] = (key,)
        if key in EMBEDDING_KEYS:
            keys = EMBEDDING_KEYS[1:] if layout == "openpi" else EMBEDDING_KEYS
        blocks = _random(part.shape, kind, seed * 100_003 + index, place)
        plans += [TensorPlan(prefix + name, part.shape, kind, blocks) for name in keys]
    head = (config.model.vocab_size, config.model.action_expert.width)
    blocks = _random(head, dtype, seed - 1, place)
    plans.append(TensorPlan(prefix + EXPERT_HEAD, head, dtype, blocks))
    write_safetensors(folder / WEIGHTS, plans, {"format": "pt"}, progress)
    (folder / "config.json").write_text(json.dumps({"policy": to_json(config)}))
    _write_stats(folder / "assets" / config.asset_id, config)
    return folder / WEIGHTS


def _random(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, device: torch.device
) -> Callable[[], Iterator[Tensor]]:
    def blocks() -> Iterator[Tensor]:
        random = torch.Generator(device).manual_seed(seed % 2**31)
        rows = max(1, BLOCK_BYTES // 4 // max(1, torch.Size(shape[1:]).numel()))
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            drawn = torch.empty((count, *shape[1:]), device=device)
            yield drawn.normal_(0.0, DEVIATION, generator=random).to(dtype)

    return blocks


def _write_stats(folder: Path, config: PolicyConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stats = {
        part: {"mean": [0.0] * dims, "std": [1.0] * dims, "q01": [-1.0] * dims, "q99": [1.0] * dims}
        for part, dims in (("state", config.state_dim), ("actions", config.action_dim))
    }
    (folder / "norm_stats.json").write_text(json.dumps({"norm_stats": stats}))

"""A complete checkpoint folder of a tiny random policy: weights, config, statistics, tokenizer."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from thor_policy_ros.model.checkpoint import save_pi05
from thor_policy_ros.model.config import (
    GemmaConfig,
    Pi05Config,
    PolicyConfig,
    VisionConfig,
    to_json,
)
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.types import Observation

TINY = PolicyConfig(
    name="tiny",
    model=Pi05Config(
        action_dim=32,
        action_horizon=6,
        max_token_len=80,
        vocab_size=320,
        num_cameras=2,
        vision=VisionConfig(
            image_size=28, patch_size=14, width=16, depth=1, num_heads=2, mlp_dim=24
        ),
        language=GemmaConfig(
            width=16, depth=2, mlp_dim=24, num_heads=2, num_kv_heads=1, head_dim=8
        ),
        action_expert=GemmaConfig(
            width=12, depth=2, mlp_dim=20, num_heads=2, num_kv_heads=1, head_dim=8
        ),
    ),
    camera_slots=("base_0_rgb", "left_wrist_0_rgb"),
    state_dim=4,
    action_dim=3,
    state_in_prompt=True,
    normalisation="quantile",
    action_dt_s=0.1,
    relative_actions=(True, True, False),
    asset_id="tiny",
)


def norm_stats_json(config: PolicyConfig, seed: int = 0) -> dict[str, object]:
    """Plausible statistics with q01 < q99 in every dimension, as openpi's file holds them."""
    random = np.random.default_rng(seed)

    def group(dims: int) -> dict[str, list[float]]:
        low, width = random.normal(size=dims), random.uniform(0.5, 3.0, dims)
        stats = {"mean": low + width / 2, "std": width / 4, "q01": low, "q99": low + width}
        return {name: values.tolist() for name, values in stats.items()}

    return {"norm_stats": {"state": group(config.state_dim), "actions": group(config.action_dim)}}


def write_tokenizer(path: Path) -> Path:
    """A sentencepiece model of characters and bytes, with PaliGemma's control ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcdefghijklmnopqrstuvwxyz ,:;0123456789"]),
        model_writer=model,
        model_type="char",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def write_toy_checkpoint(folder: Path, config: PolicyConfig = TINY, seed: int = 0) -> Path:
    """Write everything that `UnifiedPolicy(folder)` needs; returns the folder."""
    torch.manual_seed(seed)
    save_pi05(Pi05(config.model), folder)
    (folder / "config.json").write_text(json.dumps({"policy": to_json(config)}))
    assets = folder / "assets" / config.asset_id
    assets.mkdir(parents=True)
    (assets / "norm_stats.json").write_text(json.dumps(norm_stats_json(config)))
    write_tokenizer(folder / "tokenizer.model")
    return folder


def toy_observation(
    config: PolicyConfig = TINY, seed: int = 0, stamp_s: float = 0.0
) -> Observation:
    """Random images of camera size for every slot, and a state in the middle of nowhere."""
    random = np.random.default_rng(seed)
    images = {
        slot: random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for slot in config.camera_slots
    }
    state = random.normal(size=config.state_dim).astype(np.float32)
    return Observation(images, state, "pick up the red_block", stamp_s)


def without_state(config: PolicyConfig = TINY) -> PolicyConfig:
    """The same policy with the state left out of the prompt."""
    return dataclasses.replace(config, state_in_prompt=False)

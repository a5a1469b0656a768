"""A checkpoint folder of the demo arm, with random weights of toy size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from thor_policy_ros.model.checkpoint import save_pi05
from thor_policy_ros.model.config import GemmaConfig, PolicyConfig, VisionConfig, to_json
from thor_policy_ros.model.named_configs import DEMO
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.training.demo_tokenizer import write_demo_tokenizer

_GEMMA = GemmaConfig(width=32, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=16)
_VISION = VisionConfig(image_size=32, patch_size=16, width=32, depth=1, num_heads=2, mlp_dim=32)


def arm_policy_config() -> PolicyConfig:
    model = replace(DEMO.model, vision=_VISION, language=_GEMMA, action_expert=_GEMMA)
    return replace(DEMO, model=model)


def write_arm_checkpoint(folder: Path) -> Path:
    """Actions stay within about 0.1 of the state; the same weights on every call."""
    config = arm_policy_config()
    torch.manual_seed(0)
    save_pi05(Pi05(config.model), folder)
    (folder / "config.json").write_text(json.dumps({"policy": to_json(config)}))
    write_demo_tokenizer(folder / "tokenizer.model")
    stats = {
        "state": {"q01": [-2.0] * config.state_dim, "q99": [2.0] * config.state_dim},
        "actions": {"q01": [-0.02] * config.action_dim, "q99": [0.02] * config.action_dim},
    }
    path = folder / "assets" / config.asset_id / "norm_stats.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"norm_stats": stats}))
    return folder

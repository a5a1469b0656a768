"""Checkpoints for LIBERO's robot: random weights, pi05_libero's cameras, state and actions.

    PYTHONPATH=.:test python -m support.libero_checkpoint FOLDER

writes one whose networks have the sizes of the demo's policy.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.model.config import PolicyConfig, policy_config_from_json
from thor_policy_ros.model.named_configs import LIBERO

DEMO = Path(__file__).resolve().parents[2] / "checkpoints" / "demo"

TOY_LIBERO = dataclasses.replace(
    LIBERO,
    name="toy_libero",
    model=dataclasses.replace(TINY.model, num_cameras=3, action_horizon=10, max_token_len=120),
    asset_id="toy",
)


def demo_sized() -> PolicyConfig:
    """LIBERO's robot, and networks as large as the demo's."""
    demo = policy_config_from_json(json.loads((DEMO / "config.json").read_text())["policy"])
    model = dataclasses.replace(demo.model, num_cameras=3, max_token_len=120)
    return dataclasses.replace(LIBERO, name="demo_libero", model=model, asset_id="demo")


def write_libero_checkpoint(folder: Path, seed: int = 0, config: PolicyConfig = TOY_LIBERO) -> Path:
    return write_toy_checkpoint(folder, config, seed)


if __name__ == "__main__":
    print(write_libero_checkpoint(Path(sys.argv[1]), config=demo_sized()))

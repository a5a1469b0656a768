"""Toy sizes for training tests: a small demo policy and a few recorded frames."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from support.arm_checkpoint import arm_policy_config

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.training.disturbed_expert import record_episodes
from thor_policy_ros.training.expert_data import ExpertData

IMAGE_SIZE = 16
EPISODES = 3


def toy_config() -> PolicyConfig:
    """The demo's conventions with 16 pixel images and a few thousand parameters."""
    config = arm_policy_config()
    vision = replace(config.model.vision, image_size=IMAGE_SIZE, patch_size=8)
    return replace(config, model=replace(config.model, vision=vision))


def toy_data() -> ExpertData:
    """A few episodes of the disturbed expert, recorded in this process."""
    recorded = record_episodes(0, range(EPISODES), IMAGE_SIZE)
    narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}
    return ExpertData(
        **{
            f.name: recorded[f.name].astype(
                narrow.get(recorded[f.name].dtype, recorded[f.name].dtype)
            )
            for f in fields(ExpertData)
        }
    )

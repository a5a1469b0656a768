"""The named policies, and how a checkpoint folder says which one it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from thor_policy_ros.model.config import (
    GemmaConfig,
    Pi05Config,
    PolicyConfig,
    VisionConfig,
    policy_config_from_json,
)
from thor_policy_ros.model.foreign_config import disagreements
from thor_policy_ros.model.json_fields import read_object

CONFIG = "config.json"
SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
SO400M_14 = VisionConfig(
    image_size=224, patch_size=14, width=1152, depth=27, num_heads=16, mlp_dim=4304
)
GEMMA_2B = GemmaConfig(
    width=2048, depth=18, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256
)
GEMMA_300M = GemmaConfig(
    width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256
)


def _pi05(action_horizon: int) -> Pi05Config:
    return Pi05Config(
        action_dim=32,
        action_horizon=action_horizon,
        max_token_len=200,
        vocab_size=257152,
        num_cameras=3,
        vision=SO400M_14,
        language=GEMMA_2B,
        action_expert=GEMMA_300M,
    )


# State: end effector position 3, axis-angle 3, gripper 2. Actions: end effector
# displacements 6 and gripper, for LIBERO's controller at 20 Hz.
LIBERO = PolicyConfig(
    name="pi05_libero",
    model=_pi05(10),
    camera_slots=SLOTS,
    state_dim=8,
    action_dim=7,
    state_in_prompt=False,
    normalisation="quantile",
    action_dt_s=1 / 20,
    relative_actions=(False,) * 7,
    asset_id="physical-intelligence/libero",
)

# State: joint positions 7 and gripper. Actions: joint velocities 7 and gripper, at 15 Hz.
DROID = PolicyConfig(
    name="pi05_droid",
    model=_pi05(15),
    camera_slots=SLOTS,
    state_dim=8,
    action_dim=8,
    state_in_prompt=True,
    normalisation="quantile",
    action_dt_s=1 / 15,
    relative_actions=(False,) * 8,
    asset_id="droid",
)

# State and actions: left joints 6, left gripper, right joints 6, right gripper, at 50 Hz.
ALOHA = PolicyConfig(
    name="pi05_aloha",
    model=_pi05(50),
    camera_slots=SLOTS,
    state_dim=14,
    action_dim=14,
    state_in_prompt=True,
    normalisation="quantile",
    action_dt_s=1 / 50,
    relative_actions=((True,) * 6 + (False,)) * 2,
    asset_id="trossen",
    aloha_units=True,
)

# The simulated arm of `make demo`. State: four joint positions and 1 while something is
# held; actions: four joint setpoints and suction, at 10 Hz. These are the sizes that
# `thor-policy train-demo` trains; a checkpoint's config.json has those it was trained with.
DEMO = PolicyConfig(
    name="demo",
    model=Pi05Config(
        action_dim=32,
        action_horizon=10,
        max_token_len=40,
        vocab_size=537,
        num_cameras=2,
        vision=VisionConfig(
            image_size=64, patch_size=8, width=128, depth=3, num_heads=4, mlp_dim=384
        ),
        language=GemmaConfig(
            width=128, depth=4, mlp_dim=384, num_heads=4, num_kv_heads=1, head_dim=32
        ),
        action_expert=GemmaConfig(
            width=128, depth=4, mlp_dim=384, num_heads=4, num_kv_heads=1, head_dim=32
        ),
    ),
    camera_slots=SLOTS[:2],
    state_dim=5,
    action_dim=5,
    state_in_prompt=True,
    normalisation="quantile",
    action_dt_s=1 / 10,
    relative_actions=(True,) * 4 + (False,),
    asset_id="demo",
)

NAMED: dict[str, PolicyConfig] = {c.name: c for c in (LIBERO, DROID, ALOHA, DEMO)}


def load_policy_config(
    folder: Path | str, config: PolicyConfig | str | Path | None = None
) -> PolicyConfig:
    """The policy of a checkpoint folder.

    config: a PolicyConfig, a name in NAMED, or a JSON file of PolicyConfig fields. None
    reads the folder's own `config.json`, whose `policy` is a name or such fields; folders
    saved by openpi or LeRobot have no such entry, so their policy has to be named. What their
    `config.json` does say must agree: ValueError names each difference.
    """
    chosen = _from_folder(Path(folder)) if config is None else chosen_config(config)
    _check_agreement(chosen, Path(folder) / CONFIG)
    return chosen


def chosen_config(config: PolicyConfig | str | Path) -> PolicyConfig:
    """A PolicyConfig as it is, by its name in NAMED, or from a JSON file of its fields."""
    if isinstance(config, PolicyConfig):
        return config
    if str(config) in NAMED:
        return NAMED[str(config)]
    if Path(config).is_file():
        return policy_config_from_json(read_object(Path(config)), str(config))
    raise ValueError(
        f"unknown policy config {str(config)!r}; choose one of: {', '.join(sorted(NAMED))},"
        " or give a JSON file of PolicyConfig fields"
    )


def _check_agreement(config: PolicyConfig, path: Path) -> None:
    found = disagreements(config, read_object(path)) if path.is_file() else []
    if found:
        raise ValueError(
            f"{path} was saved for another policy than config {config.name!r}: {'; '.join(found)}."
            " Name the config that the checkpoint was trained with, or give a JSON file of"
            " PolicyConfig fields"
        )


def _from_folder(folder: Path) -> PolicyConfig:
    path = folder / CONFIG
    if not folder.is_dir():
        raise FileNotFoundError(f"wanted a checkpoint folder, got {folder}: no such folder")
    policy = read_object(path).get("policy") if path.is_file() else None
    if isinstance(policy, Mapping):
        return policy_config_from_json(policy, f"{path}: policy")
    if isinstance(policy, str) and policy in NAMED:
        return NAMED[policy]
    said = f"names an unknown policy {policy!r}" if policy else 'has no "policy" entry'
    raise ValueError(
        f"{path} {said}, so the robot's cameras, state and actions are not known; name the"
        f" config: one of {', '.join(sorted(NAMED))}, or a JSON file of PolicyConfig fields"
    )

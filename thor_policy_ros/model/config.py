"""Sizes of the network and conventions of a policy: frozen data, read from and written to JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from thor_policy_ros.model.json_fields import check_sizes, from_json

NORMALISATIONS = ("quantile", "zscore")


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP: square images of `image_size` pixels cut into patches of `patch_size`."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"vision width {self.width} is not a multiple of num_heads {self.num_heads}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of one camera image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class GemmaConfig:
    """One Gemma stack: the prefix (language) or the action expert."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2 or self.width % 2:
            raise ValueError(
                f"head_dim {self.head_dim} and width {self.width} must both be even:"
                " RoPE and the time embedding split them in halves"
            )


@dataclass(frozen=True)
class Pi05Config:
    """Sizes of the whole network; the JSON of a checkpoint's `config.json` has these names.

    action_dim: padded action dimension of the model (32), not the robot's.
    max_token_len: prompt tokens after right-padding.
    """

    action_dim: int
    action_horizon: int
    max_token_len: int
    vocab_size: int
    num_cameras: int
    vision: VisionConfig
    language: GemmaConfig
    action_expert: GemmaConfig

    def __post_init__(self) -> None:
        check_sizes(self)
        for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            ours, theirs = getattr(self.language, name), getattr(self.action_expert, name)
            if ours != theirs:
                raise ValueError(
                    f"language.{name} is {ours} but action_expert.{name} is {theirs}:"
                    " the expert attends to the prefix layer by layer, so they must agree"
                )

    @property
    def max_prefix_len(self) -> int:
        """Prefix tokens with every camera present and the prompt padded to its full length."""
        return self.num_cameras * self.vision.num_tokens + self.max_token_len


@dataclass(frozen=True)
class PolicyConfig:
    """What a checkpoint expects from a robot and gives back to it.

    camera_slots: names of the image inputs, in the model's order; len is model.num_cameras.
    state_dim, action_dim: the robot's, before padding to the model's action_dim.
    state_in_prompt: whether the normalised state is written into the prompt as bins.
    action_dt_s: seconds between two rows of an action chunk.
    relative_actions: per action dimension, whether the model's output is relative to the
        state measured at observation time; action i is relative to state i.
    asset_id: folder of the norm statistics below `assets/`.
    aloha_units: the robot speaks the Aloha runtime's joint signs and gripper units, which
        are converted to those the base model was trained on (see `model/aloha.py`).
    trained_prefix_rows: rows of a chunk that the checkpoint was trained to take as given and
        to continue; 0 for one that was not.
    """

    name: str
    model: Pi05Config
    camera_slots: tuple[str, ...]
    state_dim: int
    action_dim: int
    state_in_prompt: bool
    normalisation: Literal["quantile", "zscore"]
    action_dt_s: float
    relative_actions: tuple[bool, ...]
    asset_id: str
    aloha_units: bool = False
    trained_prefix_rows: int = 0

    def __post_init__(self) -> None:
        _check_policy(self)


def _check_policy(config: PolicyConfig) -> None:
    """Raise ValueError where fields of a PolicyConfig contradict each other."""
    if config.normalisation not in NORMALISATIONS:
        raise ValueError(
            f"unknown normalisation {config.normalisation!r}; choose one of:"
            f" {', '.join(NORMALISATIONS)}"
        )
    if len(config.camera_slots) != config.model.num_cameras:
        raise ValueError(
            f"config {config.name!r} names {len(config.camera_slots)} camera slots"
            f" {config.camera_slots} for a model of {config.model.num_cameras} cameras"
        )
    if len(config.relative_actions) != config.action_dim:
        raise ValueError(
            f"config {config.name!r}: relative_actions has {len(config.relative_actions)}"
            f" entries for {config.action_dim} action dimensions; give one for each"
        )
    if any(config.relative_actions[config.state_dim :]):
        raise ValueError(
            f"config {config.name!r}: an action beyond state dimension {config.state_dim}"
            " cannot be relative to the state"
        )
    if config.action_dim > config.model.action_dim:
        raise ValueError(
            f"config {config.name!r}: {config.action_dim} robot actions do not fit the model's"
            f" {config.model.action_dim}"
        )
    if not 0 <= config.trained_prefix_rows < config.model.action_horizon:
        raise ValueError(
            f"config {config.name!r}: trained_prefix_rows is {config.trained_prefix_rows}; wanted"
            f" 0 to {config.model.action_horizon - 1}, so that a row is left to infer"
        )
    if config.state_dim < 0 or config.action_dim < 1:
        raise ValueError(
            f"config {config.name!r}: state_dim {config.state_dim} and action_dim"
            f" {config.action_dim}; wanted 0 or more, and 1 or more"
        )
    if not 0 < config.action_dt_s < math.inf:
        raise ValueError(f"config {config.name!r}: action_dt_s must be positive, in seconds")


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON data (tuples become lists)."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }


def model_config_from_json(data: Mapping[str, Any], where: str = "config") -> Pi05Config:
    """Sizes from parsed JSON; missing and unknown fields are named in one ValueError."""
    return from_json(Pi05Config, data, where)


def policy_config_from_json(data: Mapping[str, Any], where: str = "config") -> PolicyConfig:
    """A policy's conventions from parsed JSON, the sizes under `model`."""
    return from_json(PolicyConfig, data, where)

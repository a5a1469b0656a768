"""What openpi or LeRobot wrote about a checkpoint, compared with the config it is to run with.

The weights fit any horizon and any normalisation, so a wrong name would run and act wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thor_policy_ros.model.config import PolicyConfig

LEROBOT_NORMALISATIONS = {"quantile": "QUANTILES", "zscore": "MEAN_STD"}


def disagreements(config: PolicyConfig, saved: Mapping[str, Any]) -> list[str]:
    """One line for each fact in which the folder's config.json contradicts `config`.

    saved: the parsed config.json; facts that it does not hold are not judged.
    """
    if "type" in saved:
        return _of_lerobot(config, saved)
    return _differences(
        ("action_horizon", saved.get("action_horizon"), config.model.action_horizon),
        ("action_dim", saved.get("action_dim"), config.model.action_dim),
    )


def _of_lerobot(config: PolicyConfig, saved: Mapping[str, Any]) -> list[str]:
    mapping = saved.get("normalization_mapping") or {}
    if not isinstance(mapping, Mapping):
        return [f"normalization_mapping is {mapping!r}, wanted an object"]
    normalisation = LEROBOT_NORMALISATIONS[config.normalisation]
    return _differences(
        ("type", saved["type"], "pi05"),
        ("chunk_size", saved.get("chunk_size"), config.model.action_horizon),
        ("max_action_dim", saved.get("max_action_dim"), config.model.action_dim),
        ("normalization_mapping.STATE", mapping.get("STATE"), normalisation),
        ("normalization_mapping.ACTION", mapping.get("ACTION"), normalisation),
        ("use_relative_actions", saved.get("use_relative_actions"), any(config.relative_actions)),
        ("use_visual_memory", saved.get("use_visual_memory"), False),
        ("use_proprioceptive_memory", saved.get("use_proprioceptive_memory"), False),
    )


def _differences(*facts: tuple[str, Any, Any]) -> list[str]:
    """Of (name, in the file, wanted); None is not in the file."""
    return [
        f"{name} is {held!r}, the config wants {wanted!r}"
        for name, held, wanted in facts
        if held is not None and held != wanted
    ]

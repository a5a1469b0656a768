"""What the policy node loads, and whether its files have to be known."""

from __future__ import annotations

from thor_policy_ros.ros.parameters import ParameterRow

CHECKPOINT = (
    ParameterRow(
        "checkpoint",
        "string",
        "",
        "Folder with model.safetensors, in openpi's or LeRobot's layout",
    ),
    ParameterRow(
        "require_checksums",
        "bool",
        False,
        "Refuse a checkpoint without checksums.json (`thor-policy inspect CHECKPOINT "
        "--write-checksums`); where there is one, every load holds the files to it either way. No "
        "effect on openpi_remote, whose files are on the server",
    ),
    ParameterRow(
        "policy_config",
        "string",
        "",
        "Named policy (pi05_libero, pi05_droid, ...) or a JSON file of PolicyConfig fields; "
        "empty: as the checkpoint's config.json says",
    ),
    ParameterRow(
        "tokenizer",
        "string",
        "",
        "PaliGemma sentencepiece model; empty: the checkpoint folder's own",
    ),
)

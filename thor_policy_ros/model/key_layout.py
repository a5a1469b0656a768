"""How the parameters of `Pi05` are named in a checkpoint.

Ours pack projections that read the same input (q,k,v and gate,up) into one matrix, so one
parameter may be several checkpoint keys, stacked by rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from thor_policy_ros.model.config import Pi05Config

LAYOUT_PREFIXES = {"openpi": "", "lerobot": "model.", "merged": ""}
"""What each layout puts before its keys: those below, or in a merged file our own names."""

_PALIGEMMA = "paligemma_with_expert.paligemma."
_EXPERT = "paligemma_with_expert.gemma_expert."
_VISION = _PALIGEMMA + "model.vision_tower.vision_model."

EMBEDDING_KEYS = (
    _PALIGEMMA + "model.language_model.embed_tokens.weight",
    _PALIGEMMA + "lm_head.weight",
)
"""The token embedding is tied to the output head: a checkpoint holds either or both."""

UNUSED_KEYS = (_EXPERT + "lm_head.weight", _EXPERT + "model.embed_tokens.weight")
"""Present in checkpoints, without meaning for pi0.5."""

_RENAMES = (
    (r"^vision\.position_embedding$", _VISION + "embeddings.position_embedding.weight"),
    (r"^vision\.patch_embedding", _VISION + "embeddings.patch_embedding"),
    (r"^(vision\.layers\.\d+)\.(fc\d)", r"\1.mlp.\2"),
    (r"^(vision\.layers\.\d+)\.(qkv_proj|out_proj)", r"\1.self_attn.\2"),
    (r"^vision\.layers", _VISION + "encoder.layers"),
    (r"^vision\.", _VISION),
    (r"^projector", _PALIGEMMA + "model.multi_modal_projector.linear"),
    (r"^language", _PALIGEMMA + "model.language_model"),
    (r"^expert", _EXPERT + "model"),
)

_PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class Part(NamedTuple):
    """Rows [start, start + shape[0]) of one of our parameters, as one checkpoint key."""

    key: str
    parameter: str
    start: int
    shape: tuple[int, ...]


def parts_of(parameter: str, shape: tuple[int, ...], config: Pi05Config) -> list[Part]:
    """The checkpoint keys (openpi's) that make up one parameter."""
    key = _openpi_key(parameter)
    packed = next((name for name in _PACKED if f".{name}." in key), None)
    if packed is None:
        return [Part(key, parameter, 0, shape)]
    parts, start = [], 0
    for name, rows in zip(_PACKED[packed], _rows(parameter, packed, shape[0], config), strict=True):
        parts.append(Part(key.replace(packed, name), parameter, start, (rows, *shape[1:])))
        start += rows
    return parts


def all_parts(parameters: Iterable[tuple[str, Tensor]], config: Pi05Config) -> dict[str, Part]:
    """Every part of a whole model by its openpi key (the embedding under the first of its keys)."""
    return {
        part.key: part
        for name, tensor in parameters
        for part in parts_of(name, tuple(tensor.shape), config)
    }


def merged_parts(parameters: Iterable[tuple[str, Tensor]], config: Pi05Config) -> dict[str, Part]:
    """Every parameter as one part under its own name: a merged file's."""
    return {name: Part(name, name, 0, tuple(tensor.shape)) for name, tensor in parameters}


def layout_of(keys: Iterable[str]) -> str:
    """'openpi', 'lerobot' or 'merged', by what the keys begin with."""
    held = list(keys)
    lerobot = LAYOUT_PREFIXES["lerobot"] + "paligemma_with_expert."
    if any(key.startswith(lerobot) for key in held):
        return "lerobot"
    return "merged" if any(key.startswith("language.layers.") for key in held) else "openpi"


def _openpi_key(parameter: str) -> str:
    key = parameter
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _rows(parameter: str, packed: str, total: int, config: Pi05Config) -> list[int]:
    if packed == "gate_up_proj":
        return [total // 2] * 2
    if parameter.startswith("vision."):
        return [total // 3] * 3
    gemma = config.language
    return [n * gemma.head_dim for n in (gemma.num_heads, gemma.num_kv_heads, gemma.num_kv_heads)]

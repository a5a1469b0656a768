"""The three engines that pi0.5 is run as: their networks, their sizes, what they hold.

TensorRT is as fast as for a static network where a profile allows one size alone, so each open
size comes in a few buckets, one profile each, and the weights are shared. A prefix is put into
the smallest bucket that holds it, its padding last and masked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from thor_policy_ros.backends.network_ops import NetworkOps
from thor_policy_ros.backends.trt_builder import Bucket
from thor_policy_ros.backends.trt_networks import denoise_network, prefix_network, vision_network
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.pi05 import Pi05

PROMPT_ROOMS = (32, 96)
"""Prompt tokens of the smaller buckets: words alone take 10 to 30, with the state 60 to 90. The
largest bucket holds the longest prompt."""

ENGINES_FOLLOW = (
    "backends/fp8.py",
    "backends/network_ops.py",
    "backends/trt_builder.py",
    "backends/trt_networks.py",
    "backends/trt_ops.py",
    "backends/trt_parts.py",
    "model/checkpoint.py",
    "model/gemma.py",
    "model/key_layout.py",
    "model/pi05.py",
    "model/siglip.py",
)
"""Files that decide what is in an engine: a change in one makes every engine another."""


@dataclass(frozen=True)
class Part:
    """network: adds it to some ops. buckets: the sizes that an engine of this config has.
    holds: whether a parameter of Pi05 is in the network."""

    name: str
    network: Callable[[NetworkOps[Any], Pi05], None]
    buckets: Callable[[Pi05Config], tuple[Bucket, ...]]
    holds: Callable[[str], bool]


def network_of(
    part: str, mlp_absmax: Sequence[float | None]
) -> Callable[[NetworkOps[Any], Pi05], None]:
    """The part's network; the prefix's with MLPs in FP8 where `mlp_absmax` is given."""
    if part == "prefix" and mlp_absmax:
        return partial(prefix_network, mlp_absmax=mlp_absmax)
    return PARTS[part].network


def prefix_sizes(config: Pi05Config) -> tuple[tuple[int, int], ...]:
    """(cameras, prompt tokens) that there are buckets for: every number with every room."""
    rooms = {min(room, config.max_token_len) for room in (*PROMPT_ROOMS, config.max_token_len)}
    cameras = range(1, config.num_cameras + 1)
    return tuple((c, room) for c in cameras for room in sorted(rooms))


def prefix_lengths(config: Pi05Config) -> tuple[int, ...]:
    """Prefix tokens of each bucket, ascending."""
    tokens = config.vision.num_tokens
    return tuple(sorted({c * tokens + room for c, room in prefix_sizes(config)}))


def bucket_for(config: Pi05Config, length: int) -> int:
    """The index of the smallest bucket that holds a prefix of `length` tokens."""
    lengths = prefix_lengths(config)
    if length > lengths[-1]:
        raise ValueError(f"a prefix of {length} tokens does not fit the largest, {lengths[-1]}")
    return next(index for index, room in enumerate(lengths) if length <= room)


def in_no_engine(parameter: str) -> bool:
    """Whether torch keeps this parameter beside the engines: the token embedding, and what makes
    modulations out of the flow's time."""
    if parameter.startswith(("language.embed_tokens.", "time_mlp_")):
        return True
    return parameter.startswith("expert.") and "norm." in parameter


def sources_digest() -> str:
    """SHA-256 of the files in ENGINES_FOLLOW, 16 hex digits."""
    digest = hashlib.sha256()
    for name in ENGINES_FOLLOW:
        digest.update(name.encode() + b"\0")
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()[:16]


def _vision_buckets(config: Pi05Config) -> tuple[Bucket, ...]:
    size = config.vision.image_size
    return tuple({"images": (c + 1, 3, size, size)} for c in range(config.num_cameras))


def _prefix_buckets(config: Pi05Config) -> tuple[Bucket, ...]:
    width, dim = config.language.width, config.language.head_dim
    return tuple(
        {"embeddings": (p, width), "cos": (p, dim), "sin": (p, dim), "bias": (p,)}
        for p in prefix_lengths(config)
    )


def _denoise_buckets(config: Pi05Config) -> tuple[Bucket, ...]:
    gemma = config.language
    return tuple(
        {
            "keys": (gemma.depth, gemma.num_kv_heads, p, gemma.head_dim),
            "values": (gemma.depth, gemma.num_kv_heads, p, gemma.head_dim),
            "bias": (p + config.action_horizon,),
        }
        for p in prefix_lengths(config)
    )


def _in_vision(parameter: str) -> bool:
    return parameter.startswith(("vision.", "projector."))


def _in_prefix(parameter: str) -> bool:
    return parameter.startswith("language.layers.")


def _in_denoise(parameter: str) -> bool:
    if parameter.startswith(("action_in_proj.", "action_out_proj.")):
        return True
    return parameter.startswith("expert.layers.") and "norm." not in parameter


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("vision", vision_network, _vision_buckets, _in_vision),
        Part("prefix", prefix_network, _prefix_buckets, _in_prefix),
        Part("denoise", denoise_network, _denoise_buckets, _in_denoise),
    )
}

"""Sizes of a network from the shapes of its checkpoint's tensors.

For checkpoints that come without a config of sizes. Two numbers leave no trace in the
shapes: key/value heads, of which every pi0.5 has one, and the vision tower's heads, known
for the published width.
"""

from __future__ import annotations

import math
import re

from thor_policy_ros.model.config import GemmaConfig, Pi05Config, VisionConfig
from thor_policy_ros.model.weight_files import CheckpointError, Contents

VISION_HEADS = {1152: 16}
_PALIGEMMA = "paligemma_with_expert.paligemma."
_VISION = _PALIGEMMA + "model.vision_tower.vision_model."
_LANGUAGE = _PALIGEMMA + "model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert.model."


def infer_sizes(
    contents: Contents, action_horizon: int, max_token_len: int, num_cameras: int
) -> Pi05Config:
    """The config that fits `contents`; the three numbers given are not in the weights.

    Raises CheckpointError naming a key that is needed for this and missing, and for a
    vision tower of another width than the published one.
    """
    language = _gemma(contents, _LANGUAGE)
    embedding = next(
        (key for key in (f"{_LANGUAGE}embed_tokens.weight", f"{_PALIGEMMA}lm_head.weight")
         if key in contents.shapes),
        f"{_PALIGEMMA}lm_head.weight",
    )  # fmt: skip
    return Pi05Config(
        action_dim=_shape(contents, "action_in_proj.weight", 2)[1],
        action_horizon=action_horizon,
        max_token_len=max_token_len,
        vocab_size=_shape(contents, embedding)[0],
        num_cameras=num_cameras,
        vision=_vision(contents),
        language=language,
        action_expert=_gemma(contents, _EXPERT),
    )


def _vision(contents: Contents) -> VisionConfig:
    width, _, patch, _ = _shape(contents, f"{_VISION}embeddings.patch_embedding.weight", 4)
    tokens = _shape(contents, f"{_VISION}embeddings.position_embedding.weight")[0]
    if width not in VISION_HEADS:
        raise CheckpointError(
            f"{contents.folder}: the number of attention heads of a vision tower of width {width}"
            f" cannot be told from its weights (known for {sorted(VISION_HEADS)}); give the sizes"
            " as a config JSON"
        )
    return VisionConfig(
        image_size=math.isqrt(tokens) * patch,
        patch_size=patch,
        width=width,
        depth=_depth(contents, f"{_VISION}encoder.layers."),
        num_heads=VISION_HEADS[width],
        mlp_dim=_shape(contents, f"{_VISION}encoder.layers.0.mlp.fc1.weight")[0],
    )


def _gemma(contents: Contents, stack: str) -> GemmaConfig:
    head_dim, width = _shape(contents, f"{stack}layers.0.self_attn.k_proj.weight", 2)
    return GemmaConfig(
        width=width,
        depth=_depth(contents, f"{stack}layers."),
        mlp_dim=_shape(contents, f"{stack}layers.0.mlp.up_proj.weight")[0],
        num_heads=_shape(contents, f"{stack}layers.0.self_attn.q_proj.weight")[0] // head_dim,
        num_kv_heads=1,
        head_dim=head_dim,
    )


def _depth(contents: Contents, layers: str) -> int:
    numbers = [re.match(re.escape(layers) + r"(\d+)\.", key) for key in contents.shapes]
    return 1 + max((int(n.group(1)) for n in numbers if n), default=-1)


def _shape(contents: Contents, key: str, dims: int = 0) -> tuple[int, ...]:
    """dims: how many there have to be; 0: one or more."""
    if key not in contents.shapes:
        raise CheckpointError(
            f"{contents.folder}: missing {contents.name(key)}; is this a pi0.5 checkpoint?"
        )
    shape = contents.shapes[key]
    if min(shape, default=0) < 1 or (dims and len(shape) != dims):
        raise CheckpointError(
            f"{contents.folder}: {contents.name(key)} has the shape {list(shape)}; wanted"
            f" {dims or 'some'} sizes, none of them 0"
        )
    return shape

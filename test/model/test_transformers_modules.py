"""SigLIP and Gemma blocks against `transformers`' own modules, at toy sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig as HfGemmaConfig
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.gemma.modeling_gemma import GemmaModel

from thor_policy_ros.model.config import GemmaConfig, Pi05Config, VisionConfig
from thor_policy_ros.model.gemma import Prefix, rope_tables
from thor_policy_ros.model.key_layout import parts_of
from thor_policy_ros.model.siglip import Siglip

TOLERANCE = 2e-5  # float32 rounding through three layers
VISION = VisionConfig(image_size=42, patch_size=14, width=48, depth=3, num_heads=4, mlp_dim=72)


def gemma(num_kv_heads: int) -> GemmaConfig:
    return GemmaConfig(
        width=32, depth=3, mlp_dim=56, num_heads=4, num_kv_heads=num_kv_heads, head_dim=16
    )


def copy_weights(ours: nn.Module, name: str, theirs: nn.Module, language: GemmaConfig) -> None:
    """Fill `ours` (the part `name` of Pi05) from a transformers module, by key names."""
    config = Pi05Config(32, 10, 8, 64, 1, VISION, language, language)
    source = {key.removeprefix("vision_model."): t for key, t in theirs.state_dict().items()}
    for parameter, target in ours.named_parameters():
        for part in parts_of(f"{name}.{parameter}", tuple(target.shape), config):
            key = part.key.split("vision_model.")[-1].split("language_model.")[-1]
            target.data[part.start : part.start + part.shape[0]] = source[key]


def shake(module: nn.Module) -> None:
    """Random values everywhere: norm weights start at 0 or 1 and would hide mistakes."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def test_siglip() -> None:
    theirs = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=VISION.width,
            intermediate_size=VISION.mlp_dim,
            num_hidden_layers=VISION.depth,
            num_attention_heads=VISION.num_heads,
            image_size=VISION.image_size,
            patch_size=VISION.patch_size,
            vision_use_head=False,
        )
    ).eval()
    shake(theirs)
    ours = Siglip(VISION)
    copy_weights(ours, "vision", theirs, gemma(1))
    images = torch.rand(2, 3, VISION.image_size, VISION.image_size) * 2 - 1
    assert largest(ours(images), theirs(images).last_hidden_state) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_gemma(num_kv_heads: int) -> None:
    """Hidden states and cached keys and values under a padding mask, seen both ways."""
    config = gemma(num_kv_heads)
    theirs = GemmaModel(
        HfGemmaConfig(
            vocab_size=64,
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=config.head_dim,
            hidden_activation="gelu_pytorch_tanh",
            attn_implementation="eager",
        )
    ).eval()
    shake(theirs)
    ours = Prefix(config, 64)
    copy_weights(ours, "language", theirs, config)
    x, valid = torch.randn(2, 9, config.width), torch.ones(2, 9, dtype=torch.bool)
    valid[0, 5:] = valid[1, 2] = False
    positions = valid.long().cumsum(-1) - 1
    hidden, cache = ours.encode(x, rope_tables(positions, config.head_dim), valid[:, None, None])

    mask = torch.where(valid, 0.0, torch.finfo(torch.float32).min)[:, None, None].expand(2, 1, 9, 9)
    answer = theirs(inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=True)
    assert largest(hidden[valid], answer.last_hidden_state[valid]) < TOLERANCE
    for layer, (keys, values) in enumerate(cache):
        recorded = answer.past_key_values.layers[layer]
        where = valid[:, None].expand(keys.shape[:3])
        assert largest(keys[where], recorded.keys[where]) < TOLERANCE
        assert largest(values[where], recorded.values[where]) < TOLERANCE

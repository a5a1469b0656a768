"""What adapters share: sizes of a toy, and weights read strictly. Run by a peer's Python.

The peers' constructors have the published sizes written in them; for other sizes the configs that
they build are changed before the modules are made. Nothing is changed for the published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

PUBLISHED_WIDTHS = (1152, 2048, 1024)
TIED = ("lm_head.weight", "embed_tokens.weight")


def is_published(sizes: Mapping[str, Any]) -> bool:
    """Whether the sizes are those of pi0.5."""
    widths = tuple(sizes[part]["width"] for part in ("vision", "language", "action_expert"))
    return widths == PUBLISHED_WIDTHS


def gemma_sizes(sizes: Mapping[str, Any], make: Callable[..., Any]) -> Callable[[str], Any]:
    """In place of a peer's table of variants: `make` gets the fields of ours."""
    parts = {"gemma_2b": "language", "gemma_300m": "action_expert"}
    return lambda variant: make(**sizes[parts[variant]])


def with_sizes(module: Callable[..., Any], sizes: Mapping[str, Any]) -> Callable[..., Any]:
    """`module(config=...)` with a vision tower and vocabulary of our sizes."""

    def make(config: Any) -> Any:
        text, vision = getattr(config, "text_config", config), sizes["vision"]
        text.vocab_size = sizes["vocab_size"]
        if hasattr(config, "vision_config"):
            config.image_token_index = sizes["vocab_size"]
            config.vision_config.hidden_size = vision["width"]
            config.vision_config.num_hidden_layers = vision["depth"]
            config.vision_config.num_attention_heads = vision["num_heads"]
            config.vision_config.intermediate_size = vision["mlp_dim"]
            config.vision_config.patch_size = vision["patch_size"]
            config.vision_config.image_size = vision["image_size"]
            config.vision_config.projection_dim = sizes["language"]["width"]
            config.projection_dim = sizes["language"]["width"]
        return module(config=config)

    return make


def fill(model: torch.nn.Module, folder: str) -> None:
    """Read the folder's safetensors into `model`, whose keys are openpi's. ValueError for keys
    that are missing or left over, other than the tied embedding and the expert's unused head."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        tensors |= load_file(path)
    layout = "model." if all(key.startswith("model.") for key in tensors) else ""
    tensors = {key[len(layout) :]: value for key, value in tensors.items()}
    _complete_tied(model, tensors)
    result = model.load_state_dict(tensors, strict=False)
    wrong = [*_serious(result.missing_keys), *_serious(result.unexpected_keys)]
    if wrong:
        raise ValueError(f"{folder} does not fit the peer's model: {wrong[:5]} ({len(wrong)})")


def _serious(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not (key.endswith(TIED) and "gemma_expert" in key)]


def _complete_tied(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """The token embedding is the output head: a file may hold either."""
    keys = [k for k in model.state_dict() if k.endswith(TIED) and "gemma_expert" not in k]
    held = next((tensors[k] for k in [*keys, *tensors] if k in tensors and _is_tied(k)), None)
    for key in keys:
        if held is not None:
            tensors.setdefault(key, held)


def _is_tied(key: str) -> bool:
    return key.endswith(TIED) and "gemma_expert" not in key


def on_device(arrays: Mapping[str, Any], device: str) -> dict[str, torch.Tensor]:
    """With a batch axis; tokens as int64."""
    tensors = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
    tensors["tokens"] = tensors["tokens"].long()
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

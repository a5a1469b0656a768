"""What was recorded from the original code: inputs, and the outputs it gave for them.

Two files in a folder. `inputs.safetensors`: `image_0`, `image_1`, ... f32[1,3,S,S] in
[-1,1]; `image_masks` bool[V]; `tokens` int[1,L]; `token_mask` bool[1,L]; `noise` f32[1,H,A].
`outputs.safetensors`: any of the arrays that `parity` knows, by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FILES = ("inputs.safetensors", "outputs.safetensors")


@dataclass(frozen=True)
class Recording:
    """images f32[1,V,3,S,S], image_mask bool[1,V], tokens int[1,L], token_mask bool[1,L],
    noise f32[1,H,A]; outputs: name -> array."""

    folder: Path
    images: Tensor
    image_mask: Tensor
    tokens: Tensor
    token_mask: Tensor
    noise: Tensor
    outputs: Mapping[str, Tensor]


def load_recording(folder: Path) -> Recording:
    """Read both files; FileNotFoundError or ValueError says what is missing."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} holds no {' and no '.join(missing)}: there is nothing to compare with;"
            " record them from the original code, or say where they are with --recorded DIR"
        )
    inputs = load_file(folder / FILES[0])
    wanted = ["image_0", "image_masks", "tokens", "token_mask", "noise"]
    absent = [name for name in wanted if name not in inputs]
    if absent:
        raise ValueError(f"{folder / FILES[0]}: missing {absent}; it holds {sorted(inputs)}")
    return Recording(
        folder=folder,
        images=_images(inputs),
        image_mask=inputs["image_masks"].view(1, -1),
        tokens=inputs["tokens"],
        token_mask=inputs["token_mask"],
        noise=inputs["noise"],
        outputs=load_file(folder / FILES[1]),
    )


def _images(inputs: Mapping[str, Tensor]) -> Tensor:
    count = inputs["image_masks"].numel()
    return torch.stack([inputs[f"image_{i}"] for i in range(count)], 1)

"""Image augmentation on the device: what a camera's exposure and white balance may do."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

BRIGHTNESS, TINT, OFFSET, NOISE = 0.1, 0.04, 0.04, 0.015
"""Small: how bright an object's lamp is tells its speed. The data vary light and paint too."""


def to_model_range(images: Tensor) -> Tensor:
    """u8[B,V,S,S,3] -> f32[B,V,3,S,S] in [-1,1], as the runtime does."""
    return images.permute(0, 1, 4, 2, 3).float() / 255.0 * 2.0 - 1.0


def jitter(images: Tensor, generator: Generator) -> Tensor:
    """Brightness, tint, offset and pixel noise, drawn per camera; images f32[B,V,3,S,S]."""
    batch, cameras = images.shape[:2]

    def draw(channels: int, spread: float) -> Tensor:
        shape = (batch, cameras, channels, 1, 1)
        uniform = torch.rand(shape, generator=generator, device=images.device)
        return (2 * uniform - 1) * spread

    gain = 1 + draw(1, BRIGHTNESS) + draw(3, TINT)
    noise = torch.randn(images.shape, generator=generator, device=images.device) * NOISE
    return ((images + 1) * gain - 1 + draw(1, OFFSET) + noise).clamp(-1, 1)


def blackened(images: Tensor, black: Tensor) -> Tensor:
    """Images with those of `black` bool[B] turned off, as a covered lens would."""
    return torch.where(black[:, None, None, None, None], -1.0, images)

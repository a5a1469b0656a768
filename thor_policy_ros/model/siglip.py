"""SigLIP, the vision tower: an image becomes (S/patch)^2 tokens.

Letters: B batch of images, N tokens of an image, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thor_policy_ros.model.config import VisionConfig

LAYER_NORM_EPS = 1e-6


class PatchEmbedding(nn.Module):
    """Cut an image into patches and project each to the tower's width.

    Written as one matrix product rather than a convolution, which cuDNN would run in
    TF32 by default and lose the float32 parity.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.width, 3, self.patch, self.patch))
        self.bias = nn.Parameter(torch.zeros(config.width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, images: Tensor) -> Tensor:
        """images: f32[B,3,S,S] in [-1,1]. Returns [B,N,W], row by row."""
        batch, _, size, _ = images.shape
        grid = size // self.patch
        patches = images.view(batch, 3, grid, self.patch, grid, self.patch)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, -1)
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class VisionLayer(nn.Module):
    """Pre-norm transformer block with learned biases and a tanh-GELU MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.layer_norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.layer_norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B,N,W]. Returns the same shape."""
        x = x + self.out_proj(self._attend(self.layer_norm1(x)))
        hidden = F.gelu(self.fc1(self.layer_norm2(x)), approximate="tanh")
        return x + self.fc2(hidden)

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv_proj(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(batch, tokens, width)


class Siglip(nn.Module):
    """The tower with learned positions and a final LayerNorm, before the projector."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.position_embedding = nn.Parameter(torch.empty(config.num_tokens, config.width))
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.depth))
        self.post_layernorm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        nn.init.normal_(self.position_embedding, std=config.width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """images: f32[B,3,S,S] in [-1,1]. Returns [B,N,W] in the layers' dtype."""
        x = self.patch_embedding(images) + self.position_embedding
        x = x.to(self.post_layernorm.weight.dtype)
        for layer in self.layers:
            x = layer(x)
        normed: Tensor = self.post_layernorm(x)
        return normed

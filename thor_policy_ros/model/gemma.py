"""Gemma as pi0.5 uses it: the prefix stack, and the action expert with adaptive norms.

Letters: B batch, T tokens, P prefix tokens, W width, D head dimension, G kv heads.
Every query sees every valid key (prefix and suffix are both bidirectional inside), so a
mask, where there is one, is over keys alone: bool[B,1,1,keys]. Query heads that share a
kv head are therefore laid out as more query rows: grouped attention without repeating K,V.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thor_policy_ros.model.config import GemmaConfig

RMS_NORM_EPS = 1e-6
ROPE_THETA = 1e4

ExtendKV = Callable[[int, Tensor, Tensor], "tuple[Tensor, Tensor]"]
"""(layer, suffix keys, suffix values [B,G,T,D]) -> prefix and suffix together."""


class Rope(NamedTuple):
    """Rotation of keys and queries, f32[B,T,1,D] each; the first half of `sin` is negated."""

    cos: Tensor
    sin: Tensor


class Modulation(NamedTuple):
    """What one adaptive norm applies, f32[B,1,W] each (`scale` already has 1 added)."""

    scale: Tensor
    shift: Tensor
    gate: Tensor


def rope_tables(positions: Tensor, head_dim: int) -> Rope:
    """Half-split rotation for `positions` int[B,T], in float32."""
    half = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[..., None] / ROPE_THETA**half
    cos, sin = angles.cos(), angles.sin()
    return Rope(torch.cat((cos, cos), -1)[:, :, None], torch.cat((-sin, sin), -1)[:, :, None])


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Apply RoPE to x [B,T,heads,D]: float32 inside, the dtype of x outside."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * rope.cos, swapped, rope.sin).to(x.dtype)


class RMSNorm(nn.Module):
    """`x * rsqrt(mean(x^2) + eps) * (1 + w)`, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() + 1
        return F.rms_norm(x.float(), weight.shape, weight, RMS_NORM_EPS).to(x.dtype)


class AdaptiveRMSNorm(nn.Module):
    """RMSNorm whose scale, shift and output gate come from the time condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)
        _start_as_plain_norm(self.dense)

    def modulation(self, condition: Tensor) -> Modulation:
        """condition: f32[B,W]."""
        scale, shift, gate = self.dense(condition)[:, None].chunk(3, -1)
        return Modulation(scale + 1, shift, gate)

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        normed = F.rms_norm(x.float(), x.shape[-1:], None, RMS_NORM_EPS)
        return torch.addcmul(modulation.shift, normed, modulation.scale).to(x.dtype)


def _start_as_plain_norm(dense: nn.Linear) -> None:
    """Start with scale and shift near 0 and gates at 1: an ordinary pre-norm network.

    With gates at 0 (the fine-tuning start of the original) a network trained from
    scratch passes no signal to its layers at first.
    """
    width = dense.out_features // 3
    nn.init.normal_(dense.weight, std=0.02)
    with torch.no_grad():
        dense.bias.zero_()
        dense.bias[2 * width :] = 1.0


class Attention(nn.Module):
    """Grouped-query attention; the q, k and v projections are one matrix."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        self.qkv_proj = nn.Linear(config.width, rows, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.width, bias=False)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """x: [B,T,W] -> q [B,T,heads,D], k and v [B,G,T,D]; q and k rotated."""
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        kv = self.num_kv_heads
        rotated = rotate(heads[:, :, :-kv], rope)
        keys, values = rotated[:, :, self.num_heads :], heads[:, :, -kv:]
        return rotated[:, :, : self.num_heads], keys.transpose(1, 2), values.transpose(1, 2)

    def project_kv(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Keys and values alone: all that the last prefix layer is used for."""
        weight = self.qkv_proj.weight[self.num_heads * self.head_dim :]
        heads = F.linear(x, weight).unflatten(-1, (-1, self.head_dim))
        keys, values = heads.chunk(2, 2)
        return rotate(keys, rope).transpose(1, 2), values.transpose(1, 2)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """q: [B,T,heads,D]; keys, values: [B,G,K,D]; mask: bool[B,1,1,K]. Returns [B,T,W]."""
        batch, tokens, _, dim = q.shape
        groups = self.num_kv_heads
        rows = (
            q.view(batch, tokens, groups, -1, dim).transpose(1, 2).reshape(batch, groups, -1, dim)
        )
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
        out = out.view(batch, groups, tokens, -1, dim).transpose(1, 2)
        projected: Tensor = self.o_proj(out.reshape(batch, tokens, -1))
        return projected


class Mlp(nn.Module):
    """`down(gelu_tanh(gate(x)) * up(x))`; gate and up are one matrix."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.width, 2 * config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        down: Tensor = self.down_proj(F.gelu(gate, approximate="tanh") * up)
        return down


class PrefixLayer(nn.Module):
    """One layer of the prefix; it hands its keys and values on."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width)
        self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x: [B,P,W] -> the next x, and this layer's keys and values [B,G,P,D]."""
        q, keys, values = self.self_attn.project(self.input_layernorm(x), rope)
        x = x + self.self_attn.attend(q, keys, values, mask)
        return x + self.mlp(self.post_attention_layernorm(x)), (keys, values)

    def keys_values(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """The keys and values of `forward` without the rest of it."""
        return self.self_attn.project_kv(self.input_layernorm(x), rope)


class Prefix(nn.Module):
    """The language stack: embeds the prompt, encodes the prefix, yields K,V per layer."""

    def __init__(self, config: GemmaConfig, vocab_size: int) -> None:
        super().__init__()
        self.width = config.width
        self.head_dim = config.head_dim
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(PrefixLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        nn.init.normal_(self.embed_tokens.weight, std=config.width**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens: int[B,L] -> [B,L,W], scaled by sqrt(W) as image tokens are not."""
        embedded: Tensor = self.embed_tokens(tokens) * self.width**0.5
        return embedded

    def encode(
        self, x: Tensor, rope: Rope, mask: Tensor | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Final hidden states [B,P,W] and every layer's keys and values."""
        cache = []
        for layer in self.layers:
            x, keys_values = layer(x, rope, mask)
            cache.append(keys_values)
        return self.norm(x), cache

    def encode_keys_values(
        self, x: Tensor, rope: Rope, mask: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """The cache of `encode`, exactly, skipping what only the hidden states need."""
        cache = []
        for layer in list(self.layers)[:-1]:
            x, keys_values = layer(x, rope, mask)
            cache.append(keys_values)
        last = self.layers[-1]
        assert isinstance(last, PrefixLayer)
        return [*cache, last.keys_values(x, rope)]


class ExpertLayer(nn.Module):
    """One layer of the action expert, reading the prefix's keys and values of its depth."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.input_layernorm = AdaptiveRMSNorm(config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = AdaptiveRMSNorm(config.width)
        self.mlp = Mlp(config)

    def attention_block(
        self,
        x: Tensor,
        modulation: Modulation,
        rope: Rope,
        mask: Tensor | None,
        extend: ExtendKV,
        depth: int,
    ) -> Tensor:
        """x: [B,H,W] -> gated residual of attention over prefix and suffix."""
        q, keys, values = self.self_attn.project(self.input_layernorm(x, modulation), rope)
        keys, values = extend(depth, keys, values)
        out = self.self_attn.attend(q, keys, values, mask)
        return torch.addcmul(x, out, modulation.gate.to(x.dtype))

    def mlp_block(self, x: Tensor, modulation: Modulation) -> Tensor:
        """x: [B,H,W] -> gated residual of the MLP."""
        out = self.mlp(self.post_attention_layernorm(x, modulation))
        return torch.addcmul(x, out, modulation.gate.to(x.dtype))


class Expert(nn.Module):
    """The action expert's stack with its adaptive final norm."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.layers = nn.ModuleList(ExpertLayer(config) for _ in range(config.depth))
        self.norm = AdaptiveRMSNorm(config.width)

    def modulations(self, condition: Tensor) -> list[Modulation]:
        """All that depends on the time condition f32[B,W]: 2 per layer and the final one."""
        norms = [n for x in self.layers for n in (x.input_layernorm, x.post_attention_layernorm)]
        return [norm.modulation(condition) for norm in (*norms, self.norm)]  # type: ignore[operator,union-attr]

    def forward(
        self,
        x: Tensor,
        modulations: list[Modulation],
        rope: Rope,
        mask: Tensor | None,
        extend: ExtendKV,
    ) -> Tensor:
        """x: [B,H,W] action tokens -> their final hidden states."""
        for depth, layer in enumerate(self.layers):
            before, after = modulations[2 * depth], modulations[2 * depth + 1]
            x = layer.attention_block(x, before, rope, mask, extend, depth)  # type: ignore[operator]
            x = layer.mlp_block(x, after)  # type: ignore[operator]
        normed: Tensor = self.norm(x, modulations[-1])
        return normed

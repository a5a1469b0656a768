"""pi0.5 as three networks over `NetworkOps`: vision tower, prefix, one denoise step.

Letters: C cameras present, N tokens of an image, P tokens of the prefix's bucket (its padding
last), H horizon, A action dims of the model, W width, D head dimension, G kv heads.

Only plain layers: matrix products, reductions, elementwise, slices. Attention is two products
and a softmax, so that the builder may fuse it where it can; nothing asks for a fused kernel by
name. Norms, softmax and RoPE are float32; q, k and v are one product, and so are gate and up.
Padding is an additive float32 bias over the keys: 0 for a valid one, `MASKED` for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, cast

import torch
from torch import Tensor, nn

from thor_policy_ros.backends.network_ops import Dtype, NetworkOps, T, dtype_name
from thor_policy_ros.model.gemma import (
    RMS_NORM_EPS,
    Attention,
    ExpertLayer,
    Mlp,
    PrefixLayer,
)
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.model.siglip import LAYER_NORM_EPS, VisionLayer

MASKED = -1e30  # far below any score, and finite: rows of padding stay finite too


def modulation_rows(model: Pi05) -> int:
    """Rows of the denoise step's `modulations`: scale, shift and gate of each adaptive norm."""
    return 3 * (2 * model.config.action_expert.depth + 1)


def vision_network(ops: NetworkOps[T], model: Pi05) -> None:
    """images f32[C,3,S,S] in [-1,1] -> image_tokens [C*N,W of the language]."""
    config, tower = model.config.vision, model.vision
    blocks = _Blocks(ops, dtype_name(model.dtype))
    size, patch, grid = config.image_size, config.patch_size, config.image_size // config.patch_size
    images = ops.input("images", (-1, 3, size, size), "float32")
    patches = ops.permute(
        ops.reshape(images, (-1, 3, grid, patch, grid, patch)), (0, 2, 4, 1, 3, 5)
    )
    rows = ops.reshape(patches, (-1, 3 * patch * patch))
    embedding = tower.patch_embedding
    x = blocks.product(rows, embedding.weight.flatten(1), embedding.bias)
    x = ops.reshape(x, (-1, config.num_tokens, config.width))
    x = ops.add(x, ops.constant(tower.position_embedding[None]))
    x = ops.cast(ops.reshape(x, (-1, config.width)), blocks.dtype)
    for layer in tower.layers:
        x = _vision_layer(blocks, x, cast(VisionLayer, layer), config.num_tokens)
    x = blocks.layer_norm(x, tower.post_layernorm)
    ops.output("image_tokens", blocks.linear(x, model.projector))


def prefix_network(
    ops: NetworkOps[T], model: Pi05, mlp_absmax: Sequence[float | None] = ()
) -> None:
    """embeddings [P,W], cos and sin f32[P,D], bias f32[P] -> keys, values [layers,G,P,D].

    Of the last layer only keys and values are computed: nothing else of it is used.
    mlp_absmax: of the input of each layer's MLP, whose gate and up are then FP8 products; None
    for a layer that stays dense, () for all of them.
    """
    gemma = model.config.language
    blocks = _Blocks(ops, dtype_name(model.dtype))
    x = ops.input("embeddings", (-1, gemma.width), blocks.dtype)
    rope = blocks.rope_inputs(-1, gemma.head_dim)
    bias = ops.reshape(ops.input("bias", (-1,), "float32"), (1, 1, -1))
    keys, values = [], []
    layers = [cast(PrefixLayer, layer) for layer in model.language.layers]
    for index, layer in enumerate(layers):
        normed = blocks.rms_norm(x, layer.input_layernorm.weight)
        if layer is layers[-1]:
            k, v = blocks.project_kv(normed, layer.self_attn, rope)
        else:
            q, k, v = blocks.project(normed, layer.self_attn, rope)
            x = ops.add(x, blocks.attend(q, k, v, bias, layer.self_attn))
            normed = blocks.rms_norm(x, layer.post_attention_layernorm.weight)
            absmax = mlp_absmax[index] if mlp_absmax else None
            x = ops.add(x, blocks.mlp(normed, layer.mlp, absmax))
        keys.append(ops.reshape(k, (1, gemma.num_kv_heads, -1, gemma.head_dim)))
        values.append(ops.reshape(v, (1, gemma.num_kv_heads, -1, gemma.head_dim)))
    ops.output("keys", ops.concat(keys, 0))
    ops.output("values", ops.concat(values, 0))


def denoise_network(ops: NetworkOps[T], model: Pi05) -> None:
    """One Euler step: x f32[H,A] and minus the step's length, f32[1,1] -> next_x f32[H,A].

    The velocity that it took, f32[H,A], is given too: guidance corrects the step by it.
    Also taken: modulations f32[3*(2*layers+1),W], the rows scale (1 added), shift, gate of each
    adaptive norm in order; cos, sin f32[H,D]; keys, values [layers,G,P,D]; bias f32[P+H].
    """
    config, gemma = model.config, model.config.action_expert
    blocks = _Blocks(ops, dtype_name(model.dtype))
    x = ops.input("x", (config.action_horizon, config.action_dim), "float32")
    step = ops.input("step", (1, 1), "float32")
    rows = ops.input("modulations", (modulation_rows(model), gemma.width), "float32")
    rope = blocks.rope_inputs(config.action_horizon, gemma.head_dim)
    shape = (gemma.depth, gemma.num_kv_heads, -1, gemma.head_dim)
    keys = ops.input("keys", shape, blocks.dtype)
    values = ops.input("values", shape, blocks.dtype)
    bias = ops.reshape(ops.input("bias", (-1,), "float32"), (1, 1, -1))
    hidden = ops.cast(blocks.linear(x, model.action_in_proj), blocks.dtype)
    for depth, layer in enumerate(cast(ExpertLayer, layer) for layer in model.expert.layers):
        normed, gate = blocks.adaptive_norm(hidden, rows, 2 * depth)
        q, k, v = blocks.project(normed, layer.self_attn, rope)
        k = blocks.behind(keys, depth, k, layer.self_attn)
        v = blocks.behind(values, depth, v, layer.self_attn)
        out = blocks.attend(q, k, v, bias, layer.self_attn)
        hidden = ops.add(hidden, ops.mul(out, gate))
        normed, gate = blocks.adaptive_norm(hidden, rows, 2 * depth + 1)
        hidden = ops.add(hidden, ops.mul(blocks.mlp(normed, layer.mlp), gate))
    normed, _ = blocks.adaptive_norm(hidden, rows, 2 * gemma.depth)
    velocity = blocks.linear(ops.cast(normed, "float32"), model.action_out_proj)
    ops.output("velocity", velocity)
    ops.output("next_x", ops.add(x, ops.mul(velocity, step)))


def _vision_layer(blocks: _Blocks[T], x: T, layer: VisionLayer, tokens: int) -> T:
    """x: [C*N,W] -> the same; tokens: N."""
    ops, heads = blocks.ops, layer.num_heads
    width = layer.out_proj.in_features
    dim = width // heads
    qkv = blocks.linear(blocks.layer_norm(x, layer.layer_norm1), layer.qkv_proj)
    qkv = ops.permute(ops.reshape(qkv, (-1, tokens, 3, heads, dim)), (2, 0, 3, 1, 4))
    q, k, v = (ops.reshape(ops.slice(qkv, 0, i, 1), (-1, tokens, dim)) for i in range(3))
    out = ops.reshape(blocks.attention(q, k, v, None, dim), (-1, heads, tokens, dim))
    out = ops.reshape(ops.permute(out, (0, 2, 1, 3)), (-1, width))
    x = ops.add(x, blocks.linear(out, layer.out_proj))
    hidden = ops.gelu_tanh(blocks.linear(blocks.layer_norm(x, layer.layer_norm2), layer.fc1))
    return ops.add(x, blocks.linear(hidden, layer.fc2))


class _Blocks(Generic[T]):
    """What the networks share. dtype: that of weights and activations."""

    def __init__(self, ops: NetworkOps[T], dtype: Dtype) -> None:
        self.ops = ops
        self.dtype: Dtype = dtype

    def linear(self, x: T, linear: nn.Linear) -> T:
        """x: [rows,in] -> [rows,out]."""
        return self.product(x, linear.weight, linear.bias)

    def product(self, x: T, weight: Tensor, bias: Tensor | None = None) -> T:
        """x: [rows,in], weight: [out,in], bias: [out]; all of one dtype."""
        out = self.ops.matmul(x, self.ops.constant(weight), transpose_b=True)
        return out if bias is None else self.ops.add(out, self.ops.constant(bias[None]))

    def layer_norm(self, x: T, norm: nn.LayerNorm) -> T:
        ops = self.ops
        wide = ops.cast(x, "float32")
        centred = ops.add(wide, ops.mul(ops.mean(wide), self._scalar(-1.0)))
        normed = self._divided_by_rms(centred, LAYER_NORM_EPS)
        scaled = ops.mul(normed, ops.constant(norm.weight.float()[None]))
        return ops.cast(ops.add(scaled, ops.constant(norm.bias.float()[None])), self.dtype)

    def rms_norm(self, x: T, weight: Tensor) -> T:
        ops = self.ops
        normed = self._divided_by_rms(ops.cast(x, "float32"), RMS_NORM_EPS)
        return ops.cast(ops.mul(normed, ops.constant(weight.float()[None] + 1)), self.dtype)

    def adaptive_norm(self, x: T, rows: T, index: int) -> tuple[T, T]:
        """The norm of x [H,W], modulated by norm `index`, and its output's gate [1,W]."""
        ops = self.ops
        scale, shift, gate = (ops.slice(rows, 0, 3 * index + i, 1) for i in range(3))
        normed = self._divided_by_rms(ops.cast(x, "float32"), RMS_NORM_EPS)
        modulated = ops.add(ops.mul(normed, scale), shift)
        return ops.cast(modulated, self.dtype), ops.cast(gate, self.dtype)

    def rope_inputs(self, tokens: int, dim: int) -> tuple[T, T]:
        """Inputs cos and sin f32[tokens,D], as [tokens,1,D]."""
        tables = (self.ops.input(name, (tokens, dim), "float32") for name in ("cos", "sin"))
        cos, sin = (self.ops.reshape(table, (-1, 1, dim)) for table in tables)
        return cos, sin

    def project(self, x: T, attention: Attention, rope: tuple[T, T]) -> tuple[T, T, T]:
        """x: [tokens,W] -> q [heads,tokens,D], k and v [G,tokens,D]; q and k rotated."""
        ops, heads, groups = self.ops, attention.num_heads, attention.num_kv_heads
        rows = self.product(x, attention.qkv_proj.weight)
        rows = ops.reshape(rows, (-1, heads + 2 * groups, attention.head_dim))
        rotated = self._rotate(ops.slice(rows, 1, 0, heads + groups), rope, attention.head_dim)
        rotated = ops.permute(rotated, (1, 0, 2))
        values = ops.permute(ops.slice(rows, 1, heads + groups, groups), (1, 0, 2))
        return ops.slice(rotated, 0, 0, heads), ops.slice(rotated, 0, heads, groups), values

    def project_kv(self, x: T, attention: Attention, rope: tuple[T, T]) -> tuple[T, T]:
        """Keys and values of `project` without the queries."""
        ops, groups, dim = self.ops, attention.num_kv_heads, attention.head_dim
        rows = self.product(x, attention.qkv_proj.weight[attention.num_heads * dim :])
        rows = ops.reshape(rows, (-1, 2 * groups, dim))
        keys = self._rotate(ops.slice(rows, 1, 0, groups), rope, dim)
        values = ops.slice(rows, 1, groups, groups)
        return ops.permute(keys, (1, 0, 2)), ops.permute(values, (1, 0, 2))

    def attend(self, q: T, k: T, v: T, bias: T, attention: Attention) -> T:
        """q: [heads,tokens,D]; k, v: [G,keys,D]; bias: [1,1,keys]. Returns [tokens,W].

        Heads that share keys are laid out as more rows of one product.
        """
        ops, heads, dim = self.ops, attention.num_heads, attention.head_dim
        grouped = ops.reshape(q, (attention.num_kv_heads, -1, dim))
        out = ops.reshape(self.attention(grouped, k, v, bias, dim), (heads, -1, dim))
        out = ops.reshape(ops.permute(out, (1, 0, 2)), (-1, heads * dim))
        return self.product(out, attention.o_proj.weight)

    def attention(self, q: T, k: T, v: T, bias: T | None, dim: int) -> T:
        """q: [batch,rows,D]; k, v: [batch,keys,D] -> [batch,rows,D]; softmax in float32."""
        ops = self.ops
        scores = ops.cast(ops.matmul(q, k, transpose_b=True), "float32")
        scores = ops.mul(scores, self._scalar(dim**-0.5, rank=3))
        scores = scores if bias is None else ops.add(scores, bias)
        return ops.matmul(ops.cast(ops.softmax(scores), self.dtype), v)

    def mlp(self, x: T, mlp: Mlp, absmax: float | None = None) -> T:
        """x: [tokens,W] -> the same; gate and up in FP8 where the absmax of x is given."""
        ops, size, weight = self.ops, mlp.down_proj.in_features, mlp.gate_up_proj.weight
        gate_up = self.product(x, weight) if absmax is None else ops.fp8_product(x, weight, absmax)
        gate, up = ops.slice(gate_up, 1, 0, size), ops.slice(gate_up, 1, size, size)
        return self.product(ops.mul(ops.gelu_tanh(gate), up), mlp.down_proj.weight)

    def behind(self, prefix: T, layer: int, suffix: T, attention: Attention) -> T:
        """One layer of the prefix's [layers,G,P,D] and the suffix's [G,H,D] -> [G,P+H,D]."""
        ops, shape = self.ops, (attention.num_kv_heads, -1, attention.head_dim)
        return ops.concat([ops.reshape(ops.slice(prefix, 0, layer, 1), shape), suffix], 1)

    def _rotate(self, x: T, rope: tuple[T, T], dim: int) -> T:
        """x: [tokens,heads,D], rotated in float32; the first half of sin is negated."""
        ops, half = self.ops, dim // 2
        wide = ops.cast(x, "float32")
        swapped = ops.concat([ops.slice(wide, 2, half, half), ops.slice(wide, 2, 0, half)], 2)
        rotated = ops.add(ops.mul(wide, rope[0]), ops.mul(swapped, rope[1]))
        return ops.cast(rotated, self.dtype)

    def _divided_by_rms(self, x: T, eps: float) -> T:
        """x f32[rows,W] over the root of its mean square."""
        ops = self.ops
        return ops.mul(x, ops.rsqrt(ops.add(ops.mean(ops.mul(x, x)), self._scalar(eps))))

    def _scalar(self, value: float, rank: int = 2) -> T:
        return self.ops.constant(torch.full((1,) * rank, value))

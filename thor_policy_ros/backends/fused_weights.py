"""The weights of pi0.5 as the fused engine reads them: flat, merged, quantised where it pays.

A model comes with q,k,v and gate,up merged. Its tensors are used where they lie: nothing is
copied but norms and biases (well under 1 % of the bytes). In FP8 each matrix takes the place of
its original, one at a time, so that the peak is the dense model and one matrix in float32.

Vision tower and prefix multiply E4M3 by E4M3 (compute binds them); the action expert keeps its
activations and has E4M3 weights with a scale for each row (their bytes bind it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thor_policy_ros.backends.fp8 import (
    ALIGNMENT,
    E4M3_MAX,
    activation_scale,
    saturating_cast,
)
from thor_policy_ros.backends.kernels.weights import Weight, quantise_rows, split_patches
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.gemma import Attention, ExpertLayer, Mlp, PrefixLayer, RMSNorm
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.model.siglip import VisionLayer

_LEAST_ABSMAX = 1e-12


class Linear(NamedTuple):
    """One product. weight: [N,K], E4M3 where the scales (f32[] each) are there; bias: [N]."""

    weight: Tensor
    bias: Tensor | None = None
    input_scale: Tensor | None = None
    weight_scale: Tensor | None = None


class VisionLayerWeights(NamedTuple):
    """norm1, norm2: weight and bias [W]."""

    norm1: tuple[Tensor, Tensor]
    qkv: Linear
    out: Linear
    norm2: tuple[Tensor, Tensor]
    fc1: Linear
    fc2: Linear


class VisionWeights(NamedTuple):
    """patch: f32[W,C], columns beyond 3*p*p are 0, or bf16 of `split_patches`; offset: f32[N,W],
    bias and positions."""

    patch: Tensor
    offset: Tensor
    layers: tuple[VisionLayerWeights, ...]
    norm: tuple[Tensor, Tensor]
    projector: Linear


class PrefixLayerWeights(NamedTuple):
    """norm1, norm2: f32[W], 1 added."""

    norm1: Tensor
    qkv: Linear
    o: Linear
    norm2: Tensor
    gate_up: Linear
    down: Linear


class PrefixWeights(NamedTuple):
    """layers: all but the last, of which keys and values alone are wanted."""

    layers: tuple[PrefixLayerWeights, ...]
    last_norm: Tensor
    last_kv: Linear


class ExpertLayerWeights(NamedTuple):
    qkv: Weight
    o: Weight
    gate_up: Weight
    down: Weight


class ExpertWeights(NamedTuple):
    """into, out: weight and bias of the action projections, float32."""

    into: tuple[Tensor, Tensor]
    layers: tuple[ExpertLayerWeights, ...]
    out: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class FusedModel:
    """What the engine runs. `source` keeps the embedding and what the flow's time goes through.

    left_dense: products that stay in the model's dtype though FP8 was asked for.
    """

    config: Pi05Config
    dtype: torch.dtype
    device: torch.device
    vision: VisionWeights
    prefix: PrefixWeights
    expert: ExpertWeights
    source: Pi05
    left_dense: tuple[str, ...] = ()


def take_weights(model: Pi05, absmax: Mapping[str, float] | None = None) -> FusedModel:
    """The engine's view of `model`, which must not be used for anything else afterwards.

    absmax: the largest input of each product of vision and prefix, by its module's name; None
    leaves everything dense. A product that it lacks stays dense.
    """
    take = _Taker(model, absmax)
    config, dtype, device = model.config, model.dtype, model.action_in_proj.weight.device
    vision, prefix, expert = _vision(model, take), _prefix(model, take), _expert(model, take)
    dense = tuple(take.left_dense)
    return FusedModel(config, dtype, device, vision, prefix, expert, model, dense)


def quantisable(model: Pi05) -> Iterator[tuple[str, nn.Linear]]:
    """Every product of vision and prefix that runs in FP8, by name, in the order of a frame.

    Not among them: the patches, and of the last prefix layer everything (keys and values are a
    small product, and all that is read).
    """
    last = f"language.layers.{len(model.language.layers) - 1}."
    for name, module in model.named_modules():
        wanted = name == "projector" or name.startswith(("vision.layers.", "language.layers."))
        if isinstance(module, nn.Linear) and wanted and not name.startswith(last):
            yield name, module


class _Taker:
    """Turns modules into weights, quantising where that was asked for."""

    def __init__(self, model: Pi05, absmax: Mapping[str, float] | None) -> None:
        self._absmax = absmax
        self._names = {module: name for name, module in quantisable(model)}
        self.left_dense: list[str] = []

    def linear(self, module: nn.Linear) -> Linear:
        """E4M3 by E4M3 if its input's range is known."""
        bias = None if module.bias is None else module.bias.detach()
        if self._absmax is None:
            return Linear(module.weight.detach(), bias)
        name = self._names[module]
        unaligned = any(size % ALIGNMENT for size in module.weight.shape)
        if name not in self._absmax or unaligned:
            self.left_dense.append(name)
            return Linear(module.weight.detach(), bias)
        weight = _emptied(module)
        scale = weight.float().abs().amax().clamp_min(_LEAST_ABSMAX) / E4M3_MAX
        inputs = activation_scale(scale.new_tensor(self._absmax[name]))
        return Linear(saturating_cast(weight.float(), scale), bias, inputs, scale)

    def rows(self, module: nn.Linear) -> Weight:
        """E4M3 by rows if anything is FP8; the activations stay as they are."""
        if self._absmax is None:
            return Weight(module.weight.detach())
        return quantise_rows(_emptied(module))


def _emptied(module: nn.Linear) -> Tensor:
    """The module's weight, which the module loses: nothing is held twice."""
    weight = module.weight.detach()
    module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return weight


def _vision(model: Pi05, take: _Taker) -> VisionWeights:
    tower, patches = model.vision, model.vision.patch_embedding
    weight = patches.weight.detach().flatten(1)
    padded = F.pad(weight, (0, -weight.shape[1] % ALIGNMENT)).contiguous()
    split = weight.is_cuda and model.dtype == torch.bfloat16
    return VisionWeights(
        patch=split_patches(weight) if split else padded,
        offset=(tower.position_embedding + patches.bias).detach(),
        layers=tuple(_vision_layer(layer, take) for layer in tower.layers),
        norm=_pair(tower.post_layernorm),
        projector=take.linear(model.projector),
    )


def _vision_layer(layer: nn.Module, take: _Taker) -> VisionLayerWeights:
    assert isinstance(layer, VisionLayer)
    return VisionLayerWeights(
        norm1=_pair(layer.layer_norm1),
        qkv=take.linear(layer.qkv_proj),
        out=take.linear(layer.out_proj),
        norm2=_pair(layer.layer_norm2),
        fc1=take.linear(layer.fc1),
        fc2=take.linear(layer.fc2),
    )


def _prefix(model: Pi05, take: _Taker) -> PrefixWeights:
    *layers, last = model.language.layers
    assert isinstance(last, PrefixLayer)
    attention = last.self_attn
    kv_rows = attention.qkv_proj.weight.detach()[attention.num_heads * attention.head_dim :]
    return PrefixWeights(
        layers=tuple(_prefix_layer(layer, take) for layer in layers),
        last_norm=_norm(last.input_layernorm),
        last_kv=Linear(kv_rows),
    )


def _prefix_layer(layer: nn.Module, take: _Taker) -> PrefixLayerWeights:
    assert isinstance(layer, PrefixLayer)
    attention, mlp = layer.self_attn, layer.mlp
    return PrefixLayerWeights(
        norm1=_norm(layer.input_layernorm),
        qkv=take.linear(attention.qkv_proj),
        o=take.linear(attention.o_proj),
        norm2=_norm(layer.post_attention_layernorm),
        gate_up=take.linear(mlp.gate_up_proj),
        down=take.linear(mlp.down_proj),
    )


def _expert(model: Pi05, take: _Taker) -> ExpertWeights:
    return ExpertWeights(
        into=_pair(model.action_in_proj),
        layers=tuple(_expert_layer(layer, take) for layer in model.expert.layers),
        out=_pair(model.action_out_proj),
    )


def _expert_layer(layer: nn.Module, take: _Taker) -> ExpertLayerWeights:
    assert isinstance(layer, ExpertLayer)
    attention: Attention = layer.self_attn
    mlp: Mlp = layer.mlp
    return ExpertLayerWeights(
        qkv=take.rows(attention.qkv_proj),
        o=take.rows(attention.o_proj),
        gate_up=take.rows(mlp.gate_up_proj),
        down=take.rows(mlp.down_proj),
    )


def _norm(norm: RMSNorm) -> Tensor:
    return norm.weight.detach().float() + 1


def _pair(module: nn.Linear | nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return module.weight.detach(), module.bias.detach()

"""What a denoise step takes from the flow's time alone, computed once for each step count.

One row of float32 holds all constants of a step, so that a step whose constants are not in a
captured graph needs one copy. W expert width, L layers, R rows of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thor_policy_ros.backends.fused_weights import ExpertWeights, FusedModel
from thor_policy_ros.backends.kernels.weights import Folded, Weight, fold
from thor_policy_ros.model.gemma import Modulation
from thor_policy_ros.model.pi05 import flow_times


class LayerConstants(NamedTuple):
    """attention, mlp: the adaptive norms folded into qkv and gate-up; gates f32[W]."""

    attention: Folded
    attention_gate: Tensor
    mlp: Folded
    mlp_gate: Tensor


class StepConstants(NamedTuple):
    """final_scale (1 added), final_shift: f32[W] of the last norm."""

    layers: tuple[LayerConstants, ...]
    final_scale: Tensor
    final_shift: Tensor


class StepTable(NamedTuple):
    """All steps of one count. rows: f32[steps,size], as they lie; steps: views of them."""

    rows: Tensor
    steps: tuple[StepConstants, ...]


def step_table(model: FusedModel, num_steps: int) -> StepTable:
    """The constants of every step."""
    rows = step_rows(model, num_steps)
    return StepTable(rows, tuple(constants_in(row, model.expert) for row in rows))


def step_rows(model: FusedModel, num_steps: int) -> Tensor:
    """f32[num_steps,size]: the constants of every step, a row each."""
    times = flow_times(num_steps, model.device)
    modulations = [Modulation(*(x[:, 0] for x in norm)) for norm in model.source.modulations(times)]
    return torch.cat(list(_columns(modulations, model.expert)), 1).float().contiguous()


def constants_in(row: Tensor, weights: ExpertWeights) -> StepConstants:
    """Views of one row, f32[size]."""
    pieces = iter(row.split(_sizes(weights)))
    layers = []
    for _ in weights.layers:
        attention, gate = Folded(next(pieces), next(pieces)), next(pieces)
        layers.append(
            LayerConstants(attention, gate, Folded(next(pieces), next(pieces)), next(pieces))
        )
    return StepConstants(tuple(layers), next(pieces), next(pieces))


def row_size(weights: ExpertWeights) -> int:
    """Floats of a row."""
    return sum(_sizes(weights))


def _sizes(weights: ExpertWeights) -> list[int]:
    width = weights.into[0].shape[0]
    sizes = []
    for layer in weights.layers:
        for matrix in (layer.qkv, layer.gate_up):
            sizes += [width, matrix.data.shape[0], width]
    return [*sizes, width, width]


def _columns(norms: Sequence[Modulation], weights: ExpertWeights) -> Iterator[Tensor]:
    """In the order of `_sizes`, [steps,...] each."""
    *inner, final = norms
    matrices = [matrix for layer in weights.layers for matrix in (layer.qkv, layer.gate_up)]
    for norm, matrix in zip(inner, matrices, strict=True):
        yield from _folded(norm, matrix)
    yield final.scale
    yield final.shift


def _folded(norm: Modulation, matrix: Weight) -> tuple[Tensor, Tensor, Tensor]:
    folded = fold(norm.scale, norm.shift, matrix)
    return folded.scale, folded.bias, norm.gate

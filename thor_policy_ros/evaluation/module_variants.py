"""The pieces of a prefix layer, each written several ways: dense, fused, in FP8.

Weights are random and inputs are normal, as after a norm. Static scales come from the absmax
of the very inputs, so their cosine is the best that calibration can reach.
Letters: M tokens, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thor_policy_ros.backends.fp8 import (
    Fp8Linear,
    ScaledMatmul,
    activation_scale,
    saturating_cast,
)
from thor_policy_ros.backends.fp8_mlp import FP8MLP, FP8MLPWithStaticScale, HybridMlp
from thor_policy_ros.backends.fp8_scales import LayerRanges, Range
from thor_policy_ros.model.config import GemmaConfig
from thor_policy_ros.model.gemma import Mlp, Prefix, rope_tables

Output = Tensor | Sequence[Tensor]
Run = Callable[[], Output]


@dataclass(frozen=True)
class Copy:
    """One set of weights with its input: each variant's run, and the float32 output.

    The first variant is what the others are compared with.
    """

    reference: Tensor
    variants: Mapping[str, Run]


@dataclass(frozen=True)
class Setting:
    """matmul: None leaves the FP8 variants out."""

    config: GemmaConfig
    tokens: int
    device: torch.device
    matmul: ScaledMatmul | None

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)


def gemm_copy(setting: Setting) -> Copy:
    """The product of M tokens with one of the MLP's three matrices."""
    config, matmul = setting.config, setting.matmul
    x = setting.normal(setting.tokens, config.width)
    weight = setting.normal(config.mlp_dim, config.width) * config.width**-0.5
    x16, weight16 = x.bfloat16(), weight.bfloat16()
    variants: dict[str, Run] = {"bf16": lambda: F.linear(x16, weight16)}
    if matmul is not None:
        absmax = float(x16.abs().max())
        static, dynamic = Fp8Linear(weight, absmax, matmul), Fp8Linear(weight, None, matmul)
        scale = activation_scale(x16.abs().max())
        quantised = saturating_cast(x16, scale)
        variants["FP8, input already quantised"] = lambda: matmul(
            quantised, static.weight.t(), scale, static.weight_scale
        )
        variants["FP8, static scale"] = lambda: static(x16)
        variants["FP8, dynamic scale"] = lambda: dynamic(x16)
    return Copy(F.linear(x, weight), variants)


def mlp_copy(setting: Setting) -> Copy:
    """The whole gated MLP."""
    matmul = setting.matmul
    full = Mlp(setting.config).to(setting.device)
    x = setting.normal(1, setting.tokens, setting.config.width)
    reference, (ranges,) = _watched_ranges(full, _call(full, x))
    dense, x16 = full.bfloat16(), x.bfloat16()
    variants: dict[str, Run] = {"bf16": _call(dense, x16)}
    if matmul is not None:
        for name, module in _fp8_mlps(dense, ranges, matmul).items():
            variants[name] = _call(module, x16)
    return Copy(reference, variants)


def qkv_copy(setting: Setting) -> Copy:
    """Three projections of one input, apart and as one matrix."""
    config = setting.config
    kv = config.num_kv_heads * config.head_dim
    return _fusion_copy(setting, (config.num_heads * config.head_dim, kv, kv))


def gate_up_copy(setting: Setting) -> Copy:
    """The MLP's gate and up projections, apart and as one matrix."""
    return _fusion_copy(setting, (setting.config.mlp_dim,) * 2)


def prefix_copy(setting: Setting) -> Copy:
    """Keys and values of all layers from embedded tokens, as the backends compute them."""
    config, matmul = setting.config, setting.matmul
    with torch.device(setting.device):
        full = Prefix(config, vocab_size=1)
    x = setting.normal(1, setting.tokens, config.width)
    rope = rope_tables(torch.arange(setting.tokens, device=setting.device)[None], config.head_dim)

    def run_of(prefix: Prefix, embeddings: Tensor) -> Run:
        return lambda: torch.stack(
            [t for pair in prefix.encode_keys_values(embeddings, rope, None) for t in pair]
        )

    reference, ranges = _watched_ranges(full, run_of(full, x))
    dense, x16 = _bfloat16_prefix(full), x.bfloat16()
    variants = {"bf16": run_of(dense, x16)}
    if matmul is not None:
        layers = list(dense.layers)[: len(ranges)]
        choices = [
            _fp8_mlps(layer.mlp, r, matmul)  # type: ignore[arg-type]
            for layer, r in zip(layers, ranges, strict=True)
        ]
        for name in choices[0]:
            changed = _with_mlps(dense, [choice[name] for choice in choices])
            variants[name] = run_of(changed, x16)
    return Copy(reference, variants)


TABLES: dict[str, Callable[[Setting], Copy]] = {
    "single GEMM": gemm_copy,
    "MLP": mlp_copy,
    "QKV fusion": qkv_copy,
    "gate-up fusion": gate_up_copy,
    "whole prefix": prefix_copy,
}


def _fp8_mlps(dense: Mlp, ranges: LayerRanges, matmul: ScaledMatmul) -> dict[str, nn.Module]:
    return {
        "FP8, dynamic scales": FP8MLP(dense, matmul),
        "FP8, static scales": FP8MLPWithStaticScale(dense, ranges, matmul),
        "hybrid, dynamic scales": HybridMlp(dense, None, matmul),
        "hybrid, static scales": HybridMlp(dense, ranges, matmul),
    }


def _fusion_copy(setting: Setting, rows: tuple[int, ...]) -> Copy:
    width = setting.config.width
    x = setting.normal(1, setting.tokens, width)
    weight = setting.normal(sum(rows), width) * width**-0.5
    x16, merged = x.bfloat16(), weight.bfloat16()
    parts = [part.clone() for part in merged.split(rows)]
    return Copy(
        reference=F.linear(x, weight),
        variants={
            f"{len(rows)} products": lambda: [F.linear(x16, part) for part in parts],
            "1 product": lambda: F.linear(x16, merged),
        },
    )


def joined(output: Output) -> Tensor:
    """Several outputs beside each other, as one product would give them."""
    return output if isinstance(output, Tensor) else torch.cat(list(output), -1)


def _ranges(inputs: float, hidden: float) -> LayerRanges:
    return LayerRanges(Range(inputs, inputs), Range(hidden, hidden))


def _call(module: nn.Module, x: Tensor) -> Run:
    return lambda: module(x)


def _watched_ranges(module: nn.Module, run: Run) -> tuple[Tensor, list[LayerRanges]]:
    """The output of `run`, and the ranges of the MLPs inside `module` that it calls."""
    inputs: list[float] = []
    hidden: list[float] = []
    hooks = []
    for mlp in (m for m in module.modules() if isinstance(m, Mlp)):
        for part, seen in ((mlp, inputs), (mlp.down_proj, hidden)):
            hooks.append(part.register_forward_pre_hook(_noting(seen)))
    output = joined(run())
    for hook in hooks:
        hook.remove()
    return output, [_ranges(*pair) for pair in zip(inputs, hidden, strict=True)]


def _noting(seen: list[float]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(float(inputs[0].abs().max()))

    return note


def _bfloat16_prefix(full: Prefix) -> Prefix:
    """In place: matrices in bfloat16, norms stay float32 as in a loaded model."""
    for name, parameter in full.named_parameters():
        if "norm" not in name:
            parameter.data = parameter.data.bfloat16()
    return full


def _with_mlps(prefix: Prefix, mlps: list[nn.Module]) -> Prefix:
    """`prefix` with other MLPs in its first layers, the rest of its weights shared."""
    changed = Prefix.__new__(Prefix)
    changed.__dict__.update(prefix.__dict__)
    layers = list(prefix.layers)
    for index, mlp in enumerate(mlps):
        layers[index] = copy.copy(layers[index])
        layers[index]._modules = {**layers[index]._modules, "mlp": mlp}
    changed._modules = {**prefix._modules, "layers": nn.ModuleList(layers)}
    return changed

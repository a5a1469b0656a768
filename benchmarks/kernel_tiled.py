"""Operations with tiles of one's own choice, by the names of kernel_cases; imports Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernel_cases import VISION_HEADS, Inputs

from thor_policy_ros.backends.kernels import (
    attention,
    folded_gemm,
    small_gemm,
    suffix_attention,
)
from thor_policy_ros.backends.kernels.target import KernelTarget
from thor_policy_ros.backends.kernels.tiles import prefix_tiles, suffix_tiles


def tiled_call(name: str, target: KernelTarget, tiles: Any) -> Callable[[Inputs], object]:
    """The operation on inputs of its case."""
    kind = name.removesuffix("_fp8")
    if kind == "vision_attention":
        return lambda i: attention.vision_attention(target, i["qkv"], VISION_HEADS, tiles=tiles)
    launchers: dict[str, Callable[..., object]] = {
        "expert_qkv": folded_gemm.expert_qkv,
        "expert_geglu": folded_gemm.expert_geglu,
        "gated_linear_o": small_gemm.gated_linear,
        "gated_linear_down": small_gemm.gated_linear,
        "prefix_attention": attention.prefix_attention,
        "suffix_attention": suffix_attention.suffix_attention,
    }
    return lambda i: launchers[kind](target, *i.values(), tiles=tiles)


def suggested(name: str, target: KernelTarget, inputs: Inputs) -> Any:
    """The tiles that follow from the sizes."""
    limits = target.limits
    if name == "vision_attention":
        images, tokens, triple = inputs["qkv"].shape
        return prefix_tiles(tokens, images * VISION_HEADS, triple // 3 // VISION_HEADS, 2, limits)
    if "attention" in name:
        tokens, heads, head_dim = inputs["q"].shape
        groups, rows, _ = inputs["keys"].shape
        if name == "suffix_attention":
            return suffix_tiles(tokens, heads, head_dim, rows, 2, limits)
        return prefix_tiles(tokens * heads // groups, groups, head_dim, 2, limits)
    x = inputs["y"] if name.startswith("gated") else inputs["x"].h
    return small_gemm.product_tiles(target, x, inputs["weight"])

"""What the ends of Hopper's products take beside the product (hopper_product.py)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from thor_policy_ros.backends.kernels.target import group_stride, require_contiguous
from thor_policy_ros.backends.kernels.weights import Rotation

Epilogue = Literal["plain", "gelu", "geglu", "parts", "placed", "rotated"]
HEAD_DIM = 256
"""That RoPE is made for."""


class Tables(NamedTuple):
    """The last arguments of the kernel: addresses, 0 where there is none, and sizes."""

    table: int = 0
    places: int = 0
    sines: int = 0
    start: int = 0
    keys: int = 0
    values: int = 0
    queries: int = 0
    groups: int = 0
    capacity: int = 0
    stride: int = 0


def tables_of(
    epilogue: Epilogue, features: int, places: Tensor | None, rotation: Rotation | None
) -> Tables:
    """ValueError for what the epilogue cannot do with."""
    if (places is not None) != (epilogue == "placed"):
        raise ValueError(f"places are for 'placed', and it wants some; got {epilogue!r}")
    if (rotation is not None) != (epilogue == "rotated"):
        raise ValueError(f"a rotation is for 'rotated', and it wants one; got {epilogue!r}")
    if places is not None:
        if places.ndim != 2 or places.shape[1] != features or places.dtype != torch.float32:
            raise ValueError(
                f"wanted places f32[P,{features}], got {places.dtype} {list(places.shape)}"
            )
        return Tables(table=places.data_ptr(), places=len(places))
    if rotation is None:
        return Tables()
    keys, values = rotation.keys, rotation.values
    require_contiguous(cos=rotation.cos, sin=rotation.sin)
    groups, capacity, head_dim = keys.shape
    heads = 2 * features // HEAD_DIM
    if head_dim != HEAD_DIM or values.shape != keys.shape or heads < 2 * groups:
        raise ValueError(
            f"wanted keys and values [G,R,{HEAD_DIM}] of at most {heads // 2} groups, got"
            f" {list(keys.shape)} and {list(values.shape)}"
        )
    if keys.dtype != torch.bfloat16 or values.dtype != torch.bfloat16:
        raise ValueError(f"wanted bfloat16 keys and values, got {keys.dtype}, {values.dtype}")
    return Tables(
        table=rotation.cos.data_ptr(),
        sines=rotation.sin.data_ptr(),
        start=rotation.start.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        queries=heads - 2 * groups,
        groups=groups,
        capacity=capacity,
        stride=group_stride(keys, values),
    )

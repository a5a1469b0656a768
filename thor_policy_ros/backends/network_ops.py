"""The few operations that the networks are written in, and what they mean, in torch.

A network (`trt_networks.py`) is written once, over `NetworkOps`. `TorchOps` runs it, which is
how its arithmetic is tested without a GPU; `trt_ops.TensorRTOps` makes TensorRT layers of it.
Everything is strongly typed: operands have one dtype, and only `cast` changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from thor_policy_ros.backends.fp8 import activation_scale, quantised_weight, saturating_cast

Dtype = Literal["float32", "bfloat16"]
TORCH_DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
T = TypeVar("T")


def dtype_name(dtype: torch.dtype) -> Dtype:
    """The name of a dtype that the networks know; ValueError for any other."""
    for name, known in TORCH_DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"networks want one of {', '.join(TORCH_DTYPES)}, got {dtype}")


class NetworkOps(Protocol[T]):
    """What a network may do. Shapes are given in full, save that -1 is a size left open:
    in an input chosen by the bucket, in a reshape what remains. A shape has at most one."""

    def input(self, name: str, shape: tuple[int, ...], dtype: Dtype) -> T: ...

    def output(self, name: str, value: T) -> None: ...

    def constant(self, value: Tensor) -> T:
        """A weight or table; its dtype is its type in the network."""
        ...

    def cast(self, x: T, dtype: Dtype) -> T: ...

    def add(self, a: T, b: T) -> T:
        """Same rank; sizes of 1 are broadcast. Likewise `mul`."""
        ...

    def mul(self, a: T, b: T) -> T: ...

    def matmul(self, a: T, b: T, transpose_b: bool = False) -> T:
        """Same rank, [...,M,K] times [...,K,N], or [...,N,K] with `transpose_b`."""
        ...

    def fp8_product(self, x: T, weight: Tensor, absmax: float) -> T:
        """x: [rows,in], weight: [out,in] -> [rows,out] of x's dtype, both rounded to E4M3: the
        weight by its own scale, x by that of `absmax`, beyond which it saturates."""
        ...

    def reshape(self, x: T, shape: tuple[int, ...]) -> T: ...

    def permute(self, x: T, order: tuple[int, ...]) -> T: ...

    def slice(self, x: T, axis: int, start: int, size: int) -> T: ...

    def concat(self, parts: Sequence[T], axis: int) -> T: ...

    def mean(self, x: T) -> T:
        """Over the last axis, which becomes 1."""
        ...

    def rsqrt(self, x: T) -> T: ...

    def softmax(self, x: T) -> T:
        """Over the last axis."""
        ...

    def gelu_tanh(self, x: T) -> T: ...


class TorchOps:
    """Runs a network on tensors. inputs: by name; outputs: filled by the network."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        self._inputs = inputs
        self.outputs: dict[str, Tensor] = {}

    def input(self, name: str, shape: tuple[int, ...], dtype: Dtype) -> Tensor:
        if name not in self._inputs:
            raise ValueError(f"network input {name!r} is missing; got {sorted(self._inputs)}")
        value = self._inputs[name]
        fits = len(shape) == value.dim() and all(
            wanted in (-1, size) for wanted, size in zip(shape, value.shape, strict=True)
        )
        if not fits or value.dtype != TORCH_DTYPES[dtype]:
            raise ValueError(
                f"network input {name!r} wants {dtype}{list(shape)},"
                f" got {value.dtype}{list(value.shape)}"
            )
        return value

    def output(self, name: str, value: Tensor) -> None:
        self.outputs[name] = value

    def constant(self, value: Tensor) -> Tensor:
        return value

    def cast(self, x: Tensor, dtype: Dtype) -> Tensor:
        return x.to(TORCH_DTYPES[dtype])

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        self._check_alike(a, b)
        return a + b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        self._check_alike(a, b)
        return a * b

    def matmul(self, a: Tensor, b: Tensor, transpose_b: bool = False) -> Tensor:
        self._check_alike(a, b)
        return a @ (b.transpose(-1, -2) if transpose_b else b)

    def fp8_product(self, x: Tensor, weight: Tensor, absmax: float) -> Tensor:
        scale = activation_scale(torch.tensor(absmax))
        rows = saturating_cast(x, scale.to(x.dtype)).float()
        columns, weight_scale = quantised_weight(weight)
        return ((rows @ columns.float().t()) * (scale * weight_scale)).to(x.dtype)

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape(shape)

    def permute(self, x: Tensor, order: tuple[int, ...]) -> Tensor:
        return x.permute(order)

    def slice(self, x: Tensor, axis: int, start: int, size: int) -> Tensor:
        return x.narrow(axis, start, size)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(parts), axis)

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True)

    def rsqrt(self, x: Tensor) -> Tensor:
        return x.rsqrt()

    def softmax(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def _check_alike(self, a: Tensor, b: Tensor) -> None:
        """What TensorRT would refuse, torch must refuse too."""
        if a.dtype != b.dtype or a.dim() != b.dim():
            raise TypeError(
                f"operands must have one dtype and rank, got {a.dtype}{list(a.shape)} and"
                f" {b.dtype}{list(b.shape)}"
            )

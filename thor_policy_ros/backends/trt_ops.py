"""`NetworkOps` as TensorRT layers: the same network that torch runs, as an INetworkDefinition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import activation_scale, quantised_weight
from thor_policy_ros.backends.network_ops import Dtype, dtype_name


class TensorRTOps:
    """Adds layers to `network`. api: the module that made it.

    Weights are handed over by address and kept here: keep this object until the engine is
    built. weight_bytes: how much they are.
    """

    def __init__(self, api: Any, network: Any) -> None:
        self._api = api
        self._network = network
        self._dtypes = {"float32": api.float32, "bfloat16": api.bfloat16}
        self._kept: list[Tensor | npt.NDArray[Any]] = []
        self.weight_bytes = 0

    def input(self, name: str, shape: tuple[int, ...], dtype: Dtype) -> Any:
        return self._network.add_input(name, self._dtypes[dtype], shape)

    def output(self, name: str, value: Any) -> None:
        value.name = name
        self._network.mark_output(value)

    def constant(self, value: Tensor) -> Any:
        return self._held(value, self._dtypes[dtype_name(value.dtype)])

    def cast(self, x: Any, dtype: Dtype) -> Any:
        kind = self._dtypes[dtype]
        return x if x.dtype == kind else self._only(self._network.add_cast(x, kind))

    def add(self, a: Any, b: Any) -> Any:
        return self._elementwise(a, b, self._api.ElementWiseOperation.SUM)

    def mul(self, a: Any, b: Any) -> Any:
        return self._elementwise(a, b, self._api.ElementWiseOperation.PROD)

    def matmul(self, a: Any, b: Any, transpose_b: bool = False) -> Any:
        kinds = self._api.MatrixOperation
        kind = kinds.TRANSPOSE if transpose_b else kinds.NONE
        return self._only(self._network.add_matrix_multiply(a, kinds.NONE, b, kind))

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        layer = self._network.add_shuffle(x)
        layer.reshape_dims = shape
        return self._only(layer)

    def permute(self, x: Any, order: tuple[int, ...]) -> Any:
        layer = self._network.add_shuffle(x)
        layer.first_transpose = self._api.Permutation(order)
        return self._only(layer)

    def slice(self, x: Any, axis: int, start: int, size: int) -> Any:
        rank = len(x.shape)
        starts = [start if i == axis else 0 for i in range(rank)]
        sizes = [size if i == axis else n for i, n in enumerate(x.shape)]
        if -1 not in sizes:
            return self._only(self._network.add_slice(x, starts, sizes, [1] * rank))
        layer = self._network.add_slice(x, starts, [0] * rank, [1] * rank)
        layer.set_input(2, self._sizes_with(x, axis, size))
        return self._only(layer)

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        layer = self._network.add_concatenation(list(parts))
        layer.axis = axis
        return self._only(layer)

    def mean(self, x: Any) -> Any:
        last = 1 << (len(x.shape) - 1)
        kind = self._api.ReduceOperation.AVG
        return self._only(self._network.add_reduce(x, kind, last, True))

    def rsqrt(self, x: Any) -> Any:
        kinds = self._api.UnaryOperation
        root = self._only(self._network.add_unary(x, kinds.SQRT))
        return self._only(self._network.add_unary(root, kinds.RECIP))

    def softmax(self, x: Any) -> Any:
        layer = self._network.add_softmax(x)
        layer.axes = 1 << (len(x.shape) - 1)
        return self._only(layer)

    def gelu_tanh(self, x: Any) -> Any:
        kind = self._api.ActivationType.GELU_TANH
        return self._only(self._network.add_activation(x, kind))

    def fp8_product(self, x: Any, weight: Tensor, absmax: float) -> Any:
        """As quantise and dequantise nodes around a product: TensorRT makes one product in FP8 of
        them, on a GPU that has it. The weight is kept as one byte an element."""
        held, scale = quantised_weight(weight)
        input_scale = self.constant(activation_scale(torch.tensor(absmax)))
        rows = self._only(self._network.add_quantize(x, input_scale, self._api.fp8))
        rows = self._only(self._network.add_dequantize(rows, input_scale, x.dtype))
        columns = self._held(held, self._api.fp8)
        columns = self._only(self._network.add_dequantize(columns, self.constant(scale), x.dtype))
        return self.matmul(rows, columns, transpose_b=True)

    def _held(self, value: Tensor, kind: Any) -> Any:
        """A constant whose memory is kept until the engine is built."""
        held = value.detach().to("cpu").contiguous()
        self._kept.append(held)
        self.weight_bytes += held.nbytes
        weights = self._api.Weights(kind, held.data_ptr(), held.numel())
        return self._only(self._network.add_constant(tuple(held.shape), weights))

    def _elementwise(self, a: Any, b: Any, kind: Any) -> Any:
        return self._only(self._network.add_elementwise(a, b, kind))

    def _sizes_with(self, x: Any, axis: int, size: int) -> Any:
        """The shape of x, with `size` at `axis`, computed when the open size is known."""
        others = np.array([int(i != axis) for i in range(len(x.shape))], np.int64)
        shape = self._only(self._network.add_shape(x))
        kept = self.mul(shape, self._integers(others))
        return self.add(kept, self._integers((1 - others) * size))

    def _integers(self, values: npt.NDArray[np.int64]) -> Any:
        self._kept.append(values)
        weights = self._api.Weights(values)
        return self._only(self._network.add_constant(values.shape, weights))

    def _only(self, layer: Any) -> Any:
        if layer is None:  # the API's way to refuse; the builder's log says why
            raise ValueError("TensorRT refused a layer: see the messages of its logger")
        return layer.get_output(0)

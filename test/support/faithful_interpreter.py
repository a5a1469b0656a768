"""Triton's interpreter with the rounding of GPUs.

Triton 3.6's interpreter truncates float32 to bfloat16, and carries wrongly into the exponent where
it rounds to FP8; it multiplies the bits of bfloat16 matrices as integers; and it makes loop bounds
of arrays in a way that NumPy 2.4 no longer allows. GPUs round to nearest, ties to even, as torch
does on a CPU, and sum the products of bfloat16 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH_DTYPES = {
    tl.float32: torch.float32,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
_INTEGERS = {2: torch.uint16, 1: torch.uint8}


def use_rounding_of_gpus() -> None:
    """For this process; a conversion that is not among `TORCH_DTYPES` raises KeyError."""
    interpreter._convert_float = _converted
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter._patch_lang_tensor = partial(_patch_tensor, interpreter._patch_lang_tensor)


def _converted(values: npt.NDArray[Any], source: Any, target: Any, _: Any) -> npt.NDArray[Any]:
    bits = torch.from_numpy(np.ascontiguousarray(values))
    rounded = bits.view(TORCH_DTYPES[source]).to(TORCH_DTYPES[target])
    if target != tl.float32:
        rounded = rounded.view(_INTEGERS[rounded.element_size()])
    return rounded.numpy().reshape(values.shape)


def _dot(builder: Any, a: Any, b: Any, sum_so_far: Any, *_: Any) -> Any:
    product = np.matmul(_wide(a), _wide(b)) + sum_so_far.data
    return interpreter.TensorHandle(product, sum_so_far.dtype.scalar)


def _wide(operand: Any) -> npt.NDArray[np.float32]:
    kind = operand.dtype.scalar
    if kind == tl.float32:
        return operand.data
    return _converted(operand.data, kind, tl.float32, None).view(np.float32)


def _patch_tensor(original: Callable[[Any, Any], None], tensor: Any, scope: Any) -> None:
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

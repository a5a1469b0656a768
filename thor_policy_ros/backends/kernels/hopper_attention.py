"""Attention of the prefix on Hopper, on the matrix units' own instructions
(cuda_source/hopper_prefix_attention.cu).

Triton's kernel (attention.py) keeps a block's softmax and its products apart; here two warpgroups
of a block take turns: 12.5 against 17.7 us for 544 tokens on an H200.

Letters: M tokens, D head dim, R rows of a K,V buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels.target import require_contiguous
from thor_policy_ros.backends.kernels.tiles import ceil_div

FOLDER = Path(__file__).parent / "cuda_source"
CAPABILITY = (9, 0)
ROWS = 64
"""Query rows of a block."""
GROUPS = 2
"""Warpgroups that multiply."""
PREFIX_HEAD_DIM = 256
_PANEL_BYTES = 128
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class PrefixCode:
    """keys: of a tile. slots: tiles of keys or values in shared memory."""

    keys: int
    slots: int = 4

    name = "prefix_attention"
    threads = 128 * (GROUPS + 1)

    @property
    def macros(self) -> dict[str, int]:
        return {"KEYS": self.keys, "SLOTS": self.slots}

    @property
    def shared_memory(self) -> int:
        """Bytes that a block asks for at launch."""
        return (ROWS + self.slots * self.keys) * PREFIX_HEAD_DIM * 2

    @property
    def products(self) -> str:
        """Source of the matrix units' instructions: q @ k.T and weights @ v."""
        values = product_source("add_values", PREFIX_HEAD_DIM, "registers", turned=True)
        return product_source("score", self.keys, "shared", turned=False) + values


CODES = (PrefixCode(80), PrefixCode(96))
"""Those in use."""


def prefix_code(tokens: int) -> PrefixCode:
    """With the fewest tiles for a warpgroup, and then with the fewest keys in them: the fastest one
    for 288, 544, 800 and 968 tokens (H200)."""

    def cost(code: PrefixCode) -> tuple[int, int]:
        tiles = ceil_div(tokens, code.keys)
        return ceil_div(tiles, GROUPS), tiles * code.keys

    return min(CODES, key=cost)


def product_source(
    name: str, columns: int, rows_in: Literal["registers", "shared"], turned: bool
) -> str:
    """A function for the matrix units' instruction: 64 rows, 16 deep, and so many columns.

    rows_in: where the left matrix lies. turned: whether the right one's columns are contiguous.
    """
    count, left = columns // 2, 4 if rows_in == "registers" else 1
    sums = ", ".join(f"%{i}" for i in range(count))
    first = ", ".join(f"%{count + i}" for i in range(left))
    kind = "unsigned" if rows_in == "registers" else "unsigned long long"
    constraint = "r" if rows_in == "registers" else "l"
    operands = ", ".join(f'"{constraint}"(a{i})' for i in range(left))
    parameters = ", ".join(f"{kind} a{i}" for i in range(left))
    first = f"{{{first}}}" if rows_in == "registers" else first
    of_left = "" if rows_in == "registers" else "0, "
    outputs = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    return f"""
__device__ inline void {name}(float (&sums)[{count}], {parameters}, unsigned long long b,
                              int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + left + 1}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{sums}}},"
      " {first}, %{count + left}, p, 1, 1, {of_left}{int(turned)};\\n}}"
      : {outputs}
      : {operands}, "l"(b), "r"(accumulate));
}}
"""


@cache
def compiled(code: PrefixCode) -> bytes:
    """Machine code for 9.0a; wants cuda.core and NVRTC, no GPU."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        arch="sm_90a",
        std="c++17",
        include_path=str(FOLDER),
        device_as_default_execution_space=True,
        define_macro=[(name, str(value)) for name, value in code.macros.items()],
    )
    source = code.products + (FOLDER / f"hopper_{code.name}.cu").read_text()
    return bytes(Program(source, "c++", options).compile("cubin").code)


class _Kernel:
    """The compiled code on one device."""

    def __init__(self, code: PrefixCode, index: int) -> None:
        from cuda.bindings import driver
        from cuda.core import Device, ObjectCode

        torch.cuda.init()
        Device(index).set_current()
        self._index = index
        self._code = code
        self._module = ObjectCode.from_cubin(compiled(code))
        self._kernel = self._module.get_kernel(code.name)
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        handle = driver.CUkernel(int(self._kernel.handle))
        (error,) = driver.cuKernelSetAttribute(attribute, code.shared_memory, handle, index)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(
                f"{code.shared_memory} bytes of shared memory for a block were refused: {error}"
            )

    def launch(self, grid: tuple[int, ...], overlap: bool, *args: Any) -> None:
        """In torch's current stream. overlap: as `KernelTarget` says."""
        from cuda.core import LaunchConfig, Stream, launch

        config = LaunchConfig(
            grid=grid,
            block=self._code.threads,
            shmem_size=self._code.shared_memory,
            programmatic_stream_serialization=overlap,
        )
        stream = Stream.from_handle(torch.cuda.current_stream(self._index).cuda_stream)
        launch(stream, config, self._kernel, *args)


@cache
def _kernel_of(code: PrefixCode, index: int) -> _Kernel:
    """Compiled once a process and device."""
    return _Kernel(code, index)


def panels_of(matrix: Tensor) -> Tensor:
    """A view of a matrix [R,D] as the copy engine takes it: u8[panels,R,128]."""
    data = matrix.view(torch.uint8)
    rows, width = data.shape
    return data.as_strided((width // _PANEL_BYTES, rows, _PANEL_BYTES), (_PANEL_BYTES, width, 1))


def _map_of(matrix: Tensor, rows: int) -> Any:
    """What the copy engine is told of a matrix, to bring so many of its rows at a time."""
    # cuda-core 1.2 takes these words in its public call, and has no public place for them.
    from cuda.core._tensor_map import TensorMapL2Promotion, TensorMapSwizzle
    from cuda.core.utils import StridedMemoryView

    view = panels_of(matrix)
    seen = StridedMemoryView.from_any_interface(view, stream_ptr=-1)
    return seen.as_tensor_map(
        (view.shape[0], rows, _PANEL_BYTES),
        swizzle=TensorMapSwizzle.SWIZZLE_128B,
        l2_promotion=TensorMapL2Promotion.L2_256B,
    )


def fits_prefix(q: Tensor, keys: Tensor) -> bool:
    """Whether there is a kernel for q [M,heads,D] and keys [G,R,D]."""
    return (
        q.dtype == keys.dtype == torch.bfloat16
        and keys.shape[0] == 1
        and q.shape[2] == PREFIX_HEAD_DIM
        and q.numel() > 0
    )


class HopperAttention:
    """Launches the kernels on one device, in torch's current stream.

    overlap: they begin before the kernel in front of them ends (see overlap.py).
    """

    def __init__(self, device: torch.device, overlap: bool = False) -> None:
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._overlap = overlap

    def prefix(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        quantise: Tensor | None = None,
        out: Tensor | None = None,
        code: PrefixCode | None = None,
    ) -> Tensor:
        """`Ops.prefix_attention` of what `fits_prefix`. code: instead of the one that follows from
        the sizes."""
        require_contiguous(q=q, keys=keys[0], values=values[0], length=length, out=out)
        if not fits_prefix(q, keys) or values.shape != keys.shape:
            raise ValueError(
                f"no kernel for {q.dtype} {list(q.shape)} and keys {list(keys.shape)}: it wants"
                f" bfloat16 [M,heads,{PREFIX_HEAD_DIM}] and [1,R,{PREFIX_HEAD_DIM}]"
            )
        tokens, heads, head_dim = q.shape
        rows = tokens * heads
        out = _result(q, (tokens, heads * head_dim), quantise, out)
        code = code or prefix_code(tokens)
        _kernel_of(code, self._index).launch(
            (ceil_div(rows, ROWS), 1, 1),
            self._overlap,
            _map_of(q.view(rows, head_dim), ROWS),
            *(_map_of(matrix[0], code.keys) for matrix in (keys, values)),
            *_pointers(out, quantise, length),
            *(keys.shape[1], rows, np.float32(_LOG2_E / math.sqrt(head_dim))),
        )
        return out


def _result(
    like: Tensor, shape: tuple[int, ...], quantise: Tensor | None, out: Tensor | None
) -> Tensor:
    if out is not None:
        return out
    return torch.empty(shape, device=like.device, dtype=like.dtype if quantise is None else E4M3)


def _pointers(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)

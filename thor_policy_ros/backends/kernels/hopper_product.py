"""Products of many tokens on Hopper, with what follows each in the same kernel
(cuda_source/hopper_product.cu): bias, GELU, GEGLU, rounding to E4M3, parts of a sum over K, places
of patches, or RoPE and where keys and values are read.

cuBLAS lends neither its tiles' last step nor the time before the kernel in front ends: here weights
are asked for before that, and the results leave finished.

Letters: T tokens, K inputs, N rows of weights, F columns of the result (N, or N/2 behind GEGLU),
G kv heads, D head dim.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels.hopper_tables import HEAD_DIM, Epilogue, tables_of
from thor_policy_ros.backends.kernels.target import require_contiguous
from thor_policy_ros.backends.kernels.tiles import ceil_div
from thor_policy_ros.backends.kernels.weights import Rotation

SOURCE = Path(__file__).parent / "cuda_source" / "hopper_product.cu"
CAPABILITY = (9, 0)
GROUPS = 2
"""Warpgroups that multiply."""
THREADS = 128 * (GROUPS + 1)
MOST_SUMS = 384
"""Tokens times `Tiling.high`: of which a thread's registers hold half as many sums."""
MOST_SUMS_BESIDE = 176
"""Where they hold as many numbers out of tables."""
MOST_PARTS = 8
LEAST_FEATURES = 256
"""Of a tile with most of them."""
STEP_BYTES = 128
"""Of each row of both operands, in one step over K."""
SHARED_MEMORY = 227 * 1024
_KEPT_BYTES = 2048
"""Of shared memory, for barriers and what is lost to alignment."""

_BYTES_A_CLOCK = 62
"""That a multiprocessor takes in."""
_PARTS_BYTES_A_CLOCK = 40
_STEP_CLOCKS = 100
"""That a step takes beside its multiplying."""
_END_CLOCKS = 0.06
"""Of one sum, to become a result."""

_FEW = 24
"""Registers of a thread that does not multiply."""
_BESIDE_SUMS = 56
"""Registers beside the sums."""

EPILOGUES: tuple[Epilogue, ...] = ("plain", "gelu", "geglu", "parts", "placed", "rotated")
_HALVED = ("geglu", "rotated")
"""Of which two rows of weights make one feature."""
_WITH_TABLES = ("placed", "rotated")


@dataclass(frozen=True)
class Tiling:
    """How a product is cut. tokens: of a tile, 8 to 256. high: blocks of 64 rows of weights that a
    warpgroup has. splits: of K."""

    tokens: int
    high: int
    splits: int = 1

    @property
    def rows(self) -> int:
        """Rows of weights of a tile."""
        return GROUPS * 64 * self.high

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.tokens) * STEP_BYTES

    @property
    def stages(self) -> int:
        """As many as shared memory holds."""
        return min(12, (SHARED_MEMORY - _KEPT_BYTES) // self.stage_bytes)


@dataclass(frozen=True)
class Code:
    """What the source is compiled for."""

    tokens: int
    high: int
    stages: int
    fp8: bool
    epilogue: Epilogue
    out_fp8: bool
    biased: bool

    @property
    def registers(self) -> int:
        """Of each thread at launch. Few leave room for blocks of the kernel in front, beside which
        this one asks for its weights."""
        return (2 * self._many + _FEW) // 3

    @property
    def _many(self) -> int:
        """Registers of a thread that multiplies: in steps that registers are given in."""
        held = 2 if self.epilogue in _WITH_TABLES else 1
        wanted = max(96, held * self.high * self.tokens // 2 + _BESIDE_SUMS)
        return min(240, ceil_div(wanted, 24) * 24)

    @property
    def macros(self) -> dict[str, int]:
        return {
            "MANY": self._many,
            "TOKENS": self.tokens,
            "HIGH": self.high,
            "STAGES": self.stages,
            "FP8": int(self.fp8),
            "EPILOGUE": EPILOGUES.index(self.epilogue),
            "OUT_FP8": int(self.out_fp8),
            "BIASED": int(self.biased),
        }


def tiling_for(
    tokens: int, rows: int, steps: int, epilogue: Epilogue, multiprocessors: int
) -> Tiling:
    """The cut that should take the least time: multiplying, bringing and ending, in clocks."""
    most = MOST_SUMS_BESIDE if epilogue in _WITH_TABLES else MOST_SUMS
    cuts = (
        Tiling(8 * n, high, splits)
        for high in ((2,) if epilogue == "geglu" else (1, 2))
        for n in range(5 if epilogue == "placed" else 8, 33)
        if 8 * n * high <= most
        for splits in range(1, 1 + (min(MOST_PARTS, steps) if epilogue == "parts" else 1))
    )
    return min(cuts, key=lambda cut: _clocks(cut, tokens, rows, steps, epilogue, multiprocessors))


def _clocks(
    cut: Tiling, tokens: int, rows: int, steps: int, epilogue: Epilogue, multiprocessors: int
) -> float:
    tiles = ceil_div(tokens, cut.tokens) * ceil_div(rows, cut.rows) * cut.splits
    rounds = ceil_div(tiles, multiprocessors)
    multiply = cut.rows * cut.tokens / 32
    bring = (cut.rows + cut.tokens) * STEP_BYTES / _BYTES_A_CLOCK
    end = cut.rows * cut.tokens * _END_CLOCKS
    clocks = rounds * (ceil_div(steps, cut.splits) * (max(multiply, bring) + _STEP_CLOCKS) + end)
    if epilogue == "parts":
        clocks += cut.splits * tokens * rows * 8 / (multiprocessors * _PARTS_BYTES_A_CLOCK)
    return clocks


def multiply_source(tokens: int, fp8: bool) -> str:
    """The matrix units' instruction for 64 rows of weights and so many tokens."""
    count = tokens // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    a, b, accumulate = (f"%{count + i}" for i in range(3))
    shape = f"m64n{tokens}k32.f32.e4m3.e4m3" if fp8 else f"m64n{tokens}k16.f32.bf16.bf16"
    turned = "" if fp8 else ", 0, 0"
    outputs = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    return f"""
__device__ inline void multiply(float (&sums)[{count}], unsigned long long weights,
                                unsigned long long inputs, int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, {accumulate}, 0;\\n"
      "wgmma.mma_async.sync.aligned.{shape} {{{registers}}},"
      " {a}, {b}, p, 1, 1{turned};\\n}}"
      : {outputs}
      : "l"(weights), "l"(inputs), "r"(accumulate));
}}
"""


@cache
def compiled(code: Code) -> bytes:
    """Machine code for 9.0a; wants cuda.core and NVRTC, no GPU."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        arch="sm_90a",
        std="c++17",
        include_path=str(SOURCE.parent),
        max_register_count=code.registers,
        device_as_default_execution_space=True,
        define_macro=[(name, str(value)) for name, value in code.macros.items()],
    )
    source = multiply_source(code.tokens, code.fp8) + SOURCE.read_text()
    return bytes(Program(source, "c++", options).compile("cubin").code)


class _Kernel:
    """The compiled code on one device."""

    def __init__(self, code: Code, index: int) -> None:
        from cuda.bindings import driver
        from cuda.core import Device, ObjectCode

        Device(index).set_current()
        self._index = index
        self._module = ObjectCode.from_cubin(compiled(code))
        self._kernel = self._module.get_kernel("hopper_product")
        self._shared = code.stages * (GROUPS * 64 * code.high + code.tokens) * STEP_BYTES
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        handle = driver.CUkernel(int(self._kernel.handle))
        (error,) = driver.cuKernelSetAttribute(attribute, self._shared, handle, index)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{self._shared} bytes of shared memory were refused: {error}")

    def launch(self, blocks: int, *args: Any) -> None:
        """In torch's current stream; begins before the kernel in front of it ends."""
        from cuda.core import LaunchConfig, Stream, launch

        config = LaunchConfig(
            grid=blocks,
            block=THREADS,
            shmem_size=self._shared,
            programmatic_stream_serialization=True,
        )
        stream = Stream.from_handle(torch.cuda.current_stream(self._index).cuda_stream)
        launch(stream, config, self._kernel, *args)


@cache
def _kernel_of(code: Code, index: int) -> _Kernel:
    """Compiled once a process and device."""
    return _Kernel(code, index)


def weight_rows(weight: Tensor, high: int, apart: int | None) -> Tensor:
    """A view of weights [N,K] as the copy engine takes them: u8[places,4,2,8,K bytes], of which a
    box is all but the first. Its 64 rows are, for each warp and each of its lanes' rows, what lies
    side by side in the result (see the source).

    apart: how many rows lie between the two that make a feature, and a place is a row; None: each
    row makes one, and a place is a pair of them.
    """
    data = weight.view(torch.uint8)
    rows, width = data.shape
    if apart is not None:
        sizes = (rows - apart - 31 * high, 4, 2, 8, width)
        strides = (width, 8 * high * width, apart * width, high * width, 1)
    else:
        sizes = ((rows - 64 * high) // 2 + high, 4, 2, 8, width)
        strides = (2 * width, 16 * high * width, width, 2 * high * width, 1)
    return data.as_strided(sizes, strides)


def _map_of(view: Tensor, box: tuple[int, ...]) -> Any:
    """What the copy engine is told of a matrix of bytes."""
    # cuda-core 1.2 takes these words in its public call, and has no public place for them.
    from cuda.core._tensor_map import TensorMapL2Promotion, TensorMapSwizzle
    from cuda.core.utils import StridedMemoryView

    seen = StridedMemoryView.from_any_interface(view, stream_ptr=-1)
    return seen.as_tensor_map(
        box,
        swizzle=TensorMapSwizzle.SWIZZLE_128B,
        l2_promotion=TensorMapL2Promotion.L2_256B,
    )


def fits(weight: Tensor, epilogue: Epilogue) -> bool:
    """Whether there is a kernel for products with this weight [N,K]."""
    rows = weight.shape[0] // (2 if epilogue == "geglu" else 1)
    if epilogue == "rotated" and weight.shape[0] % HEAD_DIM:
        return False
    return (
        weight.dtype in (torch.bfloat16, E4M3)
        and weight.shape[1] * weight.element_size() % 16 == 0
        and rows % 8 == 0
        and rows >= LEAST_FEATURES
    )


class HopperProducts:
    """Runs the kernels on one device; one stream at a time."""

    def __init__(self, device: torch.device, multiprocessors: int) -> None:
        torch.cuda.init()
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._multiprocessors = multiprocessors
        self._weights: dict[tuple[int, int, int | None], Any] = {}

    def code(
        self, tokens: int, weight: Tensor, epilogue: Epilogue, quantised: bool, biased: bool
    ) -> Code:
        """What a product of so many tokens is compiled for."""
        return _code_of(self._tiling(tokens, weight, epilogue), weight, epilogue, quantised, biased)

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        epilogue: Epilogue = "plain",
        *,
        bias: Tensor | None = None,
        input_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
        quantise: Tensor | None = None,
        places: Tensor | None = None,
        rotation: Rotation | None = None,
        out: Tensor | None = None,
        tiling: Tiling | None = None,
    ) -> Tensor:
        """x [T,K] and weight [N,K], bfloat16 or both E4M3 with scales f32[]; bias bf16[N].

        Returns [T,F]; of "parts" f32[splits,T,F], whose sum is meant. The weight must stay where
        it is. places: of "placed", f32[P,F], which tokens are given in turns. rotation: of
        "rotated", whose rows of weights are heads of D, queries before G keys and G values;
        returns queries [T,heads,D] (no rows of queries: nothing is in it). tiling: instead of the
        one that follows from the sizes.
        """
        require_contiguous(x=x, weight=weight, bias=bias, places=places, out=out)
        if not fits(weight, epilogue) or x.dtype != weight.dtype or x.ndim != 2:
            raise ValueError(
                f"no kernel for {epilogue!r} of {x.dtype} {list(x.shape)} and {weight.dtype}"
                f" {list(weight.shape)}: it wants [T,K] and [N,K], both bfloat16 or E4M3, rows of a"
                f" multiple of 16 bytes, and {LEAST_FEATURES} features or more, a multiple of 8"
            )
        tokens, rows = x.shape[0], weight.shape[0]
        features = rows // 2 if epilogue in _HALVED else rows
        tables = tables_of(epilogue, features, places, rotation)
        t = tiling or self._tiling(tokens, weight, epilogue)
        code = _code_of(t, weight, epilogue, quantise is not None, bias is not None)
        if out is None:
            shape = {
                "parts": (t.splits, tokens, features),
                "rotated": (tokens, tables.queries, HEAD_DIM),
            }.get(epilogue, (tokens, features))
            dtype = torch.float32 if epilogue == "parts" else torch.bfloat16
            dtype = dtype if quantise is None else E4M3
            out = torch.empty(shape, device=x.device, dtype=dtype)
        token_tiles, feature_tiles = ceil_div(tokens, t.tokens), ceil_div(rows, t.rows)
        blocks = min(token_tiles * feature_tiles * t.splits, self._multiprocessors)
        pointers = (
            0 if tensor is None else tensor.data_ptr()
            for tensor in (out, bias, input_scale, weight_scale, quantise)
        )
        _kernel_of(code, self._index).launch(
            blocks,
            self._map(weight, t.high, _apart(weight, epilogue)),
            _map_of(x.view(torch.uint8), (t.tokens, STEP_BYTES)),
            *pointers,
            *(tokens, features, token_tiles, feature_tiles, t.splits, _steps(weight)),
            *tables,
        )
        return out

    def _tiling(self, tokens: int, weight: Tensor, epilogue: Epilogue) -> Tiling:
        rows, steps = weight.shape[0], _steps(weight)
        return tiling_for(tokens, rows, steps, epilogue, self._multiprocessors)

    def _map(self, weight: Tensor, high: int, apart: int | None) -> Any:
        key = (weight.data_ptr(), high, apart)
        if key not in self._weights:
            view = weight_rows(weight, high, apart)
            self._weights[key] = _map_of(view, (1, 4, 2, 8, STEP_BYTES))
        return self._weights[key]


def _apart(weight: Tensor, epilogue: Epilogue) -> int | None:
    """See `weight_rows`."""
    if epilogue == "geglu":
        return weight.shape[0] // 2
    return HEAD_DIM // 2 if epilogue == "rotated" else None


def _code_of(t: Tiling, weight: Tensor, epilogue: Epilogue, quantised: bool, biased: bool) -> Code:
    fp8 = weight.dtype == E4M3
    return Code(t.tokens, t.high, t.stages, fp8, epilogue, quantised, biased)


def _steps(weight: Tensor) -> int:
    return ceil_div(weight.shape[1] * weight.element_size(), STEP_BYTES)


def compile_all(codes: Collection[Code]) -> None:
    """Side by side: a compiler takes a third of a second for each."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(compiled, codes))

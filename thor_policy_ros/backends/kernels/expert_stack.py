"""All denoise steps of a chunk in one launch: weights that never stop coming
(cuda_source/expert_stack.cu).

One block a multiprocessor, for all layers of all steps; each thread streams its own share of all
weights through shared memory, and blocks hand activations to each other without barriers. The
weights are packed once: for each block one run of bytes, in the order in which it multiplies them.

Letters: L layers, M rows (actions), A action dims, W width, N outputs, K inputs, D head dim, R rows
of a K,V buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from thor_policy_ros.backends.kernels.capability import DeviceLimits
from thor_policy_ros.backends.kernels.target import require_contiguous
from thor_policy_ros.backends.kernels.tiles import ceil_div
from thor_policy_ros.backends.kernels.weights import Weight

SOURCE = Path(__file__).parent / "cuda_source" / "expert_stack.cu"
WARPS = 16
TILE = 8
SLOT = 16 * 32 * WARPS
"""Bytes of a chunk: 16 for each of a block's threads."""
LEAST_DEPTH = 4
"""Chunks of the shortest stream that is worth it."""
ABSENT = 0xFF
"""Every byte of a word that was not written yet."""


class Matrices(Protocol):
    """A layer's, as `fused_weights.ExpertLayerWeights` has them."""

    @property
    def qkv(self) -> Weight: ...
    @property
    def o(self) -> Weight: ...
    @property
    def gate_up(self) -> Weight: ...
    @property
    def down(self) -> Weight: ...


@dataclass(frozen=True)
class StackPlan:
    """Sizes that the kernel is compiled for. blocks: how many run, one a multiprocessor.
    group: tiles that a block multiplies between two barriers, at the most. depth: chunks of weights
    that it has asked for at any time. keys: R. actions: A."""

    rows: int
    width: int
    heads: int
    head_dim: int
    hidden: int
    layers: int
    keys: int
    actions: int
    blocks: int
    group: int
    depth: int
    fp8: bool

    @property
    def tiles(self) -> dict[str, int]:
        """Of 8 columns, that a block has of each product."""
        columns = {
            "qkv": (self.heads + 2) * self.head_dim,
            "o": self.width,
            "gate_up": 2 * self.hidden,
            "down": self.width,
        }
        return {name: ceil_div(n // TILE, self.blocks) for name, n in columns.items()}

    @property
    def macros(self) -> dict[str, int]:
        """What the source is compiled with."""
        return {
            "ROWS": self.rows,
            "WIDTH": self.width,
            "HEADS": self.heads,
            "HEAD_DIM": self.head_dim,
            "HIDDEN": self.hidden,
            "LAYERS": self.layers,
            "KEYS": self.keys,
            "ACTIONS": self.actions,
            "BLOCKS": self.blocks,
            "GROUP": self.group,
            "DEPTH": self.depth,
            "FP8": int(self.fp8),
            "EXCHANGE": self.exchange_bytes,
            "SHARED": self.shared_memory,
            "ROW": self.row_size,
        }

    @property
    def shared_memory(self) -> int:
        """Bytes of a block."""
        return self.depth * SLOT + 4 * self._sums

    @property
    def _sums(self) -> int:
        """Floats behind the stream: parts of sums or rows of V, a softmax's, and x."""
        tiles = self.tiles
        groups = max(self._group(tiles["qkv"]), self._group(tiles["gate_up"]))
        value_steps = ceil_div(self.keys // 16 + 2, WARPS)
        parts = max(WARPS * groups * self.rows * TILE, WARPS * value_steps * 128)
        return parts + self.rows * (WARPS * (3 * TILE + 3) + tiles["o"] * TILE)

    def _group(self, tiles: int) -> int:
        """`group_of` of the kernel."""
        return next(group for group in range(self.group, 0, -1) if tiles % group == 0)

    @property
    def row_size(self) -> int:
        """Floats of a step's constants."""
        layer = 4 * self.width + (self.heads + 2) * self.head_dim + 2 * self.hidden
        return self.layers * layer + 2 * self.width

    @property
    def exchange_bytes(self) -> int:
        """Of the two sets of buffers through which blocks hand on what they made."""
        row = 3 * self.width + 2 * self.heads * self.head_dim + 2 * self.head_dim + self.hidden
        row += 2 * self.actions
        scores = 64 * self.heads * self.rows * (ceil_div(self.keys, 16) + 1)
        return 2 * (2 * self.rows * row + scores)


def stack_plan(
    rows: int,
    width: int,
    heads: int,
    head_dim: int,
    hidden: int,
    layers: int,
    keys: int,
    actions: int,
    fp8: bool,
    limits: DeviceLimits,
) -> StackPlan | None:
    """The plan for these sizes and this device, or None where the kernel is not made for them.

    Where shared memory is small more of it goes to the stream than to sums.
    """
    chunk = WARPS * (64 if fp8 else 32)
    fits = (
        8 <= rows <= 16
        and 2 * heads == WARPS
        and head_dim == 256
        and layers % 2 == 0
        and width % chunk == 0
        and hidden % chunk == 0
        and actions % 16 == 0
        and limits.capability >= ((8, 9) if fp8 else (8, 0))
    )
    if not fits:
        return None
    # Blocks wait for each other: each must have a tile of the product with the fewest.
    tiles = width // TILE
    blocks = ceil_div(tiles, ceil_div(tiles, limits.multiprocessors))
    for group in (8, 4, 2):
        plan = StackPlan(
            *(rows, width, heads, head_dim, hidden, layers, keys, actions), blocks, group, 0, fp8
        )
        depth = min(32, (limits.shared_memory - plan.shared_memory) // SLOT)
        if depth >= LEAST_DEPTH:
            return replace(plan, depth=depth)
    return None


def compiled(plan: StackPlan, capability: tuple[int, int], **macros: int) -> bytes:
    """The kernel's machine code; wants cuda.core and NVRTC, no GPU. macros: further ones."""
    from cuda.core import Program, ProgramOptions

    defined = {"CLOCKS": 0, **plan.macros, **macros}
    options = ProgramOptions(
        arch=f"sm_{capability[0]}{capability[1]}",
        std="c++17",
        include_path=str(SOURCE.parent),
        device_as_default_execution_space=True,
        define_macro=[(name, str(value)) for name, value in defined.items()],
    )
    code = Program(SOURCE.read_text(), "c++", options).compile("cubin").code
    return bytes(code)


# --- packing


def _row_order(plan: StackPlan, name: str) -> Tensor:
    """i64: the row of the matrix that is each column of each tile, block by block; N where a
    tile is empty. Pairs that meet in one thread (RoPE's halves, gate and up) lie side by side."""
    if name == "qkv":
        pair = torch.arange((plan.heads + 2) * plan.head_dim // 2)
        half = plan.head_dim // 2
        low = pair // half * plan.head_dim + pair % half
        order = torch.stack((low, low + half), 1).flatten()
    elif name == "gate_up":
        unit = torch.arange(plan.hidden)
        order = torch.stack((unit, unit + plan.hidden), 1).flatten()
    else:
        order = torch.arange(plan.width)
    wanted = plan.blocks * plan.tiles[name] * TILE
    return torch.nn.functional.pad(order, (0, wanted - len(order)), value=len(order))


def _chunks(plan: StackPlan, name: str, weight: Tensor) -> Tensor:
    """u8[blocks,chunks,SLOT] of a matrix [N,K]."""
    data = weight.view(torch.uint8).view(weight.shape[0], -1)
    data = torch.cat((data, data.new_zeros(1, data.shape[1])))  # row N: of empty tiles
    chosen = data[_row_order(plan, name).to(data.device)]
    # A lane's 16 bytes are 8 inputs of a panel of 32; in E4M3 of two panels.
    panels, size = 3 - weight.element_size(), weight.element_size()
    k_chunks = weight.shape[1] // (WARPS * panels * 32)
    # block, tile, column, warp, chunk, panel, quarter, byte
    sizes = (plan.blocks, plan.tiles[name], TILE, WARPS, k_chunks, panels, 4, 8 * size)
    tiled = chosen.view(sizes).permute(0, 1, 4, 3, 2, 6, 5, 7)
    if size == 1:  # the bytes of a word: two pairs, one in the high halves
        pairs = tiled.reshape(*tiled.shape[:-1], 2, 2, 2)  # word, pair, which of it
        tiled = pairs.flip(-2).transpose(-1, -2)
    return tiled.reshape(plan.blocks, -1, SLOT)


def pack(plan: StackPlan, layers: Sequence[Matrices]) -> Tensor:
    """u8[blocks,L,chunks,SLOT]: all matrices in the order of the stream."""
    packed: Tensor | None = None
    for index, layer in enumerate(layers):
        matrices = {"qkv": layer.qkv, "o": layer.o, "gate_up": layer.gate_up, "down": layer.down}
        chunks = torch.cat([_chunks(plan, n, w.data) for n, w in matrices.items()], 1)
        if packed is None:
            shape = (plan.blocks, len(layers), *chunks.shape[1:])
            packed = torch.empty(shape, device=chunks.device, dtype=torch.uint8)
        packed[:, index] = chunks
    assert packed is not None
    return packed


def row_scales(plan: StackPlan, layers: Sequence[Matrices]) -> Tensor:
    """f32[L,N of all four matrices]; of dense weights a single 0, which nothing reads."""
    device = layers[0].qkv.data.device
    if not plan.fp8:
        return torch.zeros(1, device=device)
    rows = []
    for layer in layers:
        scales = [w.scale for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        rows.append(torch.cat([scale for scale in scales if scale is not None]))
    return torch.stack(rows).contiguous()


# --- running


class ExpertStack:
    """The compiled kernel with its packed weights. One stream runs it at a time.

    into, out: weight and bias of the action projections, f32 [W,A], [W] and [A,W], [A].
    """

    def __init__(
        self,
        plan: StackPlan,
        layers: Sequence[Matrices],
        into: tuple[Tensor, Tensor],
        out: tuple[Tensor, Tensor],
        device: torch.device,
        **macros: int,
    ) -> None:
        self.plan = plan
        self._ends = (*into, *out)
        for n, k, (weight, bias) in (
            (plan.width, plan.actions, into),
            (plan.actions, plan.width, out),
        ):
            _require(weight, (n, k), torch.float32)
            _require(bias, (n,), torch.float32)
            require_contiguous(weight=weight, bias=bias)
        self._weights = pack(plan, layers)
        self._scales = row_scales(plan, layers)
        self._exchange = torch.full(
            (plan.exchange_bytes,), ABSENT, device=device, dtype=torch.uint8
        )
        self._actions = torch.zeros(plan.rows, plan.actions, device=device)
        self._failed = torch.zeros(1, device=device, dtype=torch.int32)
        self._clocks = torch.zeros(1, device=device, dtype=torch.int64)
        if macros.get("CLOCKS"):
            shape = (plan.layers, 6, 4, plan.blocks)
            self._clocks = torch.zeros(shape, device=device, dtype=torch.int64)
        self._kernel = _Kernel(plan, device, **macros)

    @property
    def clocks(self) -> Tensor:
        """i64[L,6,4,blocks] of a kernel compiled with CLOCKS=1: when each block began a phase of
        the last step, had received, had multiplied, and had handed on, in cycles of its
        multiprocessor."""
        return self._clocks

    @property
    def failed(self) -> bool:
        """Whether a block ever gave up waiting for another: every result since then is NaN."""
        return bool(self._failed.item())

    def poison(self) -> None:
        """From here on every result is NaN: as if a block had given up."""
        self._failed.fill_(1)

    def run(
        self,
        noise: Tensor,
        result: Tensor,
        rows: Tensor,
        target: Tensor,
        gains: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        """noise f32[M,A] through every step of `rows`, f32[steps,size] of `fused_steps.step_rows`,
        to result f32[M,A]. Both may lie in the host's pinned memory.

        target f32[M,A], gains f32[steps,M]: the guidance. keys, values [L,...,R,D] of the prefix,
        of which the first `length` (i32[1]) rows count and nothing is written.
        """
        plan, steps = self.plan, len(rows)
        for of_flow in (noise, result, target):
            _require(of_flow, (plan.rows, plan.actions), torch.float32)
        _require(gains, (steps, plan.rows), torch.float32)
        _require(rows, (steps, plan.row_size), torch.float32)
        for kept in (keys, values):
            _require(kept, (plan.layers, *kept.shape[1:-2], plan.keys, plan.head_dim))
        require_contiguous(noise=noise, result=result, rows=rows, target=target, gains=gains)
        require_contiguous(keys=keys, values=values, length=length, cos=cos, sin=sin)
        self._kernel(
            self._weights.data_ptr(),
            rows.data_ptr(),
            self._scales.data_ptr(),
            self._exchange.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            length.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            np.float32(math.log2(math.e) / math.sqrt(plan.head_dim)),
            noise.data_ptr(),
            self._actions.data_ptr(),
            result.data_ptr(),
            target.data_ptr(),
            gains.data_ptr(),
            *(tensor.data_ptr() for tensor in self._ends),
            np.int32(steps),
            np.float32(1 / steps),
            self._failed.data_ptr(),
            self._clocks.data_ptr(),
        )


def _require(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(
            f"this kernel was made for {dtype} {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
        )


class _Kernel:
    """Launches in torch's current stream, as a cooperative grid: all blocks run or none does."""

    def __init__(self, plan: StackPlan, device: torch.device, **macros: int) -> None:
        from cuda.bindings import driver
        from cuda.core import Device, LaunchConfig, ObjectCode

        torch.cuda.init()
        self._plan = plan
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._device = Device(self._index)
        self._device.set_current()
        code = _cached_code(plan, self._index, tuple(sorted(macros.items())))
        self._module = ObjectCode.from_cubin(code)
        self._kernel = self._module.get_kernel("expert_stack")
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        handle = driver.CUkernel(int(self._kernel.handle))
        wanted = plan.shared_memory
        (error,) = driver.cuKernelSetAttribute(attribute, wanted, handle, self._index)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{wanted} bytes of shared memory for a block were refused: {error}")
        self._config = LaunchConfig(
            grid=plan.blocks,
            block=32 * WARPS,
            shmem_size=wanted,
            is_cooperative=True,
        )

    def __call__(self, *args: Any) -> None:
        from cuda.core import launch

        launch(self._stream(), self._config, self._kernel, *args)

    def _stream(self) -> Any:
        from cuda.core import Stream

        return Stream.from_handle(torch.cuda.current_stream(self._index).cuda_stream)


@cache
def _cached_code(plan: StackPlan, index: int, macros: tuple[tuple[str, int], ...]) -> bytes:
    return compiled(plan, torch.cuda.get_device_capability(index), **dict(macros))

"""What TensorRT's runtime is documented to do, on the CPU: engines that torch computes.

It stands in for the library alone: `tensorrt.py`, `trt_backend.py` and `trt_execution.py` run as
they are, down to raw addresses. An engine runs the network that the builder is given, through
`TorchOps`, on the memory at the addresses that were set. What the library would refuse, or would
leave undefined, fails here: shapes outside a profile, addresses never set, outputs that overlap
inputs, no working memory. `test_tensorrt.py` checks that the real library has every name used.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thor_policy_ros.backends.network_ops import TORCH_DTYPES, Dtype, TorchOps
from thor_policy_ros.backends.trt_module import TensorRT
from thor_policy_ros.backends.trt_parts import PARTS, network_of
from thor_policy_ros.model.pi05 import Pi05

VERSION = "10.13.3"
WORKING_BYTES = 4096
GARBAGE = 0xFF  # what an engine leaves in its working memory: NaN as floats


class Logger:
    """ILogger: severities, and a base class to derive from."""

    INTERNAL_ERROR, ERROR, WARNING = "internal error", "error", "warning"

    def log(self, severity: str, message: str) -> None:
        raise NotImplementedError


@dataclass
class Config:
    """IRuntimeConfig."""

    strategy: str = "STATIC"
    dynamic_shapes_kernel_specialization_strategy: str = "LAZY"  # of tensorrt_rtx alone

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class Declaring(TorchOps):
    """Runs a network on zeros, to learn its tensors."""

    def __init__(self, bucket: dict[str, tuple[int, ...]]) -> None:
        super().__init__({})
        self._bucket = bucket
        self.declared: dict[str, Tensor] = {}

    def input(self, name: str, shape: tuple[int, ...], dtype: Dtype) -> Tensor:
        size = self._bucket.get(name, shape)
        assert all(wanted in (-1, n) for wanted, n in zip(shape, size, strict=True))
        self.declared[name] = torch.zeros(size, dtype=TORCH_DTYPES[dtype])
        return self.declared[name]


class Engine:
    """ICudaEngine."""

    device_memory_size_v2 = WORKING_BYTES

    def __init__(
        self,
        part: str,
        model: Pi05,
        rtx: bool = False,
        mlp_absmax: tuple[float | None, ...] = (),
    ) -> None:
        self._rtx = rtx
        self._network = lambda ops: network_of(part, mlp_absmax)(ops, model)
        self._profiles = []
        with torch.inference_mode():
            for bucket in PARTS[part].buckets(model.config):
                ops = Declaring(dict(bucket))
                self._network(ops)
                self._profiles.append((ops.declared, ops.outputs))
        self._inputs, self._outputs = self._profiles[0]

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self._inputs else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> torch.dtype:
        return {**self._inputs, **self._outputs}[name].dtype

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, config: Config) -> Context:
        assert config.strategy == "USER_MANAGED"
        kernels = config.dynamic_shapes_kernel_specialization_strategy
        assert kernels == ("EAGER" if self._rtx else "LAZY")
        return RtxContext(self) if self._rtx else Context(self)


@dataclass
class Context:
    """IExecutionContext."""

    engine: Engine
    _profile: int = 0
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _addresses: dict[str, int] = field(default_factory=dict)
    _memory: tuple[int, int] = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile, self._shapes = index, {}
        return index < len(self.engine._profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Smallest, best and largest size of a profile are one."""
        if shape != tuple(self._inputs[name].shape):
            return False
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple({**self._inputs, **self._outputs}[name].shape)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory and size >= WORKING_BYTES
        self._memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in {**self._inputs, **self._outputs}:
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert not self.infer_shapes(), "shapes are open"
        assert all(self._memory), "no working memory was given"
        inputs = {name: self._at(name, like) for name, like in self._inputs.items()}
        outputs = {name: self._at(name, like) for name, like in self._outputs.items()}
        for output in outputs.values():
            assert not any(_overlap(output, given) for given in inputs.values())
        ops = TorchOps(inputs)
        self.engine._network(ops)
        for name, value in ops.outputs.items():
            outputs[name].copy_(value)
        ctypes.memset(self._memory[0], GARBAGE, WORKING_BYTES)
        return True

    @property
    def _inputs(self) -> dict[str, Tensor]:
        return self.engine._profiles[self._profile][0]

    @property
    def _outputs(self) -> dict[str, Tensor]:
        return self.engine._profiles[self._profile][1]

    def _at(self, name: str, like: Tensor) -> Tensor:
        """The memory at the address of `name`, as a tensor of the shape and type of `like`."""
        address = self._addresses[name]
        assert address, f"{name} has no address"
        raw = (ctypes.c_char * like.nbytes).from_address(address)
        return torch.frombuffer(raw, dtype=like.dtype).view(like.shape)


class RtxContext(Context):
    """That of tensorrt_rtx, which answers one question more."""

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine._network is not None and bool(self._addresses)


def _overlap(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def plan_of(part: str) -> bytes:
    """The 'serialised engine' of a part."""
    return json.dumps({"stand_in": part}).encode()


def stand_in(model: Pi05, rtx: bool = False, mlp_absmax: tuple[float | None, ...] = ()) -> TensorRT:
    """The package tensorrt, or tensorrt_rtx, whose engines have the weights of `model`."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: memoryview) -> Engine | None:
            try:
                return Engine(json.loads(bytes(plan))["stand_in"], model, rtx, mlp_absmax)
            except MemoryError:
                self._logger.log(Logger.ERROR, "Error Code 1: Cuda Runtime (out of memory)")
                return None
            except (ValueError, KeyError):
                self._logger.log(Logger.ERROR, "the plan is of another version")
                return None

    api = SimpleNamespace(
        Runtime=Runtime,
        ILogger=Logger,
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        float32=torch.float32,
        bfloat16=torch.bfloat16,
    )
    if rtx:
        kinds = SimpleNamespace(EAGER="EAGER")
        api.DynamicShapesKernelSpecializationStrategy = kinds
    return TensorRT(api, "tensorrt_rtx" if rtx else "tensorrt", VERSION)


class Tape(TorchDispatchMode):
    """Records every operation with the very tensors it worked on; replays them there."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapedGraphs:
    """A `Recorder` with the property of CUDA graphs that matters: a replay knows nothing of what
    Python would do now; addresses and numbers are those of the recording."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, launch: Any, capturable: Any) -> Any:
        launch()
        assert capturable()
        self.recorded += 1
        with Tape() as tape:
            launch()
        return tape.replay

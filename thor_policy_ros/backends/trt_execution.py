"""Runs a built engine: tensors at fixed addresses in, `execute_async_v3` in the current stream.

One context for each bucket (optimisation profile), made when it is first used. The contexts of
engines that never run at the same time share one piece of working memory, which torch allocates.
Written against the documented API of tensorrt 10.13 to 11.x and tensorrt_rtx 1.4 or later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from thor_policy_ros.backends.network_ops import TORCH_DTYPES
from thor_policy_ros.backends.trt_builder import collecting_logger
from thor_policy_ros.backends.trt_module import TensorRT
from thor_policy_ros.types import BackendUnavailableError


class EngineExecutionError(BackendUnavailableError):
    """TensorRT refused to load or run an engine; the message holds what its logger said."""


class EngineRefusedError(EngineExecutionError):
    """TensorRT does not take these bytes for an engine that it can run here."""


CUDA_TROUBLE = "Cuda Runtime"
"""What TensorRT says where CUDA failed, for want of memory or a driver: the bytes may be good."""


class RunningEngine(Protocol):
    """A network in several buckets, on a device."""

    def launch(self, bucket: int, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue one run in the current stream; inputs and outputs by name, of the bucket's
        shapes, contiguous. They must stay where they are until the device is done."""
        ...

    def capturable(self, bucket: int) -> bool:
        """Whether launches in this bucket, which has been launched before, may be captured in a
        CUDA graph."""
        ...


class WorkingMemory:
    """Memory for the activations of engines that run one after the other, never together."""

    def __init__(self, engines: Sequence[DeviceEngine], device: torch.device) -> None:
        size = max(engine.memory_bytes for engine in engines)
        self._held = torch.empty(size, dtype=torch.uint8, device=device)

    def give_to(self, context: Any) -> None:
        context.set_device_memory(self._held.data_ptr(), self._held.numel())


class DeviceEngine:
    """An engine as TensorRT has loaded it onto the GPU."""

    def __init__(self, tensorrt: TensorRT, plan: memoryview, name: str) -> None:
        """Raises EngineRefusedError for bytes that this TensorRT cannot run on this GPU, and
        EngineExecutionError where CUDA keeps it from loading them."""
        self.name = name
        self.api = tensorrt.api
        self.logger = collecting_logger(self.api)
        self._runtime = self.api.Runtime(self.logger)  # has to outlive the engine
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            said = self.logger.text()
            kind = EngineExecutionError if CUDA_TROUBLE in said else EngineRefusedError
            raise kind(
                f"{tensorrt.flavour} {tensorrt.version} does not load engine {name!r} here: {said}"
            )

    @property
    def memory_bytes(self) -> int:
        """Working memory that its largest bucket needs."""
        return int(self.engine.device_memory_size_v2)

    @property
    def names(self) -> dict[str, bool]:
        """Each tensor, and whether it is an input."""
        found = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        mode = self.api.TensorIOMode.INPUT
        return {name: self.engine.get_tensor_mode(name) == mode for name in found}

    def new_context(self) -> Any:
        """A context without memory of its own."""
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self.api.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if hasattr(self.api, "DynamicShapesKernelSpecializationStrategy"):  # tensorrt_rtx
            # Compile for the bucket now, not beside the first runs: a graph keeps what it saw.
            eager = self.api.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        context = self.engine.create_execution_context(config)
        if context is None:
            raise self.error("gives no execution context")
        return context

    def error(self, what: str) -> EngineExecutionError:
        return EngineExecutionError(f"engine {self.name!r} {what}: {self.logger.text()}")


class TensorRTEngine:
    """A `RunningEngine` on TensorRT. One thread uses it.

    one_profile: whether the engine's only optimisation profile serves every bucket.
    """

    def __init__(
        self,
        loaded: DeviceEngine,
        memory: WorkingMemory,
        device: torch.device,
        one_profile: bool = False,
    ) -> None:
        self._loaded = loaded
        self._memory = memory
        self._device = device
        self._one_profile = one_profile
        self._contexts: dict[int, Any] = {}

    def launch(self, bucket: int, tensors: Mapping[str, Tensor]) -> None:
        """See RunningEngine. Raises EngineExecutionError for what TensorRT refuses."""
        if bucket not in self._contexts:
            self._contexts[bucket] = self._context(bucket, tensors)
        context = self._contexts[bucket]
        for name, tensor in tensors.items():
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise self._loaded.error(f"takes no address for {name!r}")
        if not context.execute_async_v3(stream_handle(self._device)):
            raise self._loaded.error("was not enqueued")

    def capturable(self, bucket: int) -> bool:
        """What tensorrt_rtx says; the package tensorrt captures every network without data-
        dependent shapes, and ours have none."""
        ask = getattr(self._contexts[bucket], "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream_handle(self._device)))

    def _context(self, bucket: int, tensors: Mapping[str, Tensor]) -> Any:
        """A context whose shapes are the bucket's."""
        self._check(tensors)
        context = self._loaded.new_context()
        profile = 0 if self._one_profile else bucket
        if not context.set_optimization_profile_async(profile, stream_handle(self._device)):
            raise self._loaded.error(f"has no bucket {bucket}")
        for name, is_input in self._loaded.names.items():
            if is_input and not context.set_input_shape(name, tuple(tensors[name].shape)):
                raise self._loaded.error(
                    f"takes no {name!r} of {list(tensors[name].shape)} in bucket {bucket}"
                )
        unknown = context.infer_shapes()
        if unknown:
            raise self._loaded.error(f"leaves shapes open: {', '.join(unknown)}")
        for name, tensor in tensors.items():
            shape = tuple(context.get_tensor_shape(name))
            if shape != tuple(tensor.shape):
                raise self._loaded.error(f"has {name!r} of {shape}, not {tuple(tensor.shape)}")
        self._memory.give_to(context)
        return context

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """EngineExecutionError unless names and types are the engine's own."""
        loaded = self._loaded
        if set(loaded.names) != set(tensors):
            raise loaded.error(f"has tensors {sorted(loaded.names)}, not {sorted(tensors)}")
        for name, tensor in tensors.items():
            wanted = loaded.engine.get_tensor_dtype(name)
            kinds = {getattr(loaded.api, kind): torch_kind for kind, torch_kind in KINDS}
            if kinds.get(wanted) != tensor.dtype or not tensor.is_contiguous():
                raise loaded.error(f"wants {name!r} contiguous, as {wanted}, not {tensor.dtype}")


KINDS = tuple(TORCH_DTYPES.items())


def stream_handle(device: torch.device) -> int:
    """The current stream's; 0 on a CPU, where nothing but tests runs."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.current_stream(device).cuda_stream)

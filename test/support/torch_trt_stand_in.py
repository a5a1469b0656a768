"""TensorRT's runtime on the CPU for graphs that Torch-TensorRT converted: torch runs the program.

As `trt_stand_in`, but an engine is as Torch-TensorRT makes it: one profile with open sizes, and
outputs named output0, output1. What the converter itself does to a program is not stood in for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from support.trt_stand_in import VERSION, Config, Context, Engine, Logger
from torch import Tensor
from torch.export import ExportedProgram

from thor_policy_ros.backends.torch_trt_engines import Tuned, tuned_shapes
from thor_policy_ros.backends.torch_trt_parts import GRAPHS
from thor_policy_ros.backends.trt_module import TensorRT
from thor_policy_ros.model.config import Pi05Config


class ConvertedEngine(Engine):
    """ICudaEngine of one program."""

    def __init__(self, part: str, program: ExportedProgram, config: Pi05Config) -> None:
        self._call = program.module()
        dtypes = _dtypes(part, program, config)
        shapes = tuned_shapes(part, config, Tuned(config.num_cameras, config.max_prefix_len))
        self._ranges = {
            name: (least, most)
            for name, (least, _, most) in zip(GRAPHS[part].inputs(config), shapes, strict=True)
        }
        self._inputs = {
            name: torch.zeros(most, dtype=dtypes[name]) for name, (_, most) in self._ranges.items()
        }
        self._outputs = self.run(self._inputs)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by the names that Torch-TensorRT gives them."""
        with torch.inference_mode():
            found = self._call(*inputs.values())
        results = found if isinstance(found, tuple) else (found,)
        return {f"output{index}": result for index, result in enumerate(results)}

    def create_execution_context(self, config: Config) -> Context:
        assert config.strategy == "USER_MANAGED"
        return ConvertedContext(self)


class ConvertedContext(Context):
    """IExecutionContext of an engine with one profile."""

    engine: ConvertedEngine

    def __init__(self, engine: ConvertedEngine) -> None:
        super().__init__(engine)
        self._seen: list[tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]] = []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, most = self.engine._ranges[name]
        inside = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if inside:
            self._shapes[name] = shape
        return inside

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine._ranges if name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert not self.infer_shapes() and all(self._memory)
        found = self.engine.run({n: self._at(n, like) for n, like in self._inputs.items()})
        for name, value in found.items():
            self._at(name, value).copy_(value)
        return True

    @property
    def _inputs(self) -> dict[str, Tensor]:
        like = self.engine._inputs
        return {name: like[name].new_zeros(self._shapes[name]) for name in like}

    @property
    def _outputs(self) -> dict[str, Tensor]:
        if self._shapes not in (shapes for shapes, _ in self._seen):
            self._seen.append((dict(self._shapes), self.engine.run(self._inputs)))
        return next(outputs for shapes, outputs in self._seen if shapes == self._shapes)


def converted_plan_of(part: str) -> bytes:
    """The 'serialised engine' of a part."""
    return json.dumps({"converted": part}).encode()


def converted_stand_in(programs: Mapping[str, ExportedProgram], config: Pi05Config) -> TensorRT:
    """The package, which loads the plans of `converted_plan_of`."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: memoryview) -> ConvertedEngine | None:
            try:
                part = json.loads(bytes(plan))["converted"]
            except (ValueError, KeyError):
                self._logger.log(Logger.ERROR, "the plan is of another version")
                return None
            return ConvertedEngine(part, programs[part], config)

    api = SimpleNamespace(
        Runtime=Runtime,
        ILogger=Logger,
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        float32=torch.float32,
        bfloat16=torch.bfloat16,
    )
    return TensorRT(api, "tensorrt", VERSION)


def _dtypes(part: str, program: ExportedProgram, config: Pi05Config) -> dict[str, torch.dtype]:
    """Of each input, as the program was traced."""
    traced = {
        node.name: node.meta["val"].dtype
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    }
    return {name: traced[name] for name in GRAPHS[part].inputs(config)}

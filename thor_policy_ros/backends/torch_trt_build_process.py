"""The process that converts one part and builds its engine into the cache.

A request (JSON) on stdin, the report (JSON) on stdout; a failure is what stderr says last, and the
exit status. See `torch_trt_engines` for why this is a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram

from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.torch_trt_engines import (
    GraphRequest,
    request_from_json,
    tuned_shapes,
)
from thor_policy_ros.backends.torch_trt_package import accepted_arguments
from thor_policy_ros.backends.torch_trt_parts import GRAPHS, export_part, operations_of
from thor_policy_ros.backends.trt_builder import EngineBuildError
from thor_policy_ros.backends.trt_parts import PARTS


def main() -> None:
    """Answer one request. Nothing but the report goes to stdout, whatever libraries print."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked = json.load(sys.stdin)
    cache = EngineCache(asked["cache"], asked["cache_bytes"])
    report = build_into(cache, request_from_json(asked))
    with answers:
        json.dump(report, answers)


def build_into(cache: EngineCache, request: GraphRequest) -> dict[str, Any]:
    """Build, unless another process has done so meanwhile; the figures of it."""
    figures: dict[str, Any] = {}

    def build() -> bytes:
        import_module("torch_tensorrt")  # if it cannot be, before anything takes time
        torch.cuda.set_device(torch.device(request.device))
        model = request.weights.load(PARTS[request.part].holds, request.dtype, request.device)
        begun = time.perf_counter()
        program = export_part(request.part, model, request.device)
        exported = time.perf_counter()
        plan = converted(program, request)
        figures.update(
            operations=dict(operations_of(program)),
            export_seconds=round(exported - begun, 2),
            convert_seconds=round(time.perf_counter() - exported, 2),
        )
        return plan

    fetched = cache.fetch(request.key, build)
    return {"replaced": fetched.replaced, "bytes": len(fetched.engine), **figures}


def converted(program: ExportedProgram, request: GraphRequest) -> bytes:
    """The program as one serialised engine. Raises what Torch-TensorRT raises."""
    import torch_tensorrt  # type: ignore[import-not-found,unused-ignore]

    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    accepted = accepted_arguments(convert, request.arguments)
    with TemporaryDirectory() as folder:  # its own default is one file in /tmp for all users
        plan: bytes = convert(
            program,
            arg_inputs=torch_tensorrt_inputs(request),
            device=torch.device(request.device),
            optimization_level=request.level,
            timing_cache_path=os.path.join(folder, "timing_cache.bin"),
            **accepted,
        )
    if not plan:
        raise EngineBuildError("Torch-TensorRT gave an empty engine")
    return plan


def torch_tensorrt_inputs(request: GraphRequest) -> list[Any]:
    """Every input as Torch-TensorRT is told of it: least, tuned and largest shape."""
    from torch_tensorrt import Input  # type: ignore[import-not-found,unused-ignore]

    config = request.weights.config
    specs = GRAPHS[request.part].inputs(config).values()
    shapes = tuned_shapes(request.part, config, request.tuned)
    found = []
    for spec, (least, tuned, largest) in zip(specs, shapes, strict=True):
        dtype = torch.float32 if spec.dtype else request.dtype
        if least == largest:
            found.append(Input(shape=tuned, dtype=dtype))
        else:
            found.append(Input(min_shape=least, opt_shape=tuned, max_shape=largest, dtype=dtype))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

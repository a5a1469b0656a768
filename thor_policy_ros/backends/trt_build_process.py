"""The process that builds one engine: a request (JSON) on stdin, answers as JSON lines on stdout.

Lines are {"progress": text, "done": 0 to 1}, and last {"report": figures} or {"error": text}. The
engine goes into the cache. See `trt_engines` for why this is a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.network_ops import TORCH_DTYPES
from thor_policy_ros.backends.trt_builder import BuiltEngine, EngineBuildError, build_engine
from thor_policy_ros.backends.trt_engines import EngineRequest, Target
from thor_policy_ros.backends.trt_module import TensorRT, import_tensorrt
from thor_policy_ros.backends.trt_ops import TensorRTOps
from thor_policy_ros.backends.trt_parts import PARTS, network_of
from thor_policy_ros.backends.trt_weights import Weights
from thor_policy_ros.model.config import model_config_from_json
from thor_policy_ros.types import BackendUnavailableError

EXPECTED = (EngineBuildError, BackendUnavailableError, ValueError, OSError)


def main() -> int:
    """Answer one request. Nothing but answers goes to stdout, whatever libraries print."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked = json.load(sys.stdin)
    request = request_from_json(asked)
    if asked["device"] is not None:
        torch.cuda.set_device(asked["device"])  # TensorRT builds for the current one
    cache = EngineCache(asked["cache"], asked["cache_bytes"])
    try:
        report = build_into(cache, request, answers)
    except EXPECTED as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        return 1
    answers.write(json.dumps({"report": report}) + "\n")
    return 0


def request_from_json(asked: dict[str, Any]) -> EngineRequest:
    """The request that `trt_engines.request_json` wrote."""
    folder = asked["folder"]
    weights = Weights(
        asked["identity"],
        model_config_from_json(asked["config"]),
        None if folder is None else Path(folder),
    )
    return EngineRequest(
        part=asked["part"],
        weights=weights,
        dtype=TORCH_DTYPES[asked["dtype"]],
        target=Target(**asked["target"]),
        level=asked["level"],
        tensorrt=asked["tensorrt"],
        tensorrt_version=asked["tensorrt_version"],
        mlp_absmax=tuple(asked["mlp_absmax"]),
    )


def build_into(cache: EngineCache, request: EngineRequest, answers: TextIO) -> dict[str, Any]:
    """Build, unless another process has done so meanwhile; the figures of it."""
    tensorrt = import_tensorrt()
    found = (tensorrt.flavour, tensorrt.version)
    if found != (request.tensorrt, request.tensorrt_version):
        raise EngineBuildError(
            f"wanted {request.tensorrt} {request.tensorrt_version} to build, the build process"
            f" imports {' '.join(found)}; one of them is not in sys.path of both"
        )
    built: list[BuiltEngine] = []

    def build() -> memoryview:
        built.append(_build(tensorrt, request, answers))
        return built[0].plan

    fetched = cache.fetch(request.key, build)
    figures = _figures(built[0]) if built else {"waited_for_another_process": True}
    return {
        "replaced": fetched.replaced,
        "bytes": len(fetched.engine),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **figures,
    }


def _build(tensorrt: TensorRT, request: EngineRequest, answers: TextIO) -> BuiltEngine:
    part, config = PARTS[request.part], request.weights.config

    def say(doing: str, done: float) -> None:
        answers.write(json.dumps({"progress": doing, "done": done}) + "\n")

    def define(ops: TensorRTOps) -> None:
        network_of(request.part, request.mlp_absmax)(ops, model)

    say("loading weights", 0.0)
    model = request.weights.load(part.holds, request.dtype)
    say("defining the network", 0.0)
    return build_engine(tensorrt, define, part.buckets(config), request.settings, say)


def _figures(built: BuiltEngine) -> dict[str, Any]:
    return {
        "build_seconds": round(built.seconds, 2),
        "warnings": list(built.warnings),
        **asdict(built.facts),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())

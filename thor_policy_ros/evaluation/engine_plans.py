"""What `thor-policy build` is asked for, by backend: which engines, for which GPU, made by whom."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from thor_policy_ros.backends import torch_trt, torch_trt_engines, trt_engines
from thor_policy_ros.backends.engine_cache import EngineCache, EngineKey
from thor_policy_ros.backends.pytorch import DTYPES
from thor_policy_ros.backends.tensorrt_fp8 import absmax_of, calibration, lacking_fp8
from thor_policy_ros.backends.torch_trt_package import import_flavour, installed, lacking
from thor_policy_ros.backends.torch_trt_settings import TorchTRTSettings, read_settings
from thor_policy_ros.backends.trt_builder import Say
from thor_policy_ros.backends.trt_engines import Obtained, present_capability, target_of
from thor_policy_ros.backends.trt_module import CURRENT, checked_target, import_tensorrt
from thor_policy_ros.backends.trt_weights import Weights, checkpoint_weights, random_weights
from thor_policy_ros.model.named_configs import NAMED, load_policy_config
from thor_policy_ros.types import BackendUnavailableError, EngineOptions


@dataclass(frozen=True)
class Job:
    """One engine. obtain: finds it, or builds it in a process of its own."""

    key: EngineKey
    obtain: Callable[[EngineCache, Say], Obtained]


@dataclass(frozen=True)
class EnginePlan:
    """made_by: names and versions. capability: 'sm_120'. gpu: its name, or 'any'. jobs: by part."""

    made_by: str
    capability: str
    gpu: str
    weights: Weights
    jobs: Mapping[str, Job]


def tensorrt_plan(
    arguments: argparse.Namespace, options: EngineOptions, in_fp8: bool = False
) -> EnginePlan:
    """Engines of backend tensorrt, for a GPU that is present or, with tensorrt_rtx, any it lists.

    Raises BackendUnavailableError naming what is missing, before any weight is read.
    """
    tensorrt = import_tensorrt()
    target = target_of(tensorrt, arguments.target, "tensorrt_fp8" if in_fp8 else "tensorrt")
    if in_fp8:
        refuse_fp8(arguments, target.capability)
    weights, dtype = weights_of(arguments), DTYPES[arguments.precision]
    absmax = absmax_of(calibration(arguments.checkpoint, weights.config)) if in_fp8 else ()
    requests = trt_engines.requests_for(
        tensorrt, weights, dtype, target, options.tensorrt_level, absmax
    )

    def job(request: trt_engines.EngineRequest) -> Job:
        return Job(request.key, partial(trt_engines.obtain, request))

    return EnginePlan(
        made_by=f"{tensorrt.flavour} {tensorrt.version}",
        capability=target.capability,
        gpu=target.gpu,
        weights=weights,
        jobs={name: job(request) for name, request in requests.items()},
    )


def torch_trt_plan(arguments: argparse.Namespace, options: EngineOptions) -> EnginePlan:
    """Engines of backend torch_trt, for the GPU that is present: those parts that torch_trt.json
    beside the weights says are compiled.

    Raises BackendUnavailableError naming what is missing, before any weight is read.
    """
    refuse_torch_trt(arguments.target)
    package = installed()
    assert package is not None
    tensorrt, weights = import_flavour(package.flavour), weights_of(arguments)
    settings = (
        TorchTRTSettings() if arguments.checkpoint is None else read_settings(arguments.checkpoint)
    )
    requests = torch_trt.requests_for(
        weights, DTYPES[arguments.precision], options, settings, package, tensorrt
    )

    def job(request: torch_trt_engines.GraphRequest) -> Job:
        # Torch-TensorRT tells nobody how far it is.
        return Job(request.key, lambda cache, say: torch_trt_engines.obtain(request, cache))

    first = next(iter(requests.values()))
    return EnginePlan(
        made_by=first.versions,
        capability=first.capability,
        gpu=first.gpu,
        weights=weights,
        jobs={name: job(request) for name, request in requests.items()},
    )


PLANS: dict[str, Callable[[argparse.Namespace, EngineOptions], EnginePlan]] = {
    "tensorrt": tensorrt_plan,
    "tensorrt_fp8": partial(tensorrt_plan, in_fp8=True),
    "torch_trt": torch_trt_plan,
}


def refuse_fp8(arguments: argparse.Namespace, capability: str) -> None:
    """ValueError, or BackendUnavailableError for a GPU without FP8."""
    if arguments.random_weights or arguments.precision != "bfloat16":
        raise ValueError(
            "engines of 'tensorrt_fp8' want --checkpoint, whose calibrated scales they hold, and"
            " --precision bfloat16"
        )
    lacks = lacking_fp8(capability)
    if lacks:
        raise BackendUnavailableError(f"engines of 'tensorrt_fp8' want {lacks[0]}")


def refuse_torch_trt(target: str) -> None:
    """BackendUnavailableError where torch_trt's engines cannot be built here for `target`."""
    checked_target(target)
    reasons = list(lacking())
    present = present_capability()
    if target not in (CURRENT, present):
        reasons.append(
            f"a GPU of {target} (here is {present or 'none'}): Torch-TensorRT converts for the GPU"
            " that is present alone, whichever TensorRT is below it; backend tensorrt builds for"
            " others with tensorrt_rtx"
        )
    if reasons:
        raise BackendUnavailableError(f"engines of 'torch_trt' want {'; '.join(reasons)}")


def weights_of(arguments: argparse.Namespace) -> Weights:
    """What --checkpoint or --random-weights name; ValueError for neither, or both."""
    if arguments.random_weights == (arguments.checkpoint is not None):
        raise ValueError("give --checkpoint DIR, or --random-weights with --config NAME")
    if not arguments.random_weights:
        policy = load_policy_config(arguments.checkpoint, arguments.config)
        return checkpoint_weights(arguments.checkpoint, policy.model)
    if arguments.config not in NAMED:
        raise ValueError(
            f"--random-weights wants --config, one of: {', '.join(sorted(NAMED))};"
            f" got {arguments.config!r}"
        )
    return random_weights(NAMED[arguments.config].model)

"""Backend `tensorrt`: pi0.5 as three TensorRT engines, found in the engine cache or built into it.

What runs them is `trt_backend`; how a network is written, built and kept is in the other `trt_`
modules. One code path serves the packages tensorrt (10.13 to 11.x) and tensorrt_rtx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.pytorch import checked_device, checked_dtype
from thor_policy_ros.backends.trt_backend import Engines, TensorRTBackend
from thor_policy_ros.backends.trt_engines import (
    EngineRequest,
    Obtained,
    cache_of,
    obtain,
    present_capability,
    requests_for,
    target_of,
)
from thor_policy_ros.backends.trt_execution import (
    DeviceEngine,
    EngineRefusedError,
    TensorRTEngine,
    WorkingMemory,
)
from thor_policy_ros.backends.trt_module import (
    CURRENT,
    TensorRT,
    import_tensorrt,
    lacking_target,
    lacking_tensorrt,
)
from thor_policy_ros.backends.trt_parts import in_no_engine
from thor_policy_ros.backends.trt_weights import checkpoint_weights
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.types import BackendSpec, BackendUnavailableError, EngineOptions


@dataclass(frozen=True)
class Loaded:
    """An engine on the device, and where it came from."""

    engine: DeviceEngine
    obtained: Obtained


def missing() -> tuple[str, ...]:
    """The package, a GPU, and one that the package knows."""
    package, present = lacking_tensorrt(), present_capability()
    if package:
        return (package,) if present else (package, no_gpu(""))
    tensorrt = import_tensorrt()
    if present is None:
        return (no_gpu(known_gpus(tensorrt)),)
    lacking = lacking_target(tensorrt, CURRENT, present)
    return (lacking,) if lacking else ()


def no_gpu(known: str) -> str:
    """What to say where there is none. known: see `known_gpus`."""
    return f"a CUDA GPU{known} (torch {torch.__version__} sees none)"


def known_gpus(tensorrt: TensorRT) -> str:
    """' of sm_75, sm_120' where the package has such a list, else ''."""
    targets = tensorrt.targets()
    return f" of {', '.join(targets)}, which {tensorrt.flavour} runs on" if targets else ""


def load(
    spec: BackendSpec,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    options: EngineOptions = EngineOptions(),  # noqa: B008 (frozen)
    mlp_absmax: tuple[float | None, ...] = (),
    notes: tuple[str, ...] = (),
) -> TensorRTBackend:
    """See `registry.create_backend`. Engines that the cache lacks are built first, which takes
    minutes: `thor-policy build` does it ahead. mlp_absmax: see `prefix_network`. notes: what
    diagnostics say besides."""
    target_device = checked_device(device)
    if target_device.type != "cuda":
        raise BackendUnavailableError(
            f"backend {spec.name!r} wants a CUDA device (device is {str(target_device)!r})"
        )
    kind = checked_dtype(dtype, target_device)
    tensorrt = import_tensorrt()
    weights = checkpoint_weights(checkpoint, config)
    with torch.cuda.device(target_device):
        target = target_of(tensorrt, CURRENT, spec.name)
        level = options.tensorrt_level
        requests = requests_for(tensorrt, weights, kind, target, level, mlp_absmax)
        cache = cache_of(options)
        loaded = {name: load_engine(tensorrt, r, cache) for name, r in requests.items()}
        on_gpu = {name: part.engine for name, part in loaded.items()}
        engines = on_device(on_gpu, target_device)
        model = weights.load(in_no_engine, kind, target_device)
        return TensorRTBackend(
            spec,
            model,
            engines,
            notes=(*notes_of(tensorrt, options, cache, loaded), *notes),
            bytes_outside_torch=sum(len(part.obtained.engine) for part in loaded.values()),
        )


def on_device(engines: Mapping[str, DeviceEngine], device: torch.device) -> Engines:
    """Vision and prefix run one after the other and share memory; denoising has its own, since a
    pipelined backend runs it beside them."""
    before = WorkingMemory([engines["vision"], engines["prefix"]], device)
    return Engines(
        TensorRTEngine(engines["vision"], before, device),
        TensorRTEngine(engines["prefix"], before, device),
        TensorRTEngine(engines["denoise"], WorkingMemory([engines["denoise"]], device), device),
    )


def load_engine(tensorrt: TensorRT, request: EngineRequest, cache: EngineCache) -> Loaded:
    """Find or build an engine and load it. One that TensorRT refuses, though the file is whole, is
    named, dropped and built again; EngineRefusedError where that one is refused too."""
    obtained = obtain(request, cache)
    try:
        return Loaded(DeviceEngine(tensorrt, obtained.engine, request.part), obtained)
    except EngineRefusedError as error:
        if obtained.built:
            raise
        refused = f"{obtained.path}: {error}"
    cache.discard(request.key)
    again = replace(obtain(request, cache), replaced=refused)
    return Loaded(DeviceEngine(tensorrt, again.engine, request.part), again)


def notes_of(
    tensorrt: TensorRT, options: EngineOptions, cache: EngineCache, loaded: Mapping[str, Loaded]
) -> tuple[str, ...]:
    """What diagnostics should say of the loaded engines."""
    parts = ", ".join(
        f"{name} {'built' if part.obtained.built else 'found'}" for name, part in loaded.items()
    )
    replaced = [part.obtained.replaced for part in loaded.values() if part.obtained.replaced]
    return (
        f"{tensorrt.flavour} {tensorrt.version}, optimization level {options.tensorrt_level}",
        f"engines in {cache.folder}: {parts}",
        *(f"replaced an engine file: {fault}" for fault in replaced),
    )

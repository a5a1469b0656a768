"""pi0.5 through Torch-TensorRT: torch.export, its converter, and TensorRT to run the engines.

Vision tower, prefix and denoise step become one engine each, or are left in PyTorch where
`torch_trt.json` beside the checkpoint says so. The prefix is the whole stack as one graph, from
embeddings to stacked keys and values. Sizes stay open within bounds, so that one copy of the
weights serves every bucket; buffers, buckets, streams and CUDA graphs are those of `trt_backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thor_policy_ros.backends.engine_cache import EngineCache
from thor_policy_ros.backends.pytorch import checked_device, checked_dtype
from thor_policy_ros.backends.torch_trt_engines import (
    GraphRequest,
    obtain,
    tuned_sizes,
)
from thor_policy_ros.backends.torch_trt_package import (
    Installed,
    import_flavour,
    installed,
    lacking,
)
from thor_policy_ros.backends.torch_trt_parts import GRAPHS
from thor_policy_ros.backends.torch_trt_settings import TorchTRTSettings, read_settings
from thor_policy_ros.backends.trt_backend import Engines, TensorRTBackend
from thor_policy_ros.backends.trt_engines import Obtained, cache_of
from thor_policy_ros.backends.trt_execution import (
    DeviceEngine,
    EngineRefusedError,
    RunningEngine,
    TensorRTEngine,
    WorkingMemory,
)
from thor_policy_ros.backends.trt_module import TensorRT
from thor_policy_ros.backends.trt_parts import PARTS, in_no_engine
from thor_policy_ros.backends.trt_weights import Weights, checkpoint_weights
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.types import BackendSpec, BackendUnavailableError, EngineOptions


def missing() -> tuple[str, ...]:
    """A CUDA build of torch and a GPU, Torch-TensorRT of torch's version, and its TensorRT."""
    return lacking()


def load(
    spec: BackendSpec,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    options: EngineOptions = EngineOptions(),  # noqa: B008 (frozen)
) -> TensorRTBackend:
    """See `registry.create_backend`. Engines that the cache lacks are made first, which takes
    minutes. Raises BackendUnavailableError, EngineBuildError, and ValueError for wrong settings."""
    settings = read_settings(checkpoint)
    lacks, package = lacking(), installed()
    if not lacks and checked_device(device).type != "cuda":
        lacks = (f"a CUDA device (device is {str(device)!r})",)
    if lacks or package is None:
        raise BackendUnavailableError(f"backend {spec.name!r} wants {'; '.join(lacks)}")
    target = checked_device(device)
    kind = checked_dtype(dtype, target)
    weights = checkpoint_weights(checkpoint, config)
    with torch.cuda.device(target):
        tensorrt, cache = import_flavour(package.flavour), cache_of(options)
        requests = requests_for(weights, kind, options, settings, package, tensorrt)
        loaded = {name: load_engine(tensorrt, r, cache) for name, r in requests.items()}
        model = weights.load(lambda p: _kept(p, settings.compiled), kind, target)
        engines = engines_of(loaded, model, target)
        notes = notes_of(package, tensorrt, options, settings, cache, loaded)
        held = sum(len(part.obtained.engine) for part in loaded.values())
        return TensorRTBackend(spec, model, engines, notes=notes, bytes_outside_torch=held)


class Loaded(NamedTuple):
    """An engine on the device, and where it came from."""

    engine: DeviceEngine
    obtained: Obtained


class TorchTRTEngine:
    """A graph that Torch-TensorRT converted, run by TensorRT: a `RunningEngine`.

    Its outputs have Torch-TensorRT's names, in the graph's order; one optimisation profile
    serves every bucket.
    """

    def __init__(
        self,
        loaded: DeviceEngine,
        memory: WorkingMemory,
        device: torch.device,
        outputs: tuple[str, ...],
    ) -> None:
        given = [name for name, is_input in loaded.names.items() if not is_input]
        if len(given) != len(outputs):
            raise EngineRefusedError(
                f"engine {loaded.name!r} has outputs {given}; the graph has {list(outputs)}"
            )
        self._engine_names = dict(zip(outputs, given, strict=True))
        self._engine = TensorRTEngine(loaded, memory, device, one_profile=True)

    def launch(self, bucket: int, tensors: Mapping[str, Tensor]) -> None:
        """See RunningEngine."""
        renamed = {self._engine_names.get(name, name): t for name, t in tensors.items()}
        self._engine.launch(bucket, renamed)

    def capturable(self, bucket: int) -> bool:
        """See RunningEngine."""
        return self._engine.capturable(bucket)


class TorchTRTKVCacheEngine(TorchTRTEngine):
    """The whole prefix as one graph, from embeddings to stacked keys and values."""

    def __init__(self, loaded: DeviceEngine, memory: WorkingMemory, device: torch.device) -> None:
        super().__init__(loaded, memory, device, GRAPHS["prefix"].outputs)


class TorchEngine:
    """A part that torch runs, be it a module or an exported graph: a `RunningEngine`."""

    def __init__(
        self, call: Callable[..., Any], inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        self._call = call
        self._inputs = inputs
        self._outputs = outputs

    def launch(self, bucket: int, tensors: Mapping[str, Tensor]) -> None:
        """See RunningEngine."""
        found = self._call(*(tensors[name] for name in self._inputs))
        results = found if isinstance(found, tuple) else (found,)
        for name, result in zip(self._outputs, results, strict=True):
            tensors[name].copy_(result)

    def capturable(self, bucket: int) -> bool:
        """No operation of pi0.5 waits for the device."""
        return True


def torch_engine(part: str, model: Pi05) -> TorchEngine:
    """A part left in PyTorch. model: with the part's weights."""
    graph = GRAPHS[part]
    return TorchEngine(graph.module(model).eval(), tuple(graph.inputs(model.config)), graph.outputs)


def requests_for(
    weights: Weights,
    dtype: torch.dtype,
    options: EngineOptions,
    settings: TorchTRTSettings,
    package: Installed,
    tensorrt: TensorRT,
) -> dict[str, GraphRequest]:
    """One request for each part that is compiled, by its name, for the current CUDA device."""
    return {
        part: GraphRequest(
            part=part,
            weights=weights,
            dtype=dtype,
            device=f"cuda:{torch.cuda.current_device()}",
            gpu=torch.cuda.get_device_name(),
            capability="sm_{}{}".format(*torch.cuda.get_device_capability()),
            level=options.tensorrt_level,
            tuned=tuned_sizes(weights.config, settings),
            versions=(
                f"{package.distribution} {package.version}, {tensorrt.flavour} {tensorrt.version}"
            ),
            arguments=settings.arguments,
        )
        for part in GRAPHS
        if part in settings.compiled
    }


def load_engine(tensorrt: TensorRT, request: GraphRequest, cache: EngineCache) -> Loaded:
    """Find or make an engine and load it. One that TensorRT refuses, though the file is whole, is
    named, dropped and made again; EngineRefusedError where that one is refused too."""
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


def engines_of(loaded: Mapping[str, Loaded], model: Pi05, device: torch.device) -> Engines:
    """Vision and prefix run one after the other and share memory; denoising has its own, since a
    pipelined backend runs it beside them."""
    before = [loaded[name].engine for name in ("vision", "prefix") if name in loaded]
    shared = WorkingMemory(before, device) if before else None

    def engine_of(part: str) -> RunningEngine:
        if part not in loaded:
            return torch_engine(part, model)
        made = loaded[part].engine
        memory = WorkingMemory([made], device) if part == "denoise" else shared
        assert memory is not None
        if part == "prefix":
            return TorchTRTKVCacheEngine(made, memory, device)
        return TorchTRTEngine(made, memory, device, GRAPHS[part].outputs)

    return Engines(engine_of("vision"), engine_of("prefix"), engine_of("denoise"))


def notes_of(
    package: Installed,
    tensorrt: TensorRT,
    options: EngineOptions,
    settings: TorchTRTSettings,
    cache: EngineCache,
    loaded: Mapping[str, Loaded],
) -> tuple[str, ...]:
    """What diagnostics should say of the loaded engines."""
    origins = [f"{n} {'built' if part.obtained.built else 'found'}" for n, part in loaded.items()]
    in_torch = [part for part in GRAPHS if part not in settings.compiled]
    replaced = [part.obtained.replaced for part in loaded.values() if part.obtained.replaced]
    return (
        f"{package.distribution} {package.version} on {tensorrt.flavour} {tensorrt.version},"
        f" optimization level {options.tensorrt_level}",
        f"engines in {cache.folder}: {', '.join(origins)}",
        *(f"left in PyTorch: {part}" for part in in_torch),
        *(f"replaced an engine file: {fault}" for fault in replaced),
    )


def _kept(parameter: str, compiled: tuple[str, ...]) -> bool:
    """Whether torch keeps this parameter: it is in no engine, or in a part left in PyTorch."""
    if in_no_engine(parameter):
        return True
    return any(PARTS[part].holds(parameter) for part in PARTS if part not in compiled)

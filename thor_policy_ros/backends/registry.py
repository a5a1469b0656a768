"""The backends that exist, as one table of data. Importing this imports no engine."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.types import Backend, BackendSpec, BackendUnavailableError, EngineOptions

if TYPE_CHECKING:
    import torch


class Engine(NamedTuple):
    """Where an engine lives, an `EngineModule`, and what it is in one line.

    takes_options: whether its `load` has a last parameter `options: EngineOptions`.
    """

    module: str
    summary: str
    takes_options: bool = False


class EngineModule(Protocol):
    """What an engine's module defines. Importing it imports no optional package."""

    def missing(self) -> tuple[str, ...]:
        """What it lacks here (package and version, GPU capability, file); () when it can run."""
        ...

    def load(
        self,
        spec: BackendSpec,
        checkpoint: Path | str,
        config: Pi05Config,
        device: torch.device | str | None,
        dtype: torch.dtype | str | None,
        **options: EngineOptions,
    ) -> Backend:
        """See `create_backend`. A pipelined spec wants a `pipelined.TwoSlots`. options: one of
        that name, where the row of the engine says that it takes it."""
        ...


ENGINES: dict[str, Engine] = {
    "pytorch": Engine(
        "thor_policy_ros.backends.pytorch", "plain PyTorch, CPU or CUDA, float32 or bfloat16"
    ),
    "fp8_mlp": Engine(
        "thor_policy_ros.backends.fp8_mlp",
        "PyTorch in bfloat16 with gate and up of the prefix's MLPs in FP8",
    ),
    "tensorrt": Engine(
        "thor_policy_ros.backends.tensorrt",
        "three TensorRT engines (vision, prefix, denoise step), built once and kept",
        takes_options=True,
    ),
    "tensorrt_fp8": Engine(
        "thor_policy_ros.backends.tensorrt_fp8",
        "tensorrt with gate and up of the prefix's MLPs in FP8, by quantise and dequantise nodes",
        takes_options=True,
    ),
    "torch_trt": Engine(
        "thor_policy_ros.backends.torch_trt",
        "Torch-TensorRT: vision, prefix and denoise step as one exported graph each",
        takes_options=True,
    ),
    "fused": Engine(
        "thor_policy_ros.backends.fused",
        "Triton kernels and CUDA graphs; on a CPU the same sequence in torch",
    ),
    "fused_fp8": Engine(
        "thor_policy_ros.backends.fused_fp8",
        "fused with vision tower, prefix and the expert's weights in FP8",
    ),
}

# A bare name of an engine with reuse refills the prefix every 2nd tick; `_freq1` never reuses.
BACKENDS: dict[str, BackendSpec] = {
    spec.name: spec
    for spec in (
        BackendSpec("pytorch", "pytorch"),
        BackendSpec("pytorch_pipelined", "pytorch", pipelined=True),
        BackendSpec("tensorrt", "tensorrt"),
        BackendSpec("tensorrt_pipelined", "tensorrt", pipelined=True),
        BackendSpec("tensorrt_fp8", "tensorrt_fp8", "fp8_hybrid", "static"),
        BackendSpec("fp8_mlp", "fp8_mlp", "fp8_hybrid", "static", reuse_every=2),
        BackendSpec("fp8_mlp_freq1", "fp8_mlp", "fp8_hybrid", "static", reuse_every=1),
        BackendSpec("fp8_mlp_freq2", "fp8_mlp", "fp8_hybrid", "static", reuse_every=2),
        BackendSpec("fp8_mlp_freq3", "fp8_mlp", "fp8_hybrid", "static", reuse_every=3),
        BackendSpec("fp8_mlp_dynamic", "fp8_mlp", "fp8_hybrid", "dynamic", reuse_every=2),
        BackendSpec("torch_trt", "torch_trt", reuse_every=2),
        BackendSpec("torch_trt_freq1", "torch_trt", reuse_every=1),
        BackendSpec("torch_trt_freq2", "torch_trt", reuse_every=2),
        BackendSpec("torch_trt_freq3", "torch_trt", reuse_every=3),
        BackendSpec("fused", "fused", reuse_every=2),
        BackendSpec("fused_freq1", "fused", reuse_every=1),
        BackendSpec("fused_freq2", "fused", reuse_every=2),
        BackendSpec("fused_freq3", "fused", reuse_every=3),
        BackendSpec("fused_pipelined", "fused", pipelined=True),
        BackendSpec("fused_fp8", "fused_fp8", "fp8", "static", reuse_every=2),
        BackendSpec("fused_fp8_freq1", "fused_fp8", "fp8", "static", reuse_every=1),
        BackendSpec("fused_fp8_freq2", "fused_fp8", "fp8", "static", reuse_every=2),
        BackendSpec("fused_fp8_freq3", "fused_fp8", "fp8", "static", reuse_every=3),
    )
}


REMOTE = BackendSpec("openpi_remote", "openpi_remote")
"""No engine: whole chunks from a server elsewhere, `serving.remote_policy`. The node has it."""
REMOTE_PACKAGES = ("msgpack", "websockets")


def spec_of(name: str) -> BackendSpec:
    """The row of a backend; ValueError that lists the choices for an unknown name."""
    if name == REMOTE.name:
        return REMOTE
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of: {', '.join(BACKENDS)}")
    return BACKENDS[name]


def availability(name: str) -> tuple[str, ...]:
    """What is missing to run the named backend on this machine; () when it can run."""
    if name == REMOTE.name:
        return tuple(f"package {one}" for one in REMOTE_PACKAGES if find_spec(one) is None)
    return _engine_module(spec_of(name)).missing()


def require_available(name: str) -> None:
    """Raises BackendUnavailableError with what is missing to run the named backend here."""
    missing = availability(name)
    if missing:
        raise BackendUnavailableError(
            f"backend {name!r} cannot run here; missing: {'; '.join(missing)}"
        )


def create_backend(
    name: str,
    checkpoint: Path | str,
    config: Pi05Config,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    options: EngineOptions | None = None,
) -> Backend:
    """Load `checkpoint` into the named backend; it is not warmed up yet.

    device: None takes CUDA where there is one, else the CPU. dtype: None takes bfloat16 on
    CUDA and float32 on the CPU. options: of engines that are built; None for the defaults.
    Raises ValueError for an unknown name, BackendUnavailableError saying what is missing here,
    CheckpointError for weights that do not fit.
    """
    spec = spec_of(name)
    if spec is REMOTE:
        raise ValueError(f"backend {name!r} is no engine: use serving.remote_policy.RemotePolicy")
    require_available(name)
    chosen = {"options": options} if options and ENGINES[spec.engine].takes_options else {}
    engine = _engine_module(spec).load(spec, checkpoint, config, device, dtype, **chosen)
    return _pipelined(engine) if spec.pipelined else engine


def _pipelined(engine: Backend) -> Backend:
    module = import_module("thor_policy_ros.backends.pipelined")  # which imports torch
    return cast(Backend, module.PipelinedBackend(engine))


def _engine_module(spec: BackendSpec) -> EngineModule:
    return cast(EngineModule, import_module(ENGINES[spec.engine].module))

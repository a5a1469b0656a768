"""From a network to a serialised TensorRT engine, and what it was made of.

Known limits on Jetson Thor (sm_110): builder optimisation level 3 and above crashed in Myelin
there, so the default is 2; and only the package `tensorrt` builds for it, on the Thor itself
(tensorrt_rtx 1.7 lists no sm_110).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thor_policy_ros.backends.trt_module import CURRENT, TensorRT
from thor_policy_ros.backends.trt_ops import TensorRTOps
from thor_policy_ros.types import BackendUnavailableError

OPTIMIZATION_LEVELS = range(6)
DEFAULT_LEVEL = 2

Bucket = Mapping[str, tuple[int, ...]]
"""Shapes of the inputs whose size is open, by name: one bucket is one optimisation profile."""

Say = Callable[[str, float], None]
"""(what is being done, how much of the whole is done: 0 to 1)"""


class EngineBuildError(BackendUnavailableError):
    """TensorRT built no engine; the message holds what its logger said."""


@dataclass(frozen=True)
class BuildSettings:
    """target: 'current' or 'sm_120'. optimization_level: 0 (quick) to 5, see the module."""

    target: str = CURRENT
    optimization_level: int = DEFAULT_LEVEL

    def __post_init__(self) -> None:
        if self.optimization_level not in OPTIMIZATION_LEVELS:
            raise ValueError(
                f"optimization level {self.optimization_level} is not in"
                f" {OPTIMIZATION_LEVELS[0]} to {OPTIMIZATION_LEVELS[-1]}"
            )


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; -1 is a size that the bucket chooses."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NetworkFacts:
    """What a network consists of. layer_types: how many layers of each type."""

    layers: int
    layer_types: dict[str, int]
    layer_dtypes: dict[str, tuple[str, ...]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int
    buckets: tuple[dict[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class BuiltEngine:
    """plan: the serialised engine. seconds: how long the builder took."""

    plan: memoryview = field(repr=False)
    facts: NetworkFacts
    seconds: float
    warnings: tuple[str, ...]


def build_engine(
    tensorrt: TensorRT,
    define: Callable[[TensorRTOps], None],
    buckets: Sequence[Bucket],
    settings: BuildSettings,
    say: Say = lambda doing, done: None,
) -> BuiltEngine:
    """Build the network that `define` adds to its argument, for every one of `buckets`.

    say: called by any thread of the builder.
    `trt_module.lacking_target` must have found the target possible. Raises EngineBuildError.
    """
    api = tensorrt.api
    logger = collecting_logger(api)
    builder = api.Builder(logger)
    network = builder.create_network(_creation_flags(api))
    ops = TensorRTOps(api, network)
    try:
        define(ops)
    except (TypeError, ValueError) as error:
        raise EngineBuildError(f"{error}; TensorRT said: {logger.text()}") from error
    config = _builder_config(api, builder, settings)
    monitor = config.progress_monitor = progress_monitor(api, say)
    for bucket in buckets:
        config.add_optimization_profile(_profile(builder, bucket))
    facts = _facts(network, ops.weight_bytes, buckets)
    begun = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - begun
    del monitor  # it has to outlive the build
    if plan is None:
        raise EngineBuildError(f"TensorRT {tensorrt.version} built no engine: {logger.text()}")
    return BuiltEngine(memoryview(plan), facts, seconds, tuple(logger.warnings))


def _creation_flags(api: Any) -> int:
    """Strongly typed, where that is still a choice."""
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _builder_config(api: Any, builder: Any, settings: BuildSettings) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(api.BuilderFlag.TF32)  # what is float32 is so for its precision
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if hasattr(api.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # Without it tensorrt_rtx allocates while it runs, which a CUDA graph cannot hold.
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if settings.target != CURRENT and hasattr(api, "ComputeCapability"):
        config.num_compute_capabilities = 1
        capability = getattr(api.ComputeCapability, settings.target.replace("sm_", "SM"))
        config.set_compute_capability(capability, 0)
    return config


def _profile(builder: Any, bucket: Bucket) -> Any:
    """A profile for one size: as fast as a static network, and the weights are shared."""
    profile = builder.create_optimization_profile()
    for name, shape in bucket.items():
        profile.set_shape(name, shape, shape, shape)
    return profile


def _facts(network: Any, weight_bytes: int, buckets: Sequence[Bucket]) -> NetworkFacts:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    dtypes: dict[str, set[str]] = {}
    for layer in layers:
        dtypes.setdefault(layer.type.name, set()).add(layer.get_output(0).dtype.name)
    return NetworkFacts(
        layers=len(layers),
        layer_types=dict(Counter(layer.type.name for layer in layers)),
        layer_dtypes={name: tuple(sorted(found)) for name, found in dtypes.items()},
        inputs=tuple(_spec(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_spec(network.get_output(i)) for i in range(network.num_outputs)),
        weight_bytes=weight_bytes,
        buckets=tuple(dict(bucket) for bucket in buckets),
    )


def _spec(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype.name, tuple(tensor.shape))


def progress_monitor(api: Any, say: Say) -> Any:
    """An IProgressMonitor that tells of each phase directly below the outermost one."""

    class Progress(api.IProgressMonitor):
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.outermost, self.steps, self.done = "", 1, 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.outermost, self.steps, self.done = phase_name, max(num_steps, 1), 0.0
            elif parent_phase == self.outermost:
                say(phase_name, self.done)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.outermost:
                self.done = min((step + 1) / self.steps, 1.0)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self.outermost:
                say(phase_name, 1.0)

    return Progress()


def collecting_logger(api: Any) -> Any:
    """A logger that keeps errors and warnings for the one who asked for the engine."""

    class CollectingLogger(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR):
                self.errors.append(message)
            elif severity == api.ILogger.WARNING:
                self.warnings.append(message)

        def text(self) -> str:
            return "; ".join(self.errors) or "nothing"

    return CollectingLogger()

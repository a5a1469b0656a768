"""Engines found in the cache, or built into it by a process of its own.

What an engine depends on is in its key, the sources of the networks included: nothing found was
made for something else. TensorRT's builder runs in a child process, because it can crash (it has,
on Jetson Thor), takes gigabytes, and would stop the threads of a node for as long as it works.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from thor_policy_ros.backends.engine_cache import EngineCache, EngineFileError, EngineKey
from thor_policy_ros.backends.network_ops import dtype_name
from thor_policy_ros.backends.trt_builder import BuildSettings, EngineBuildError, Say
from thor_policy_ros.backends.trt_module import CURRENT, TensorRT, lacking_target
from thor_policy_ros.backends.trt_parts import PARTS, sources_digest
from thor_policy_ros.backends.trt_weights import Weights
from thor_policy_ros.model.config import to_json
from thor_policy_ros.types import BackendUnavailableError, EngineOptions

BUILD_PROCESS = "thor_policy_ros.backends.trt_build_process"
GIB = 1 << 30


def _silent(doing: str, done: float) -> None:
    """For a caller who wants no progress."""


@dataclass(frozen=True)
class Target:
    """What engines are built for.

    capability: 'sm_120'. gpu: its name where engines are for that GPU alone (package tensorrt),
    else 'any'. builds_as: what the builder is told, 'current' or the capability.
    """

    capability: str
    gpu: str
    builds_as: str


@dataclass(frozen=True)
class EngineRequest:
    """One engine: everything that decides what is in it. mlp_absmax: see `prefix_network`."""

    part: str
    weights: Weights
    dtype: torch.dtype
    target: Target
    level: int
    tensorrt: str
    tensorrt_version: str
    mlp_absmax: tuple[float | None, ...] = ()

    @property
    def key(self) -> EngineKey:
        config = self.weights.config
        shapes = {"sizes": to_json(config), "buckets": PARTS[self.part].buckets(config)}
        return EngineKey(
            checkpoint=self.weights.identity,
            engine=self.tensorrt,
            engine_version=self.tensorrt_version,
            gpu=self.target.gpu,
            capability=self.target.capability,
            precision=dtype_name(self.dtype),
            part=self.part,
            shapes=json.dumps(shapes, sort_keys=True),
            settings=f"optimization level {self.level}{self._in_fp8}",
            sources=sources_digest(),
        )

    @property
    def _in_fp8(self) -> str:
        return f", MLPs in FP8 {json.dumps(self.mlp_absmax)}" if self.mlp_absmax else ""

    @property
    def settings(self) -> BuildSettings:
        return BuildSettings(self.target.builds_as, self.level)


@dataclass(frozen=True)
class Obtained:
    """engine: read-only bytes. replaced: what was wrong with the file found before, or ''.
    report: what the build process measured (see `trt_build_process`); {} where it was found."""

    engine: memoryview
    path: Path
    replaced: str
    report: dict[str, Any]

    @property
    def built(self) -> bool:
        return bool(self.report)


def target_of(tensorrt: TensorRT, name: str, backend: str = "tensorrt") -> Target:
    """The target that `thor-policy build` or a backend names: 'current' or 'sm_120'.

    Raises BackendUnavailableError saying what `backend` lacks to be built for it here.
    """
    present = present_capability()
    lacking = lacking_target(tensorrt, name, present)
    if lacking:
        raise BackendUnavailableError(f"backend {backend!r}: {lacking}")
    capability = present if name == CURRENT else name
    assert capability is not None
    if tensorrt.builds_for_others:
        return Target(capability, "any", capability)
    return Target(capability, torch.cuda.get_device_name(), CURRENT)


def present_capability(device: torch.device | None = None) -> str | None:
    """'sm_110' of this machine's GPU, None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def cache_of(options: EngineOptions) -> EngineCache:
    """The folder of engines that the options name, or the user's own."""
    folder = Path(options.cache_dir) if options.cache_dir else default_cache_folder()
    return EngineCache(folder.expanduser(), int(options.cache_limit_gib * GIB))


def default_cache_folder() -> Path:
    """$XDG_CACHE_HOME/thor_policy_ros/engines, below ~/.cache where it is not set."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "thor_policy_ros" / "engines"


def obtain(request: EngineRequest, cache: EngineCache, say: Say = _silent) -> Obtained:
    """The engine, from the cache or built into it. A bad file is named and replaced.

    say: told what the builder does. Raises EngineBuildError, CheckpointError, OSError.
    """
    key, fault = request.key, ""
    try:
        found = cache.find(key)
    except EngineFileError as error:
        found, fault = None, str(error)
    if found is not None:
        cache.touch(key)
        return Obtained(found, cache.path(key), "", {})
    cache.require_writable()
    report = run_build_process(request, cache, say)
    replaced = fault or report.pop("replaced", "")
    engine = cache.find(key)
    if engine is None:
        raise EngineBuildError(
            f"{cache.path(key)} is gone right after it was built: the engine cache is full or"
            " somebody empties it; give it more room"
        )
    return Obtained(engine, cache.path(key), replaced, report)


def run_build_process(request: EngineRequest, cache: EngineCache, say: Say) -> dict[str, Any]:
    """Build in a child process, into the cache; returns its report."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-m", BUILD_PROCESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    with process:
        try:
            return _conversation(process, request, cache, say)
        finally:
            process.kill()


def _conversation(
    process: subprocess.Popen[str], request: EngineRequest, cache: EngineCache, say: Say
) -> dict[str, Any]:
    """Hand the request over; read progress until the report comes, or the end."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request_json(request, cache)))
    process.stdin.close()
    for line in process.stdout:
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise EngineBuildError(message["error"])
        if "report" in message:
            report: dict[str, Any] = message["report"]
            return report
        say(message["progress"], message["done"])
    raise EngineBuildError(_death(process.wait(), request))


def _death(status: int, request: EngineRequest) -> str:
    how = f"of {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return (
        f"{request.tensorrt} {request.tensorrt_version} took the build process with it, {how},"
        f" while it built {request.part} at optimization level {request.level}; try a lower one"
        " (on Jetson Thor, 2 at the most), and see that memory suffices"
    )


def request_json(request: EngineRequest, cache: EngineCache) -> dict[str, Any]:
    """What the build process reads."""
    folder = request.weights.folder
    return {
        "part": request.part,
        "identity": request.weights.identity,
        "config": to_json(request.weights.config),
        "folder": None if folder is None else str(folder),
        "dtype": dtype_name(request.dtype),
        "target": asdict(request.target),
        "level": request.level,
        "mlp_absmax": request.mlp_absmax,
        "tensorrt": request.tensorrt,
        "tensorrt_version": request.tensorrt_version,
        "device": torch.cuda.current_device() if request.target.builds_as == CURRENT else None,
        "cache": str(cache.folder),
        "cache_bytes": cache.max_bytes,
    }


def requests_for(
    tensorrt: TensorRT,
    weights: Weights,
    dtype: torch.dtype,
    target: Target,
    level: int,
    mlp_absmax: tuple[float | None, ...] = (),
) -> dict[str, EngineRequest]:
    """One request for each part, by its name; mlp_absmax is for the prefix alone."""
    first = EngineRequest(
        "vision", weights, dtype, target, level, tensorrt.flavour, tensorrt.version
    )
    return {
        name: replace(first, part=name, mlp_absmax=mlp_absmax if name == "prefix" else ())
        for name in PARTS
    }

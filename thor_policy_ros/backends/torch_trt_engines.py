"""Engines that Torch-TensorRT converts: found in the cache, or made by a process of its own.

What an engine depends on is in its key, the sources of the graphs included. The file holds
TensorRT's own serialised engine and nothing of Torch-TensorRT's, whose saved modules hold pickle;
so a process that runs it needs TensorRT alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from thor_policy_ros.backends.engine_cache import EngineCache, EngineFileError, EngineKey
from thor_policy_ros.backends.network_ops import TORCH_DTYPES, dtype_name
from thor_policy_ros.backends.torch_trt_parts import GRAPHS
from thor_policy_ros.backends.torch_trt_settings import TorchTRTSettings
from thor_policy_ros.backends.trt_builder import EngineBuildError
from thor_policy_ros.backends.trt_engines import Obtained
from thor_policy_ros.backends.trt_parts import prefix_lengths
from thor_policy_ros.backends.trt_weights import Weights
from thor_policy_ros.model.config import Pi05Config, model_config_from_json, to_json

BUILD_PROCESS = "thor_policy_ros.backends.torch_trt_build_process"
SAID_LAST = 12
"""Lines of what a failed build process wrote that go into the error."""

ENGINES_FOLLOW = (
    "backends/torch_trt_build_process.py",
    "backends/torch_trt_package.py",
    "backends/torch_trt_parts.py",
    "backends/trt_parts.py",
    "model/checkpoint.py",
    "model/gemma.py",
    "model/key_layout.py",
    "model/pi05.py",
    "model/siglip.py",
)
"""Files that decide what is in an engine: a change in one makes every engine another."""


@dataclass(frozen=True)
class Tuned:
    """The sizes that kernels are chosen for: cameras, and tokens of the prefix."""

    cameras: int
    tokens: int


@dataclass(frozen=True)
class GraphRequest:
    """One engine: everything that decides what is in it.

    device: the GPU that it is made on and for. gpu, capability: its name and 'sm_110'.
    versions: of torch_tensorrt and the TensorRT below it.
    """

    part: str
    weights: Weights
    dtype: torch.dtype
    device: str
    gpu: str
    capability: str
    level: int
    tuned: Tuned
    versions: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> EngineKey:
        config = self.weights.config
        lengths = prefix_lengths(config)
        return EngineKey(
            checkpoint=self.weights.identity,
            engine="torch_tensorrt",
            engine_version=f"{self.versions}, torch {torch.__version__}",
            gpu=self.gpu,
            capability=self.capability,
            precision=dtype_name(self.dtype),
            part=f"torch_trt_{self.part}",
            shapes=json.dumps(
                {
                    "sizes": to_json(config),
                    "tokens": [lengths[0], self.tuned.tokens, lengths[-1]],
                    "cameras": [1, self.tuned.cameras, config.num_cameras],
                },
                sort_keys=True,
            ),
            settings=json.dumps(
                {"optimization_level": self.level, **self.arguments}, sort_keys=True
            ),
            sources=sources_digest(),
        )

    def json(self) -> dict[str, Any]:
        """What the build process reads; `request_from_json` is the way back."""
        folder = self.weights.folder
        return {
            "part": self.part,
            "identity": self.weights.identity,
            "config": to_json(self.weights.config),
            "folder": None if folder is None else str(folder),
            "dtype": dtype_name(self.dtype),
            "device": self.device,
            "gpu": self.gpu,
            "capability": self.capability,
            "level": self.level,
            "tuned": [self.tuned.cameras, self.tuned.tokens],
            "versions": self.versions,
            "arguments": dict(self.arguments),
        }


def request_from_json(data: Mapping[str, Any]) -> GraphRequest:
    """The request that `GraphRequest.json` gave."""
    folder = data["folder"]
    config = model_config_from_json(data["config"])
    weights = Weights(data["identity"], config, None if folder is None else Path(folder))
    same = {k: data[k] for k in ("part", "device", "gpu", "capability", "level", "versions")}
    return GraphRequest(
        weights=weights,
        dtype=TORCH_DTYPES[data["dtype"]],
        tuned=Tuned(*data["tuned"]),
        arguments=data["arguments"],
        **same,
    )


def tuned_sizes(config: Pi05Config, settings: TorchTRTSettings) -> Tuned:
    """The settings' sizes, the largest where they say nothing. ValueError for one too large."""
    cameras = settings.tuned_cameras or config.num_cameras
    words = settings.tuned_prompt_tokens or config.max_token_len
    if cameras > config.num_cameras or words > config.max_token_len:
        raise ValueError(
            f"tuned_cameras {cameras} and tuned_prompt_tokens {words} do not fit a model of"
            f" {config.num_cameras} cameras and {config.max_token_len} prompt tokens"
        )
    tokens = cameras * config.vision.num_tokens + words
    return Tuned(cameras, max(tokens, prefix_lengths(config)[0]))


def tuned_shapes(part: str, config: Pi05Config, tuned: Tuned) -> list[tuple[tuple[int, ...], ...]]:
    """Least, tuned and largest shape of every input, in order; three times the same if fixed."""
    chosen = {"cameras": tuned.cameras, "tokens": tuned.tokens}
    return [
        (
            given.at(lambda size: size.least),
            given.at(lambda size: chosen[size.name]),
            given.at(lambda size: size.most),
        )
        for given in GRAPHS[part].inputs(config).values()
    ]


def sources_digest() -> str:
    """SHA-256 of the files in ENGINES_FOLLOW, 16 hex digits."""
    digest = hashlib.sha256()
    for name in ENGINES_FOLLOW:
        digest.update(name.encode() + b"\0")
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()[:16]


def obtain(request: GraphRequest, cache: EngineCache) -> Obtained:
    """The engine, from the cache or made into it. A bad file is named and replaced.

    Raises EngineBuildError with what the build process said last.
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
    report = run_build_process(request, cache)
    engine = cache.find(key)
    if engine is None:
        raise EngineBuildError(
            f"{cache.path(key)} is gone right after it was built: the engine cache is full or"
            " somebody empties it; give it more room"
        )
    return Obtained(engine, cache.path(key), fault or report.pop("replaced", ""), report)


def run_build_process(request: GraphRequest, cache: EngineCache) -> dict[str, Any]:
    """Convert and build in a child process, into the cache; returns its report.

    A process of its own, because torch_tensorrt is Python for minutes and would stop the threads
    of a node for as long, takes gigabytes, and its builder can crash.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    asked = {**request.json(), "cache": str(cache.folder), "cache_bytes": cache.max_bytes}
    done = subprocess.run(
        [sys.executable, "-m", BUILD_PROCESS],
        input=json.dumps(asked),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-SAID_LAST:])
        raise EngineBuildError(
            f"Torch-TensorRT ({request.versions}) built no engine for {request.part}, at"
            f" optimization level {request.level}: exit status {done.returncode}; it said: {said}"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    return report

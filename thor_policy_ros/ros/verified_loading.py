"""Loading a policy: nothing is handed out that was not compared with the float32 reference.

What is verified against what: every backend against `pytorch` in float32 on the same device, at
every load. The reference is loaded, run and freed before the backend is loaded, once for each
configure; its frames stay on the host for later switches. Where the backend is itself `pytorch`
in float32, it is its own reference: then the check is that its values are finite and that it
repeats them. A policy on a server is checked by `remote_loading`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thor_policy_ros.backends.registry import REMOTE, require_available
from thor_policy_ros.ros.parameters import NodeParameters
from thor_policy_ros.ros.remote_parameters import RemoteServer
from thor_policy_ros.ros.writable_places import name_torch_cache, place_kernel_cache
from thor_policy_ros.types import (
    EngineOptions,
    Observation,
    Verification,
    VerificationFailedError,
)

if TYPE_CHECKING:
    from thor_policy_ros.model.config import PolicyConfig
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
    from thor_policy_ros.runtime.verification import ReferenceFrame

Say = Callable[[str], None]
DEFAULT_ENGINES = EngineOptions()
DEFAULT_SERVER = RemoteServer()


@dataclass(frozen=True)
class LoadRequest:
    """The parameters that decide what is loaded, and on how many observations it is verified.

    report_dir: folder of the JSON report; '' for none.
    """

    backend: str
    checkpoint: str
    policy_config: str
    tokenizer: str
    device: str
    dtype: str
    cpu_threads: int
    num_steps: int
    observations: int = 3
    report_dir: str = ""
    engine_options: EngineOptions = DEFAULT_ENGINES
    remote: RemoteServer = DEFAULT_SERVER
    require_checksums: bool = False

    @staticmethod
    def of(parameters: NodeParameters) -> LoadRequest:
        return LoadRequest(
            backend=parameters["backend"],
            checkpoint=parameters["checkpoint"],
            policy_config=parameters["policy_config"],
            tokenizer=parameters["tokenizer"],
            device=parameters["device"],
            dtype=parameters["dtype"],
            cpu_threads=parameters["cpu_threads"],
            num_steps=parameters["num_denoise_steps"],
            observations=parameters["verification_observations"],
            report_dir=parameters["verification_report_dir"],
            engine_options=EngineOptions(
                tensorrt_level=parameters["tensorrt_optimization_level"],
                cache_dir=parameters["engine_cache_dir"],
                cache_limit_gib=parameters["engine_cache_limit"],
            ),
            remote=RemoteServer.of(parameters),
            require_checksums=parameters["require_checksums"],
        )


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that passed its verification."""

    policy: UnifiedPolicy
    verification: Verification


class References:
    """The float32 reference's frames of one configured checkpoint, made at the first load."""

    def __init__(self) -> None:
        self._frames: tuple[ReferenceFrame, ...] = ()

    def make(self, request: LoadRequest, say: Say) -> None:
        """Load, run and free the reference, unless its frames are there."""
        from thor_policy_ros.runtime.verification import REFERENCE_BACKEND, REFERENCE_DTYPE

        if self._frames or _asks_for_reference(request):
            return
        say("running the float32 reference")
        reference = open_policy(request, REFERENCE_BACKEND, REFERENCE_DTYPE)
        try:
            self.made_by(reference, request)
        finally:
            reference.close()

    def made_by(self, reference: UnifiedPolicy, request: LoadRequest) -> None:
        """Keep the frames of `reference`, which stays open."""
        from thor_policy_ros.runtime.verification import reference_frames
        from thor_policy_ros.runtime.verification_inputs import (
            engine_inputs,
            synthetic_observations,
        )

        seen = synthetic_observations(reference.config, request.observations)
        inputs = engine_inputs(reference.preprocess, reference.config, seen)
        self._frames = reference_frames(reference, inputs)

    def verify(self, policy: UnifiedPolicy, request: LoadRequest) -> Verification:
        """Compare with the reference's frames; the reference itself makes them first."""
        from thor_policy_ros.runtime.verification import is_reference, verify_frames, with_seconds

        begun_s = time.perf_counter()
        if not self._frames:
            assert is_reference(policy)
            self.made_by(policy, request)
        result = verify_frames(policy, self._frames)
        return with_seconds(result, time.perf_counter() - begun_s)


def load_policy(request: LoadRequest, references: References, say: Say) -> LoadedPolicy:
    """Loads, warms up, verifies and infers once; a policy that fails is closed.

    say: told what begins and how long it took. Raises what the policy raises, ValueError for
    a checkpoint that was not named, VerificationFailedError for an engine that is not the policy.
    """
    if request.backend == REMOTE.name:
        from thor_policy_ros.ros.remote_loading import load_remote

        return load_remote(request, say)
    if not request.checkpoint:
        raise ValueError("parameter checkpoint is empty; name the folder with model.safetensors")
    begun_s = time.perf_counter()
    for told in (place_kernel_cache(os.environ), name_torch_cache(os.environ)):
        if told:
            say(told)
    say(f"importing the engine of backend {request.backend!r}")
    import torch

    if request.cpu_threads:
        torch.set_num_threads(request.cpu_threads)
    require_available(request.backend)  # before the reference, which takes minutes on a CPU
    _check_files(request, say)
    references.make(request, say)
    say(f"loading {Path(request.checkpoint).name} ({_weights_mb(request.checkpoint):.1f} MB)")
    policy = open_policy(request, request.backend, request.dtype)
    try:
        verification = _tried(policy, request, references, say)
    except BaseException:
        policy.close()
        raise
    say(f"ready after {time.perf_counter() - begun_s:.1f} s")
    return LoadedPolicy(policy, verification)


def _check_files(request: LoadRequest, say: Say) -> None:
    """Before anything of the checkpoint is read. Raises ChecksumError."""
    from thor_policy_ros.model.checksums import verify_checksums

    begun_s = time.perf_counter()
    checked = verify_checksums(request.checkpoint, request.require_checksums)
    if checked:
        seconds = time.perf_counter() - begun_s
        say(f"{len(checked)} files agree with checksums.json ({seconds:.1f} s)")


def _tried(
    policy: UnifiedPolicy, request: LoadRequest, references: References, say: Say
) -> Verification:
    """The verification of a policy that may be used; else ValueError or its like."""
    from thor_policy_ros.runtime.unified_policy import InferenceRefusedError

    say("warming up")
    policy.warmup()
    say("verifying against the float32 reference")
    verification = references.verify(policy, request)
    if request.report_dir:
        try:
            write_report(Path(request.report_dir), request, verification)
        except OSError as error:
            say(f"the verification report is not written: {error}")
    if not verification.ok:
        raise VerificationFailedError(
            f"backend {request.backend!r} failed its verification: {verification.reason}"
        )
    try:
        policy.infer(blank_observation(policy.config), num_steps=request.num_steps)
    except InferenceRefusedError as error:
        raise ValueError(f"the checkpoint failed its trial: {error}") from error
    return verification


def write_report(folder: Path, request: LoadRequest, verification: Verification) -> Path:
    """`verification_BACKEND.json` of the newest load, replaced in one step; returns its path."""
    from thor_policy_ros.runtime.verification import verification_json

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"verification_{verification.backend}.json"
    facts = {"checkpoint": request.checkpoint, "written_at_s": time.time()}
    text = json.dumps({**facts, **verification_json(verification)}, indent=1, allow_nan=False)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
    return path


def blank_observation(config: PolicyConfig) -> Observation:
    """Black images and a zero state, to try a policy with."""
    size = config.model.vision.image_size
    images = {slot: np.zeros((size, size, 3), np.uint8) for slot in config.camera_slots}
    return Observation(images, np.zeros(config.state_dim, np.float32), "", 0.0)


def _asks_for_reference(request: LoadRequest) -> bool:
    """Whether the request's backend will be the float32 reference itself."""
    from thor_policy_ros.backends.pytorch import checked_device, checked_dtype
    from thor_policy_ros.runtime.verification import REFERENCE_BACKEND, REFERENCE_DTYPE

    dtype = checked_dtype(request.dtype or None, checked_device(request.device or None))
    return request.backend == REFERENCE_BACKEND and str(dtype) == f"torch.{REFERENCE_DTYPE}"


def open_policy(request: LoadRequest, backend: str, dtype: str) -> UnifiedPolicy:
    """Loaded, and compared with nothing yet."""
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

    return UnifiedPolicy(
        request.checkpoint,
        backend,
        config=request.policy_config or None,
        tokenizer=request.tokenizer or None,
        device=request.device or None,
        dtype=dtype or None,
        engine_options=request.engine_options,
    )


def _weights_mb(checkpoint: str) -> float:
    return sum(file.stat().st_size for file in Path(checkpoint).glob("*.safetensors")) / 1e6

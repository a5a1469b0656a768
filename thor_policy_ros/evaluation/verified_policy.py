"""A policy that was compared with the float32 reference before it is handed out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from thor_policy_ros.backends.pytorch import checked_device, checked_dtype
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification import (
    REFERENCE_BACKEND,
    REFERENCE_DTYPE,
    ReferenceFrame,
    reference_frames,
    verify_frames,
)
from thor_policy_ros.runtime.verification_inputs import engine_inputs, synthetic_observations
from thor_policy_ros.types import Verification, VerificationFailedError

OBSERVATIONS = 3  # synthetic ones, as the policy node takes


@dataclass(frozen=True)
class PolicyChoice:
    """What is loaded, as `UnifiedPolicy` takes it."""

    checkpoint: Path
    backend: str
    config: str | None = None
    tokenizer: Path | None = None
    device: str | None = None
    dtype: str | None = None


def open_policy(choice: PolicyChoice) -> UnifiedPolicy:
    """Loaded and warmed up, compared with nothing."""
    policy = _load(choice, choice.backend, choice.dtype)
    try:
        policy.warmup()
    except BaseException:
        policy.close()
        raise
    return policy


def open_verified(choice: PolicyChoice) -> tuple[UnifiedPolicy, Verification]:
    """Loaded, warmed up, and the policy: VerificationFailedError says what it failed.

    The reference is loaded, run and freed before the backend is loaded. Where the backend is the
    reference, the check is that its values are finite and that it repeats them.
    """
    frames: tuple[ReferenceFrame, ...] = ()
    if not _asks_for_reference(choice):
        with _load(choice, REFERENCE_BACKEND, REFERENCE_DTYPE) as reference:
            frames = _frames(reference)
    policy = open_policy(choice)
    try:
        result = verify_frames(policy, frames or _frames(policy))
        if not result.ok:
            raise VerificationFailedError(f"backend {choice.backend!r}: {result.reason}")
    except BaseException:
        policy.close()
        raise
    return policy, result


def _asks_for_reference(choice: PolicyChoice) -> bool:
    dtype = checked_dtype(choice.dtype, checked_device(choice.device))
    return choice.backend == REFERENCE_BACKEND and str(dtype) == f"torch.{REFERENCE_DTYPE}"


def _frames(reference: UnifiedPolicy) -> tuple[ReferenceFrame, ...]:
    seen = synthetic_observations(reference.config, OBSERVATIONS)
    return reference_frames(reference, engine_inputs(reference.preprocess, reference.config, seen))


def _load(choice: PolicyChoice, backend: str, dtype: str | None) -> UnifiedPolicy:
    return UnifiedPolicy(
        choice.checkpoint,
        backend,
        config=choice.config,
        tokenizer=choice.tokenizer,
        device=choice.device,
        dtype=dtype,
    )

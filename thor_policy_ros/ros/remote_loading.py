"""A policy on a server, checked before it may be used, as far as a server lets itself be checked.

Where the checkpoint is here too and the server takes noise of ours (`thor-policy serve` does), its
actions are compared with the float32 reference. Any other server draws its own noise, so that no
answer can be predicted: then shape and finite values are checked, and diagnostics say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from thor_policy_ros.model.named_configs import chosen_config, load_policy_config
from thor_policy_ros.ros.verified_loading import (
    LoadedPolicy,
    LoadRequest,
    open_policy,
    write_report,
)
from thor_policy_ros.runtime.engine_difference import THRESHOLDS, Difference, Frame, difference
from thor_policy_ros.runtime.safety import check_chunk
from thor_policy_ros.runtime.verification import (
    REFERENCE_BACKEND,
    REFERENCE_DTYPE,
    ReferenceFrame,
    reference_frames,
    with_seconds,
)
from thor_policy_ros.runtime.verification_inputs import engine_inputs, synthetic_observations
from thor_policy_ros.serving.openpi_connection import RemoteError
from thor_policy_ros.serving.remote_policy import RemotePolicy
from thor_policy_ros.types import (
    F32,
    BackendUnavailableError,
    Observation,
    Verification,
    VerificationFailedError,
)

if TYPE_CHECKING:
    from thor_policy_ros.model.config import PolicyConfig
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

NOT_COMPARED = "not compared"
UNKNOWN_PRECISION = "bfloat16"
"""Whose bounds a server is held to that does not say its precision: openpi's own runs in it."""


def load_remote(request: LoadRequest, say: Callable[[str], None]) -> LoadedPolicy:
    """Connect, check and hand out; a policy that fails is closed.

    Raises ValueError where the config is not known or is not the server's,
    BackendUnavailableError where the server cannot be reached or fails, and
    VerificationFailedError where its answers are not the policy's.
    """
    begun_s = time.perf_counter()
    server = request.remote
    policy = RemotePolicy(
        _config(request),
        server.host,
        server.port,
        server.timeout_s,
        token=server.token(),
        keys=server.keys,
    )
    try:
        say(f"connecting to {policy.name}")
        policy.warmup()
        verification = _verified(policy, request, say)
        if request.report_dir:
            write_report(Path(request.report_dir), request, verification)
        if not verification.ok:
            raise VerificationFailedError(
                f"{policy.name} failed its verification: {verification.reason}"
            )
    except RemoteError as error:
        policy.close()
        raise BackendUnavailableError(f"backend {request.backend!r}: {error}") from error
    except BaseException:
        policy.close()
        raise
    say(f"ready after {time.perf_counter() - begun_s:.1f} s")
    return LoadedPolicy(cast("UnifiedPolicy", policy), verification)


def _config(request: LoadRequest) -> PolicyConfig:
    if request.checkpoint:
        return load_policy_config(request.checkpoint, request.policy_config or None)
    if not request.policy_config:
        raise ValueError(
            "backend 'openpi_remote' wants parameter policy_config: the named policy that the"
            " server has, or a JSON file of PolicyConfig fields (or checkpoint, where it is here)"
        )
    return chosen_config(request.policy_config)


def _verified(
    policy: RemotePolicy, request: LoadRequest, say: Callable[[str], None]
) -> Verification:
    begun_s = time.perf_counter()
    seen = _observations(policy, request.observations)
    if request.checkpoint and policy.takes_noise:
        result = _compared(policy, request, seen, say)
    else:
        say("checking the form of the server's answers")
        result = _form_alone(policy, request, seen)
        why = "it takes no noise of ours" if not policy.takes_noise else "no checkpoint is here"
        policy.backend.warnings = (
            f"{policy.name} is {NOT_COMPARED} with float32 ({why}): its answers are checked for"
            " shape, finite values and limits alone",
        )
    return with_seconds(result, time.perf_counter() - begun_s)


def _observations(policy: RemotePolicy, count: int) -> list[Observation]:
    """Synthetic, with every camera that the server has a name for and no other."""
    slots = set(policy.keys.images.values())
    found = []
    for index in range(count):
        # Every second one of a policy's lacks a camera, which not every server allows.
        (one,) = synthetic_observations(policy.config, 1, seed=index)
        images = {slot: image for slot, image in one.images.items() if slot in slots}
        found.append(replace(one, images=images))
    return found


def _form_alone(
    policy: RemotePolicy, request: LoadRequest, seen: Sequence[Observation]
) -> Verification:
    """observations: 0, since nothing is compared; a wrong form raises or is the reason."""
    for observation in seen:
        actions = policy.actions(observation, request.num_steps)
        reason = check_chunk(actions, policy.config.action_dt_s, None)
        if reason:
            return _verification(False, [], [], NOT_COMPARED, reason)
    return _verification(True, [], [], NOT_COMPARED, "")


def _compared(
    policy: RemotePolicy,
    request: LoadRequest,
    seen: Sequence[Observation],
    say: Callable[[str], None],
) -> Verification:
    say("running the float32 reference")
    reference = open_policy(request, REFERENCE_BACKEND, REFERENCE_DTYPE)
    try:
        inputs = engine_inputs(reference.preprocess, reference.config, seen)
        frames = reference_frames(reference, inputs)
    finally:
        reference.close()
    say("verifying the server against the float32 reference")
    precision = str(policy.metadata.get("precision", UNKNOWN_PRECISION))
    bounds = THRESHOLDS.get(precision, THRESHOLDS[UNKNOWN_PRECISION])
    found = []
    for observation, made in zip(seen, frames, strict=True):
        commands = policy.actions(observation, made.given.num_steps, made.given.noise)
        ranges = _ranges(reference, made)
        theirs = _frame(reference, made, made.frame.commands)
        found.append(difference(_frame(reference, made, commands), theirs, ranges, bounds))
    failed = [one.failures[0] for one in found if one.failures]
    labels = [made.given.label for made in frames]
    reason = f"{failed[0]}, for {bounds.precision}" if failed else ""
    return _verification(not failed, found, labels, bounds.precision, reason)


def _frame(reference: UnifiedPolicy, made: ReferenceFrame, commands: F32) -> Frame:
    """A server shows its commands alone: the actions are those, normalised; no keys, no values."""
    actions = reference.normalise(commands, made.given.state)
    dims = reference.config.action_dim
    flow = actions[:, :dims] - made.given.noise[:, :dims]
    none = np.zeros((0, 1, 0, 1), np.float32)
    return Frame(none, none, actions, flow, commands)


def _ranges(reference: UnifiedPolicy, made: ReferenceFrame) -> F32:
    ones = np.ones_like(made.given.noise)
    high, low = (reference.postprocess(sign * ones, made.given.state) for sign in (1, -1))
    return cast(F32, np.abs(high - low) / 2)


def _verification(
    ok: bool, found: list[Difference], labels: list[str], precision: str, reason: str
) -> Verification:
    cosines = [one.cosine for one in found]
    worst = int(np.argmin(cosines)) if cosines else -1
    return Verification(
        ok=ok,
        cosine=cosines[worst] if cosines else float("nan"),
        max_abs_error=max((one.max_abs_error for one in found), default=float("nan")),
        reason=reason,
        backend="openpi_remote",
        precision=precision,
        observations=len(found),
        worst=labels[worst] if labels else "",
        actions_cosine=min((one.actions_cosine for one in found), default=float("nan")),
    )

"""Whether an engine is the policy: compared with the float32 reference before it may be used.

Both engines get the same model inputs and the same noise. Keys and values of every prefix layer
and the actions are compared; the worst observation decides, not the mean. The reference is
backend `pytorch` in float32. It need not be in memory at the same time:

    frames = reference_frames(reference, inputs)
    reference.close()
    result = verify_frames(policy, frames)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.transforms import resize_with_pad
from thor_policy_ros.runtime.engine_difference import (
    THRESHOLDS,
    Difference,
    Frame,
    Thresholds,
    difference,
)
from thor_policy_ros.runtime.prefix_keeper import Policy
from thor_policy_ros.runtime.verification_inputs import (
    EngineInputs,
    engine_inputs,
    synthetic_observations,
)
from thor_policy_ros.types import (
    F32,
    U8,
    Observation,
    PrefixKV,
    Verification,
    VerificationFailedError,
)

REFERENCE_BACKEND = "pytorch"
REFERENCE_DTYPE = "float32"
LARGEST_FRAMES_ERROR = 1e-3
"""Of keys, relative. Pixels are the same to the bit and engines repeat themselves, but perhaps for
rounding; another camera's image, or none, is off by far more."""


@dataclass(frozen=True)
class ReferenceFrame:
    """What the reference made of one frame: host memory alone, about 36 MB at pi0.5's size."""

    given: EngineInputs
    frame: Frame


def verify_backend_engine(
    policy: Policy,
    observations: Observation | EngineInputs | Sequence[Observation | EngineInputs],
    reference_policy: Policy,
    thresholds: Thresholds | None = None,
    *,
    seed: int = 0,
) -> Verification:
    """Compares the policy's engine with the reference's.

    observations: one or several, each an Observation, or EngineInputs with noise and step count
    of their own; noise for the others is drawn from `seed`. thresholds: None takes those of the
    policy's precision. The thread that owns both backends calls this. Raises ValueError without
    observations and what the engines raise.
    """
    if isinstance(observations, Observation | EngineInputs):
        observations = [observations]
    inputs = _all_inputs(reference_policy, observations, seed)
    return verify_frames(policy, reference_frames(reference_policy, inputs), thresholds)


def reference_frames(
    reference: Policy, inputs: Sequence[EngineInputs]
) -> tuple[ReferenceFrame, ...]:
    """What the reference makes of the inputs. Raises VerificationFailedError where its own
    values are not finite: such a checkpoint cannot be judged.
    """
    frames = tuple(map(ReferenceFrame, inputs, _run_all(reference, inputs)))
    for made in frames:
        for name in ("keys", "values", "actions", "commands"):
            if not np.isfinite(getattr(made.frame, name)).all():
                raise VerificationFailedError(
                    f"the float32 reference itself gives {name} that are not finite for"
                    f" {made.given.label}; the checkpoint is broken"
                )
    return frames


def verify_frames(
    policy: Policy, frames: Sequence[ReferenceFrame], thresholds: Thresholds | None = None
) -> Verification:
    """Compares the policy's engine with what the reference made, and where the engine resizes
    camera frames itself, those with Pillow's images. See `verify_backend_engine`."""
    if not frames:
        raise ValueError("a verification wants at least 1 observation, got none")
    bounds = thresholds or THRESHOLDS[precision_of(policy)]
    found = [
        difference(ours, made.frame, _ranges(policy, made.given), bounds)
        for ours, made in zip(_run_all(policy, [m.given for m in frames]), frames, strict=True)
    ]
    result = _summary(policy, frames, found, bounds)
    refusal = _camera_frames_refusal(policy) if result.ok else ""
    return replace(result, ok=False, reason=refusal) if refusal else result


def precision_of(policy: Policy) -> str:
    """'float32', 'bfloat16' or 'fp8': whose thresholds the engine is held to.

    An engine that does not state its dtype is held to those of float32.
    """
    if policy.spec.mlp != "dense":
        return "fp8"
    dtype = str(getattr(policy.backend, "dtype", "float32")).removeprefix("torch.")
    return dtype if dtype in THRESHOLDS else "float32"


def is_reference(policy: Policy) -> bool:
    """Whether the policy's engine is the reference itself: only its repeatability is judged."""
    is_plain = policy.spec.engine == REFERENCE_BACKEND and not policy.spec.pipelined
    return is_plain and precision_of(policy) == REFERENCE_DTYPE


def verification_json(result: Verification) -> dict[str, Any]:
    """Plain JSON data; a figure that is not finite becomes null."""
    return {name: _plain(value) for name, value in asdict(result).items()}


def _all_inputs(
    reference: Policy, observations: Sequence[Observation | EngineInputs], seed: int
) -> tuple[EngineInputs, ...]:
    given = [item for item in observations if isinstance(item, EngineInputs)]
    seen = [item for item in observations if isinstance(item, Observation)]
    return (*given, *engine_inputs(reference.preprocess, reference.config, seen, seed))


def _run_all(policy: Policy, inputs: Sequence[EngineInputs]) -> Iterator[Frame]:
    """Each frame in turn; a pipelined policy's next prefix is launched before each denoising."""
    ahead = 1 if policy.spec.pipelined else 0
    prefixes: list[PrefixKV] = []
    for index, given in enumerate(inputs):
        for due in inputs[len(prefixes) : index + ahead + 1]:
            prefixes.append(policy.backend.prefill(due.inputs, float(len(prefixes))))
        yield _denoised(policy, given, prefixes[index])


def _denoised(policy: Policy, given: EngineInputs, prefix: PrefixKV) -> Frame:
    """Reading the actions waits for the device, so the prefix is read after them."""
    actions = policy.backend.denoise(prefix, given.noise, given.num_steps)
    valid = _host(prefix.pad_mask)[0].astype(bool)
    keys, values = (_host(kv)[:, 0][:, :, valid] for kv in (prefix.keys, prefix.values))
    if actions.shape != given.noise.shape:  # nothing more can be computed from such actions
        return Frame(keys, values, actions, actions, actions)
    flow = (actions - given.noise)[:, : policy.config.action_dim]
    return Frame(keys, values, actions, flow, policy.postprocess(actions, given.state))


def _ranges(policy: Policy, given: EngineInputs) -> F32:
    """Half of what each command moves by while its normalised action goes from -1 to 1."""
    ones = np.ones_like(given.noise)
    high, low = (policy.postprocess(sign * ones, given.state) for sign in (1, -1))
    ranges: F32 = np.abs(high - low) / 2
    return ranges


def _host(tensor: Any) -> F32:
    """A copy as f32 of a tensor on any device."""
    array: F32 = tensor.detach().float().cpu().numpy().copy()
    return array


def _summary(
    policy: Policy,
    frames: Sequence[ReferenceFrame],
    found: Sequence[Difference],
    bounds: Thresholds,
) -> Verification:
    worst = min(range(len(found)), key=lambda index: found[index].cosine)
    failed = [(made, diff) for made, diff in zip(frames, found, strict=True) if diff.failures]
    return Verification(
        ok=not failed,
        cosine=found[worst].cosine,
        max_abs_error=float(np.max([diff.max_abs_error for diff in found])),
        reason=_reason(failed, bounds),
        backend=policy.spec.name,
        precision=bounds.precision,
        observations=len(found),
        worst=frames[worst].given.label,
        keys_cosine=_worst_layers([diff.keys_cosine for diff in found]),
        values_cosine=_worst_layers([diff.values_cosine for diff in found]),
        actions_cosine=float(np.min([diff.actions_cosine for diff in found])),
    )


def _reason(failed: Sequence[tuple[ReferenceFrame, Difference]], bounds: Thresholds) -> str:
    if not failed:
        return ""
    made, diff = failed[0]
    more = sum(len(diff.failures) for _, diff in failed) - 1
    others = f" (and {more} more checks)" if more else ""
    return f"{diff.failures[0]}, for {bounds.precision}, on {made.given.label}{others}"


def _worst_layers(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """By layer; () where an observation's shapes did not allow to compare."""
    if not all(rows):
        return ()
    return tuple(float(value) for value in np.min(np.array(rows), axis=0))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _camera_frames_refusal(policy: Policy) -> str:
    """Why an engine that resizes camera frames itself must not be used: they give another prefix
    than the same frames resized by Pillow. '' where they do not, or the engine takes none.

    Frames of usual sizes go through every prefix slot, which also takes the memory they need.
    """
    if not getattr(policy.backend, "resizes_frames", False):
        return ""
    (plain,) = synthetic_observations(policy.config, 1)
    seen = replace(plain, images=_camera_sized(policy.config))
    size = policy.config.model.vision.image_size
    small = {slot: resize_with_pad(image, size) for slot, image in seen.images.items()}
    twice = engine_inputs(policy.preprocess, policy.config, [seen, seen])
    resized = engine_inputs(policy.preprocess, policy.config, [replace(seen, images=small)])
    *found, wanted = (frame.keys for frame in _run_all(policy, (*twice, *resized)))
    error = max(float(np.linalg.norm(keys - wanted)) for keys in found) / np.linalg.norm(wanted)
    if error <= LARGEST_FRAMES_ERROR:
        return ""
    return (
        f"camera frames resized by the engine give keys that are {error:.2g} off those of Pillow's"
        f" images, wanted at most {LARGEST_FRAMES_ERROR:g}"
    )


def _camera_sized(config: PolicyConfig) -> dict[str, U8]:
    """Random pixels of other sizes for each camera, the first as VGA has them."""
    random = np.random.default_rng(0)
    return {
        slot: random.integers(0, 256, (480, 640 + 32 * place, 3), np.uint8)
        for place, slot in enumerate(config.camera_slots)
    }


def with_seconds(result: Verification, seconds: float) -> Verification:
    """The same, with the time that the caller measured."""
    return replace(result, seconds=seconds)

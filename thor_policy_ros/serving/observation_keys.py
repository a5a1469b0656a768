"""How openpi's clients name what the robot sees, config by config, and how we do.

Nested maps and names with a slash are the same to a server: {"images": {"cam_high": x}} is
`images/cam_high`. What a client sends beyond the table is left alone, as openpi's server does,
except for cameras of a family that is listed whole (`families`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.transforms import resize_with_pad
from thor_policy_ros.types import F32, U8, Observation

PROMPT = "prompt"


@dataclass(frozen=True)
class ObservationKeys:
    """The names of one config.

    images: name on the wire -> camera slot. state: names whose values make up the state, in
    order, and how many each has. optional: images that may be missing. unused: images that
    openpi's config takes and does not use. channels_first: images are [3,H,W] there.
    families: prefixes below which no other name may be.
    """

    images: Mapping[str, str]
    state: tuple[tuple[str, int], ...]
    optional: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()
    channels_first: bool = False
    families: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that is taken from a message."""
        return (*self.images, *(name for name, _ in self.state), PROMPT)


KEYS: dict[str, ObservationKeys] = {
    "pi05_libero": ObservationKeys(
        {"observation/image": "base_0_rgb", "observation/wrist_image": "left_wrist_0_rgb"},
        (("observation/state", 8),),
    ),
    "pi05_droid": ObservationKeys(
        {
            "observation/exterior_image_1_left": "base_0_rgb",
            "observation/wrist_image_left": "left_wrist_0_rgb",
        },
        (("observation/joint_position", 7), ("observation/gripper_position", 1)),
    ),
    "pi05_aloha": ObservationKeys(
        {
            "images/cam_high": "base_0_rgb",
            "images/cam_left_wrist": "left_wrist_0_rgb",
            "images/cam_right_wrist": "right_wrist_0_rgb",
        },
        (("state", 14),),
        optional=frozenset({"images/cam_left_wrist", "images/cam_right_wrist"}),
        unused=frozenset({"images/cam_low"}),
        channels_first=True,
        families=("images/",),
    ),
    "demo": ObservationKeys(
        {"observation/image": "base_0_rgb", "observation/wrist_image": "left_wrist_0_rgb"},
        (("observation/state", 5),),
    ),
}


def keys_of(config: PolicyConfig, named: str = "") -> ObservationKeys:
    """The names for a policy: those of the config `named`, of its own name, or, for a config that
    is not in the table, `observation/SLOT` for each camera and `observation/state`.

    Raises ValueError for an unknown `named`, or one that does not fit the policy.
    """
    if named and named not in KEYS:
        raise ValueError(f"no observation keys {named!r}; choose one of: {', '.join(sorted(KEYS))}")
    keys = KEYS.get(named or config.name)
    if keys is None:
        images = {f"observation/{slot}": slot for slot in config.camera_slots}
        return ObservationKeys(images, (("observation/state", config.state_dim),))
    slots, dims = set(keys.images.values()), sum(size for _, size in keys.state)
    if not slots <= set(config.camera_slots) or dims != config.state_dim:
        raise ValueError(
            f"observation keys {named or config.name!r} feed {sorted(slots)} and a state of {dims};"
            f" config {config.name!r} wants {list(config.camera_slots)} and {config.state_dim}"
        )
    return keys


def observation_of(
    message: Mapping[str, Any], keys: ObservationKeys, stamp_s: float, default_prompt: str = ""
) -> Observation:
    """What a client sent, as the policy takes it.

    Raises ValueError that lists wanted and got: for a missing name, an unknown camera, an image
    or a state of the wrong form.
    """
    got = dict(_flat(message))
    _check_names(got, keys, bool(default_prompt))
    images = {
        slot: _image(name, got[name], keys.channels_first)
        for name, slot in keys.images.items()
        if name in got
    }
    parts = [_state_part(name, got[name], size) for name, size in keys.state]
    prompt = got.get(PROMPT, default_prompt)
    prompt = prompt.decode(errors="replace") if isinstance(prompt, bytes) else prompt
    if not isinstance(prompt, str):
        raise ValueError(f"{PROMPT}: wanted text, got {type(prompt).__name__}")
    return Observation(images, np.concatenate(parts), prompt, stamp_s)


def message_of(observation: Observation, keys: ObservationKeys, image_size: int) -> dict[str, Any]:
    """What a server of openpi takes: images resized as it would do itself, but fewer bytes.

    Raises ValueError for a state of another length and for a camera that the server wants and
    the observation lacks.
    """
    dims = sum(size for _, size in keys.state)
    if observation.state.shape != (dims,):
        raise ValueError(f"wanted a state of {dims} values, got {list(observation.state.shape)}")
    message: dict[str, Any] = {PROMPT: observation.prompt}
    for name, slot in keys.images.items():
        if slot in observation.images:
            image = resize_with_pad(observation.images[slot], image_size)
            _put(message, name, image.transpose(2, 0, 1) if keys.channels_first else image)
        elif name not in keys.optional:
            raise ValueError(
                f"the server wants {name} (slot {slot}); got the slots {sorted(observation.images)}"
            )
    start = 0
    for name, size in keys.state:
        _put(message, name, observation.state[start : start + size])
        start += size
    return message


def _put(message: dict[str, Any], name: str, value: npt.NDArray[Any]) -> None:
    """openpi nests `images` and leaves `observation/...` flat."""
    family, _, rest = name.partition("/")
    if family == "images":
        message.setdefault(family, {})[rest] = value
    else:
        message[name] = value


def _flat(message: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in message.items():
        if not isinstance(name, str):
            raise ValueError(f"wanted names as keys below {prefix or 'the top'!r}, got {name!r}")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _check_names(got: Mapping[str, Any], keys: ObservationKeys, has_prompt: bool) -> None:
    missing = [name for name in keys.names if name not in got and name not in keys.optional]
    if has_prompt and PROMPT in missing:
        missing.remove(PROMPT)
    known = {*keys.images, *keys.unused}
    unknown = [name for name in got if name.startswith(keys.families) and name not in known]
    if missing or unknown:
        said = [f"missing {missing}"] if missing else []
        said += [f"unknown {unknown}"] if unknown else []
        raise ValueError(
            f"the observation does not fit: {'; '.join(said)}. Wanted {list(keys.names)}"
            f"{f' (optional: {sorted(keys.optional)})' if keys.optional else ''}, got {sorted(got)}"
        )


def _image(name: str, value: Any, channels_first: bool) -> U8:
    """u8[H,W,3] of an image as openpi takes it: floats from 0 to 1, channels first or last."""
    image = value if isinstance(value, np.ndarray) else np.asarray(None)
    if image.ndim != 3 or image.size == 0 or 3 not in (image.shape[0], image.shape[2]):
        shape = list(image.shape) if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name}: wanted an image [height, width, 3] or [3, height, width], got"
                         f" {shape}")  # fmt: skip
    if np.issubdtype(image.dtype, np.floating):
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"{name}: wanted a float image from 0 to 1, got other values")
        image = (255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{name}: wanted uint8, or floats from 0 to 1, got {image.dtype}")
    if channels_first or image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    if image.shape[2] != 3:
        raise ValueError(f"{name}: wanted [3, height, width], got {list(value.shape)}")
    return np.ascontiguousarray(image)


def _state_part(name: str, value: Any, size: int) -> F32:
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: wanted {size} numbers, got {type(value).__name__}") from None
    array = np.atleast_1d(array)
    if array.shape != (size,):
        raise ValueError(f"{name}: wanted {size} numbers, got shape {list(array.shape)}")
    return array

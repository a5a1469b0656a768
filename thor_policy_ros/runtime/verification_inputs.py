"""What engines are compared on: synthetic observations, the same for a seed, or recorded inputs.

Synthetic images hold gradients, blocks and noise, so that neighbouring patches differ as in a
real scene; one camera is missing in every second observation of a policy with several, so that
masked inputs are exercised too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.types import F32, U8, ModelInputs, Observation

INSTRUCTIONS = ("pick up the red cube", "follow the blue ball", "put it down")
STEP_COUNTS = (10, 2, 1)
"""Denoise steps, in turn. One or two steps show a wrong step count, which ten nearly hide."""
BLOCKS = 12
RECORDED = "inputs.safetensors"


@dataclass(frozen=True)
class EngineInputs:
    """One frame as an engine gets it, with all that it depends on.

    noise: f32[H,32]. state: f32[S] that the commands are relative to, robot units.
    """

    label: str
    inputs: ModelInputs
    noise: F32
    state: F32
    num_steps: int


def synthetic_observations(
    config: PolicyConfig, count: int, seed: int = 0
) -> tuple[Observation, ...]:
    """`count` observations that fit the policy; equal for equal arguments."""
    if count < 1:
        raise ValueError(f"a verification wants at least 1 observation, got {count}")
    return tuple(_observation(config, seed, index) for index in range(count))


def _observation(config: PolicyConfig, seed: int, index: int) -> Observation:
    random = np.random.default_rng((seed, index))
    size = config.model.vision.image_size
    images = {slot: _image(random, size) for slot in config.camera_slots}
    if index % 2 and len(images) > 1:
        images.pop(config.camera_slots[-1])
    state = random.normal(0.0, 0.5, config.state_dim).astype(np.float32)
    return Observation(images, state, INSTRUCTIONS[index % len(INSTRUCTIONS)], float(index))


def _image(random: np.random.Generator, size: int) -> U8:
    """u8[size,size,3]: a gradient, blocks of one colour, noise."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    slopes = random.uniform(-120, 120, (2, 3))
    picture = 128 + rows[..., None] * slopes[0] + columns[..., None] * slopes[1]
    for _ in range(BLOCKS):
        top, left = random.integers(0, size, 2)
        height, width = random.integers(2, max(size // 3, 3), 2)
        picture[top : top + height, left : left + width] = random.uniform(0, 255, 3)
    picture += random.normal(0, 8, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def engine_inputs(
    preprocess: Callable[[Observation], ModelInputs],
    config: PolicyConfig,
    observations: Iterable[Observation],
    seed: int = 0,
) -> tuple[EngineInputs, ...]:
    """Model inputs, noise and step count for each observation.

    preprocess: of the policy. Raises its ValueError for an observation that does not fit.
    """
    shape = (config.model.action_horizon, config.model.action_dim)
    return tuple(
        EngineInputs(
            label=f"observation {index} ({observation.prompt!r}, {len(observation.images)} images)",
            inputs=preprocess(observation),
            noise=np.random.default_rng((seed, index, 1)).standard_normal(shape, dtype=np.float32),
            state=observation.state,
            num_steps=STEP_COUNTS[index % len(STEP_COUNTS)],
        )
        for index, observation in enumerate(observations)
    )


def recorded_inputs(folder: Path, config: PolicyConfig) -> tuple[EngineInputs, ...]:
    """The frame recorded in `inputs.safetensors`, once for each step count; its state is zero.

    Raises FileNotFoundError, or ValueError for a record of other sizes than the policy's.
    """
    path = folder / RECORDED
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {RECORDED}: record one, or use synthetic ones")
    arrays = load_file(path)
    inputs, noise = _recorded(path, arrays), arrays["noise"][0].astype(np.float32)
    _check_sizes(path, inputs, noise, config)
    state = np.zeros(config.state_dim, np.float32)
    return tuple(
        EngineInputs(f"{path.name}, {steps} steps", inputs, noise, state, steps)
        for steps in STEP_COUNTS
    )


def _recorded(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> ModelInputs:
    wanted = ("image_0", "image_masks", "tokens", "token_mask", "noise")
    absent = [name for name in wanted if name not in arrays]
    if absent:
        raise ValueError(f"{path}: missing {absent}; it holds {sorted(arrays)}")
    cameras = arrays["image_masks"].size
    return ModelInputs(
        images=np.stack([arrays[f"image_{i}"][0] for i in range(cameras)]).astype(np.float32),
        image_mask=arrays["image_masks"].reshape(-1).astype(np.bool_),
        tokens=arrays["tokens"][0].astype(np.int32),
        token_mask=arrays["token_mask"][0].astype(np.bool_),
    )


def _check_sizes(path: Path, inputs: ModelInputs, noise: F32, config: PolicyConfig) -> None:
    model, size = config.model, config.model.vision.image_size
    wanted = {
        "images": (model.num_cameras, 3, size, size),
        "tokens": (model.max_token_len,),
        "noise": (model.action_horizon, model.action_dim),
    }
    came = {"images": inputs.images.shape, "tokens": inputs.tokens.shape, "noise": noise.shape}
    for name, shape in wanted.items():
        if came[name] != shape:
            raise ValueError(f"{path}: {name} is {came[name]}; policy {config.name!r} has {shape}")

"""From an observation in robot units to model inputs, and from model outputs to commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from thor_policy_ros.model import aloha
from thor_policy_ros.model.config import PolicyConfig
from thor_policy_ros.model.image_memory import image_array
from thor_policy_ros.model.norm_stats import F64, NormStats
from thor_policy_ros.model.tokenizer import PromptTokenizer
from thor_policy_ros.types import F32, U8, ModelInputs, Observation


def resize_with_pad(image: U8, size: int) -> U8:
    """u8[H,W,3] -> u8[size,size,3]: aspect kept, bilinear, centred on black (as openpi-client)."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    ratio = max(width / size, height / size)
    new_width, new_height = max(1, int(width / ratio)), max(1, int(height / ratio))
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    padded = np.zeros((size, size, 3), np.uint8)
    padded[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return padded


class Preprocessor:
    """The transforms of one policy, both ways. Holds no state between calls.

    Raises ValueError from `__call__` for what the robot side can get wrong: unknown camera
    slots, image shape or dtype, state length or NaN, and prompts that are too long.
    """

    def __init__(
        self, config: PolicyConfig, norm_stats: NormStats, tokenizer: PromptTokenizer
    ) -> None:
        if tokenizer.vocab_size > config.model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model embeds"
                f" {config.model.vocab_size}; this tokenizer belongs to another checkpoint"
            )
        self.config = config
        self._tokenizer = tokenizer
        self._state = norm_stats.affine("state", config.normalisation, config.state_dim)
        self._actions = norm_stats.affine("actions", config.normalisation, config.action_dim)
        self._relative = np.flatnonzero(config.relative_actions)

    def __call__(self, observation: Observation, *, resize: bool = True) -> ModelInputs:
        """Model inputs of one observation (robot units); see the class for errors.

        resize: False leaves images as they came, for an engine that resizes them itself, unless
        all have the model's size or one is taller than wide: for such a one Pillow 13 may go along
        y first, and an engine goes along x.
        """
        frames = checked_frames(observation, self.config.camera_slots)
        size = self.config.model.vision.image_size
        shapes = {frame.shape[:2] for frame in frames if frame is not None}
        tall = any(height > width for height, width in shapes)
        resize = resize or tall or shapes == {(size, size)}
        images = resized(frames, size) if resize else np.zeros((len(frames), 3, 0, 0), np.uint8)
        state = self.normalise_state(observation.state) if self.config.state_in_prompt else None
        if state is None:
            self._checked_state(observation.state)
        length = self.config.model.max_token_len
        tokens, token_mask = self._tokenizer.padded(observation.prompt, state, length)
        image_mask = np.array([frame is not None for frame in frames])
        kept = () if resize else within_reach(frames)
        return ModelInputs(images, image_mask, tokens, token_mask, kept)

    def normalise_state(self, state: npt.NDArray[Any]) -> F64:
        """f[S] robot units -> f64[S] normalised, not clipped."""
        return self._state.normalise(self._model_state(state))

    def unnormalise(self, actions: F32, state: npt.NDArray[Any]) -> F32:
        """Model output f32[H,32] -> commands f32[H,A], robot units.

        state: f[S] of the observation that the prefix was made from, to which relative
        dimensions are added.
        """
        robot = self._actions.unnormalise(actions[:, : self.config.action_dim].astype(np.float64))
        robot[:, self._relative] += self._model_state(state)[self._relative]
        if self.config.aloha_units:
            robot = aloha.actions_to_robot(robot)
        return robot.astype(np.float32)

    def normalise_actions(self, actions: npt.NDArray[Any], state: npt.NDArray[Any]) -> F32:
        """The inverse of `unnormalise`, for guidance by actions known before: f[H,A] -> f32[H,32],
        zero-padded.
        """
        relative = np.array(actions, np.float64)
        if self.config.aloha_units:
            relative = aloha.actions_to_model(relative)
        relative[:, self._relative] -= self._model_state(state)[self._relative]
        padded = np.zeros((len(relative), self.config.model.action_dim), np.float32)
        padded[:, : self.config.action_dim] = self._actions.normalise(relative)
        return padded

    def _model_state(self, state: npt.NDArray[Any]) -> F64:
        checked = self._checked_state(state)
        return aloha.state_to_model(checked) if self.config.aloha_units else checked

    def _checked_state(self, state: npt.NDArray[Any]) -> F64:
        array = np.asarray(state)
        if array.shape != (self.config.state_dim,):
            raise ValueError(
                f"wanted a state of {self.config.state_dim} values for config"
                f" {self.config.name!r}, got shape {array.shape}; check the joint names and"
                " their order"
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"the state is not finite at index {np.flatnonzero(~np.isfinite(array)).tolist()};"
                " check the robot's joint states"
            )
        return array.astype(np.float64)


def checked_frames(observation: Observation, slots: Sequence[str]) -> tuple[U8 | None, ...]:
    """By slot, u8[H,W,3] or None where the camera is missing; ValueError for wrong images."""
    unknown = sorted(set(observation.images) - set(slots))
    if unknown or not observation.images:
        got = f"unknown slots {unknown}" if unknown else "no image at all"
        raise ValueError(f"wanted images for the slots {list(slots)}, got {got}")
    images = observation.images
    return tuple(_checked_image(s, images[s]) if s in images else None for s in slots)


def resized(frames: Sequence[U8 | None], size: int) -> U8:
    """u8[V,3,size,size]; a missing camera is black."""
    images = image_array((len(frames), 3, size, size))
    for place, frame in enumerate(frames):
        images[place] = 0 if frame is None else resize_with_pad(frame, size).transpose(2, 0, 1)
    return images


def within_reach(frames: Sequence[U8 | None]) -> tuple[U8 | None, ...]:
    """Copies of frames where a GPU of this process fetches them by itself."""
    return tuple(None if frame is None else _copied(frame) for frame in frames)


def _copied(frame: U8) -> U8:
    copy = image_array(frame.shape)
    copy[:] = frame
    return copy


def _checked_image(slot: str, image: U8) -> U8:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(
            f"image {slot!r}: wanted uint8 RGB from 0 to 255, got {kind};"
            " convert it before it reaches the policy"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image {slot!r}: wanted shape [height, width, 3], got {list(image.shape)}"
        )
    return image

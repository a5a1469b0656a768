"""Training batches: frames, an instruction for each, the expert's chunk for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from thor_policy_ros.sim.instructions import SHAPES
from thor_policy_ros.training.augment import blackened, jitter, to_model_range
from thor_policy_ros.training.frames import NUM_TARGETS, Frames
from thor_policy_ros.training.prompts import BLANK, PromptTable, instruction_row

BLANK_FRACTION, BLACK_FRACTION, GENERIC_NOUN_FRACTION = 0.04, 0.03, 0.4
"""Blank instructions and covered lenses teach the arm to hold still; 'object' for the noun."""


class Batch(NamedTuple):
    """What one training step sees.

    images: f32[B,V,3,S,S]; tokens int64[B,L], token_mask bool[B,L]; actions: f32[B,H,A]
    normalised; target_uv: f32[B,V,2], NaN where there is nothing to point at; velocity:
    f32[B,2] of the target, about 1 in size.
    """

    images: Tensor
    tokens: Tensor
    token_mask: Tensor
    actions: Tensor
    target_uv: Tensor
    velocity: Tensor


def draw_batch(
    frames: Frames, prompts: PromptTable, size: int, generator: Generator, augment: bool = True
) -> Batch:
    """A random batch of `size` frames, each with a random target, verb and wording."""

    def draw(high: int) -> Tensor:
        return torch.randint(high, (size,), generator=generator, device=frames.device)

    def chance(probability: float) -> Tensor:
        drawn = torch.rand(size, generator=generator, device=frames.device)
        return drawn < probability

    index, target, verb = draw(len(frames)), draw(NUM_TARGETS), draw(2)
    blank, black = chance(BLANK_FRACTION), chance(BLACK_FRACTION)
    noun = torch.where(chance(GENERIC_NOUN_FRACTION), len(SHAPES), frames.shapes[index, target])
    row = instruction_row(verb, frames.colours[index, target], noun)
    tokens, token_mask = prompts.tokens(torch.where(blank, BLANK, row), frames.state[index])
    idle = blank | black
    images = to_model_range(frames.images[index])
    if augment:
        images = jitter(images, generator)
    return Batch(
        images=blackened(images, black),
        tokens=tokens,
        token_mask=token_mask,
        actions=torch.where(
            idle[:, None, None], frames.still[index], frames.actions[index, target, verb]
        ),
        target_uv=torch.where(idle[:, None, None], torch.nan, frames.uv[index, :, target]),
        velocity=frames.velocities[index, target],
    )

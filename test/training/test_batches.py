"""Batches: what is asked, what is seen and what is answered belong together."""

from __future__ import annotations

import pytest
import torch
from support.demo_training import toy_config, toy_data
from torch import Generator

from thor_policy_ros.training import batches
from thor_policy_ros.training.demo_tokenizer import build_demo_tokenizer
from thor_policy_ros.training.frames import Frames, split_frames
from thor_policy_ros.training.prompts import BLANK, PromptTable, instruction_row

CONFIG = toy_config()


@pytest.fixture(scope="module")
def frames() -> Frames:
    return split_frames(toy_data(), CONFIG, "cpu")[0]


@pytest.fixture(scope="module")
def prompts() -> PromptTable:
    return PromptTable(build_demo_tokenizer(), 5, CONFIG.model.max_token_len, "cpu")


def draw(frames: Frames, prompts: PromptTable, augment: bool = False) -> batches.Batch:
    return batches.draw_batch(frames, prompts, 64, Generator().manual_seed(1), augment)


def frame_of(frames: Frames, image: torch.Tensor) -> int:
    """Which frame a model image was made of."""
    pixels = ((image + 1) / 2 * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    (row,) = (frames.images == pixels).flatten(1).all(1).nonzero().flatten()[:1].tolist()
    return int(row)


def test_the_answer_is_the_experts_to_what_is_asked(
    frames: Frames, prompts: PromptTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BLANK_FRACTION", "BLACK_FRACTION", "GENERIC_NOUN_FRACTION"):
        monkeypatch.setattr(batches, name, 0.0)
    batch = draw(frames, prompts)
    for i in range(64):
        row = frame_of(frames, batch.images[i])
        (match,) = [
            (target, verb)
            for target in range(3)
            for verb in range(2)
            if torch.equal(frames.actions[row, target, verb], batch.actions[i])
            and torch.equal(asked(frames, prompts, row, target, verb), batch.tokens[i])
        ]
        torch.testing.assert_close(batch.velocity[i], frames.velocities[row, match[0]])
        torch.testing.assert_close(batch.target_uv[i], frames.uv[row, :, match[0]], equal_nan=True)


def asked(frames: Frames, prompts: PromptTable, row: int, target: int, verb: int) -> torch.Tensor:
    colour, shape = frames.colours[row, target], frames.shapes[row, target]
    named = instruction_row(torch.tensor([verb]), colour[None], shape[None])
    return prompts.tokens(named, frames.state[row][None])[0][0]


@pytest.mark.parametrize("reason", ["BLANK_FRACTION", "BLACK_FRACTION"])
def test_without_words_or_pictures_the_arm_is_to_hold_still(
    frames: Frames, prompts: PromptTable, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(batches, "BLANK_FRACTION", float(reason == "BLANK_FRACTION"))
    monkeypatch.setattr(batches, "BLACK_FRACTION", float(reason == "BLACK_FRACTION"))
    batch = draw(frames, prompts, augment=True)
    stills = frames.still.flatten(1)
    for action in batch.actions.flatten(1):
        assert (stills == action).all(1).any()
    assert batch.target_uv.isnan().all()
    if reason == "BLACK_FRACTION":
        assert (batch.images == -1).all()
    else:
        blank = prompts.tokens(torch.tensor([BLANK]), frames.state[:1])[0]
        assert (batch.token_mask.sum(1) == (blank != 0).sum()).all()


def test_batches_follow_from_the_generator(frames: Frames, prompts: PromptTable) -> None:
    first, second = (draw(frames, prompts, augment=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

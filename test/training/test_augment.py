"""Augmentation: small, reproducible, in range."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator

from thor_policy_ros.model.pixels import PIXEL
from thor_policy_ros.training.augment import blackened, jitter, to_model_range

IMAGES = torch.arange(256, dtype=torch.uint8).repeat(24)[: 2 * 2 * 32 * 16 * 3]
IMAGES = IMAGES.view(2, 2, 32, 16, 3)


def test_pixels_become_what_the_runtime_makes_of_them() -> None:
    ours = to_model_range(IMAGES)
    assert ours.shape == (2, 2, 3, 32, 16)
    np.testing.assert_array_equal(ours.numpy(), PIXEL[IMAGES.numpy()].transpose(0, 1, 4, 2, 3))


def test_jitter_changes_every_camera_a_little() -> None:
    images = to_model_range(IMAGES)
    changed = jitter(images, Generator().manual_seed(0))
    apart = (changed - images).abs()
    assert changed.min() >= -1 and changed.max() <= 1
    assert (apart.flatten(2).mean(2) > 0.01).all() and apart.mean() < 0.15
    assert torch.equal(changed, jitter(images, Generator().manual_seed(0)))


def test_only_the_chosen_go_black() -> None:
    images = to_model_range(IMAGES)
    dark = blackened(images, torch.tensor([True, False]))
    assert (dark[0] == -1).all() and torch.equal(dark[1], images[1])

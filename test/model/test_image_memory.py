"""Where images are made, without a GPU."""

from __future__ import annotations

import numpy as np

from thor_policy_ros.model.image_memory import image_array, pinned_address


def test_without_a_gpu_it_is_plain_memory() -> None:
    made = image_array((2, 3, 4, 4))
    assert made.shape == (2, 3, 4, 4)
    assert made.dtype == np.uint8
    assert pinned_address(made) is None


def test_what_a_gpu_could_not_read_row_after_row_is_not_asked_about() -> None:
    made = image_array((2, 3, 4, 4))
    assert pinned_address(made.transpose(0, 1, 3, 2)) is None
    assert pinned_address(made.astype(np.float64)) is None  # type: ignore[arg-type]
    made.flags.writeable = False
    assert pinned_address(made) is None

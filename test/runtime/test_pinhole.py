"""Points are drawn where the camera that rendered the picture saw them."""

from __future__ import annotations

import numpy as np
import pytest

from thor_policy_ros.runtime.pinhole import Pinhole
from thor_policy_ros.runtime.urdf import pose_of

K = (100.0, 0.0, 31.5, 0.0, 110.0, 23.5, 0.0, 0.0, 1.0)


def test_a_point_ahead_is_at_the_centre_and_one_behind_is_nowhere() -> None:
    pinhole = Pinhole.of(K, 64, 48)
    points = np.array([[0.0, 0.0, 2.0], [0.2, -0.1, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    found = pinhole.project(points, np.eye(4))
    np.testing.assert_allclose(found[:2], [[31.5, 23.5], [51.5, 12.5]])
    assert np.isnan(found[2:]).all()


def test_a_camera_may_stand_anywhere() -> None:
    """Optical frame as rep 103 has it: one that looks along x of the world."""
    camera = pose_of((1.0, 2.0, 3.0), (-np.pi / 2, 0.0, -np.pi / 2))
    seen = Pinhole.of(K, 64, 48).project(np.array([[3.0, 2.0, 3.0], [3.0, 1.0, 4.0]]), camera)
    np.testing.assert_allclose(seen, [[31.5, 23.5], [31.5 + 50.0, 23.5 - 55.0]], atol=1e-9)


def test_an_image_of_another_size_shows_the_same_place() -> None:
    whole = Pinhole.of(K, 64, 48)
    double, point = whole.sized(128, 96), np.array([[0.1, 0.05, 1.0]])
    corner = (whole.project(point, np.eye(4)) + 0.5) * 2 - 0.5
    np.testing.assert_allclose(double.project(point, np.eye(4)), corner)


@pytest.mark.parametrize(
    ("k", "width"), [((0.0,) * 9, 64), ((np.nan, *K[1:]), 64), (K, 0), (K[:4], 64)]
)
def test_what_is_not_calibrated_is_refused(k: tuple[float, ...], width: int) -> None:
    with pytest.raises(ValueError, match="not calibrated"):
        Pinhole.of(k, width, 48)

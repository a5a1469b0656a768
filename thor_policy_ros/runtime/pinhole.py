"""Where points in space appear in a camera's image: a pinhole, as CameraInfo.k describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
NEAREST_M = 1e-3


@dataclass(frozen=True)
class Pinhole:
    """fx, fy, cx, cy: pixels of an image of width x height; (0,0) is the centre of the upper left
    pixel. Lens distortion is left out: exact for a rectified image.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def of(cls, k: Sequence[float], width: int, height: int) -> Pinhole:
        """k: row-major 3x3. Raises ValueError for a camera that is not calibrated."""
        values = np.asarray(k, np.float64)
        known = values.shape == (9,) and bool(np.isfinite(values).all())
        if not known or values[0] <= 0 or values[4] <= 0 or width <= 0 or height <= 0:
            raise ValueError(
                f"its camera_info is not calibrated: k is {values.tolist()} for {width}x{height}"
            )
        return cls(values[0], values[4], values[2], values[5], width, height)

    def sized(self, width: int, height: int) -> Pinhole:
        """Of the same camera's image scaled to another size."""
        across, down = width / self.width, height / self.height
        return Pinhole(
            self.fx * across,
            self.fy * down,
            (self.cx + 0.5) * across - 0.5,
            (self.cy + 0.5) * down - 0.5,
            width,
            height,
        )

    def project(self, points: F64, camera: F64) -> F64:
        """f64[N,3] -> f64[N,2] pixels, also beyond the edges; NaN behind the camera.

        camera: f64[4,4], the pose of its optical frame (z ahead, x right, y down) in the points'.
        """
        seen = (points - camera[:3, 3]) @ camera[:3, :3]
        depth = np.where(seen[:, 2] > NEAREST_M, seen[:, 2], np.nan)
        return np.stack(
            [
                self.cx + self.fx * seen[:, 0] / depth,
                self.cy + self.fy * seen[:, 1] / depth,
            ],
            axis=1,
        )

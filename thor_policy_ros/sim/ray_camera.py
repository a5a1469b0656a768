"""Pictures without a screen or OpenGL: MuJoCo casts one ray a pixel, NumPy shades.

Deterministic; about 0.7 ms of rays and as much of shading for 64x64 on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt

from thor_policy_ros.types import F32, U8

FAR_M = 12.0
_SHADOW_BIAS_M = 0.004


@dataclass(frozen=True)
class Look:
    """Colours and light of a picture, linear RGB in [0,1].

    geom_rgb: f32[G,3]; checker_rgb: f32[2,3] for the geom `checkered` (squares of
    `checker_m`); gloss: f32[G], strength of the highlight; light: f32[3], position, m.
    """

    geom_rgb: F32
    gloss: F32
    checkered: int
    checker_rgb: F32
    checker_m: float
    sky_rgb: F32
    light: F32
    ambient: float = 0.42
    diffuse: float = 0.62


@dataclass(frozen=True)
class _Hits:
    """What the rays met. geom: i32[R], -1 for the sky; normal, point: f32[R,3], world."""

    geom: npt.NDArray[np.int32]
    normal: F32
    point: F32
    view: F32


class RayCamera:
    """A camera of a MuJoCo model that draws by ray casting. Not thread-safe: it owns buffers."""

    def __init__(self, model: mujoco.MjModel, name: str, width: int, height: int) -> None:
        self._model = model
        self._id = int(model.camera(name).id)
        self.width, self.height = width, height
        self._rays = _pixel_rays(float(model.cam_fovy[self._id]), width, height)

    def picture(self, data: mujoco.MjData, look: Look, *, shadows: bool = False) -> U8:
        """u8[height,width,3] of the scene; `data` must have its kinematics up to date."""
        hits = self._cast(data, self._rays)
        rgb = _shade(self._model, data, look, hits, shadows)
        return _to_u8(rgb).reshape(self.height, self.width, 3)

    def fine_picture(self, data: mujoco.MjData, look: Look) -> U8:
        """As `picture`, with shadows and smooth edges: for people to look at."""
        hits = self._cast(data, self._rays)
        rgb = _shade(self._model, data, look, hits, True)
        self._smooth_edges(data, look, hits, rgb)
        return _to_u8(rgb).reshape(self.height, self.width, 3)

    def project(self, data: mujoco.MjData, points: npt.NDArray[np.floating]) -> F32:
        """Image coordinates of world points, float[...,3] -> f32[...,2].

        (0,0) is the upper left corner, (1,1) the lower right; NaN behind the camera.
        """
        local = (points - data.cam_xpos[self._id]) @ data.cam_xmat[self._id].reshape(3, 3)
        half = np.tan(np.radians(self._model.cam_fovy[self._id]) / 2)
        depth = np.where(local[..., 2] < -1e-6, -local[..., 2], np.nan)
        u = 0.5 + 0.5 * local[..., 0] / (depth * half * self.width / self.height)
        v = 0.5 - 0.5 * local[..., 1] / (depth * half)
        return np.stack([u, v], axis=-1).astype(np.float32)

    def intrinsics(self) -> npt.NDArray[np.float64]:
        """f64[3,3], as CameraInfo.k: pixels, (0,0) the centre of the upper left one."""
        focal = self.height / 2 / np.tan(np.radians(self._model.cam_fovy[self._id]) / 2)
        cx, cy = self.width / 2 - 0.5, self.height / 2 - 0.5
        return np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]])

    def _cast(self, data: mujoco.MjData, rays: npt.NDArray[np.float64]) -> _Hits:
        directions = rays @ data.cam_xmat[self._id].reshape(3, 3).T
        eye = data.cam_xpos[self._id]
        geom, distance, normal = _cast_rays(self._model, data, eye, directions)
        point = (eye + distance[:, None] * directions).astype(np.float32)
        return _Hits(geom, normal, point, directions.astype(np.float32))

    def _smooth_edges(self, data: mujoco.MjData, look: Look, hits: _Hits, rgb: F32) -> None:
        """Average nine rays a pixel wherever colours change abruptly."""
        edge = np.flatnonzero(_edges(rgb.reshape(self.height, self.width, 3)))
        step_x = self._rays[1] - self._rays[0] if self.width > 1 else np.zeros(3)
        step_y = self._rays[self.width] - self._rays[0] if self.height > 1 else np.zeros(3)
        offsets = [(x / 3, y / 3) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0)]
        for x, y in offsets:
            fine = self._cast(data, self._rays[edge] + x * step_x + y * step_y)
            rgb[edge] += _shade(self._model, data, look, fine, True)
        rgb[edge] /= len(offsets) + 1


def _pixel_rays(fovy_deg: float, width: int, height: int) -> npt.NDArray[np.float64]:
    """f64[height*width,3] in the camera frame; depth 1, so not of unit length."""
    half = np.tan(np.radians(fovy_deg) / 2)
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * half * width / height
    y = (1 - (np.arange(height) + 0.5) / height * 2) * half
    grid = np.broadcast_arrays(x[None, :], y[:, None], -1.0)
    return np.stack(grid, axis=-1).reshape(-1, 3)


def _cast_rays(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    origin: npt.NDArray[np.float64],
    directions: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], F32]:
    """First geom (-1: none), distance in ray lengths and normal for rays from one point."""
    count = len(directions)
    geom = np.full(count, -1, np.int32)
    distance = np.zeros(count)
    normal = np.zeros(count * 3)
    flat = np.ascontiguousarray(directions).ravel()
    mujoco.mj_multiRay(
        model, data, origin, flat, _VISIBLE, True, -1, geom, distance, normal, count, FAR_M
    )
    return geom, distance, normal.reshape(-1, 3).astype(np.float32)


_VISIBLE = np.array([1, 0, 0, 0, 0, 0], np.uint8)
"""Geoms of group 0 are drawn."""


def _shade(
    model: mujoco.MjModel, data: mujoco.MjData, look: Look, hits: _Hits, shadows: bool
) -> F32:
    """f32[R,3]: diffuse light, a highlight, chequers on the table, sky where nothing was met."""
    colour = look.geom_rgb[hits.geom]
    table = np.flatnonzero(hits.geom == look.checkered)
    colour[table] = _checkers(hits.point[table], look)
    to_light = look.light - hits.point
    to_light /= np.linalg.norm(to_light, axis=1, keepdims=True)
    facing = np.maximum(np.einsum("ri,ri->r", hits.normal, to_light), 0.0)
    if shadows:
        facing *= _lit(model, data, look, hits)
    colour *= (look.ambient + look.diffuse * facing)[:, None]
    if shadows:
        colour += _highlight(look, hits, to_light, facing)[:, None]
    sky = hits.geom < 0
    colour[sky] = look.sky_rgb
    return colour


def _checkers(point: F32, look: Look) -> F32:
    cell = np.floor(point[:, :2] / look.checker_m).astype(np.int32)
    return look.checker_rgb[(cell[:, 0] + cell[:, 1]) & 1]


def _highlight(look: Look, hits: _Hits, to_light: F32, facing: F32) -> F32:
    view = hits.view / np.linalg.norm(hits.view, axis=1, keepdims=True)
    half = to_light - view
    half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-9
    shine = np.maximum(np.einsum("ri,ri->r", hits.normal, half), 0.0) ** 40
    return look.gloss[hits.geom] * shine * (facing > 0)


def _lit(model: mujoco.MjModel, data: mujoco.MjData, look: Look, hits: _Hits) -> F32:
    """1 where the light sees the point, 0.25 in shadow: one more cast, from the light."""
    from_light = (hits.point - look.light).astype(np.float64)
    origin = look.light.astype(np.float64)
    geom, distance, _ = _cast_rays(model, data, origin, from_light)
    length = np.linalg.norm(from_light, axis=1)
    hidden = (geom >= 0) & (distance * length < length - _SHADOW_BIAS_M)
    return np.where(hidden, 0.25, 1.0).astype(np.float32)


def _edges(rgb: F32) -> npt.NDArray[np.bool_]:
    """True at pixels whose right or lower neighbour differs visibly, and at that neighbour."""
    edge = np.zeros(rgb.shape[:2], bool)
    across = np.abs(np.diff(rgb, axis=1)).sum(-1) > 0.06
    down = np.abs(np.diff(rgb, axis=0)).sum(-1) > 0.06
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _to_u8(rgb: F32) -> U8:
    return (np.clip(rgb, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)

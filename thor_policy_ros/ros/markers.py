"""A chunk as viewers show it: joint trajectory, path of the tool, markers, words on an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Path
from PIL import Image as PilImage
from PIL import ImageDraw
from std_msgs.msg import ColorRGBA
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from visualization_msgs.msg import Marker, MarkerArray

from thor_policy_ros.msg import ActionChunk as ActionChunkMsg
from thor_policy_ros.msg import FrameLatency
from thor_policy_ros.ros.conversions import NS, header
from thor_policy_ros.types import U8, ActionChunk

F64 = npt.NDArray[np.float64]
ForwardKinematics = Callable[[F64, Sequence[str]], F64]
"""(f64[H,A] joint positions, their names) -> f64[H,3] of the tool, m, in the viewer's frame."""

LIFETIME = Duration(sec=2)
TEXT_HEIGHT_M = 0.04
NOW, LATER = (0.1, 0.8, 0.2), (0.9, 0.2, 0.1)
FAR_PIXELS = 1e5
READABLE_WIDTH, BAND_HEIGHT = 320, 16  # pixels; the font's letters are 10 high


def trajectory_msg(chunk: ActionChunk, joint_names: Sequence[str]) -> JointTrajectory:
    """All rows; their times count from the header's stamp, the observation."""
    message = JointTrajectory(header=header(chunk.observed_at_s), joint_names=list(joint_names))
    message.points = [
        JointTrajectoryPoint(
            positions=row.astype(np.float64).tolist(), time_from_start=duration(k * chunk.dt_s)
        )
        for k, row in enumerate(chunk.actions)
    ]
    return message


def duration(seconds: float) -> Duration:
    total_ns = round(seconds * NS)
    return Duration(sec=total_ns // NS, nanosec=total_ns % NS)


def path_msg(points: F64, chunk: ActionChunk, frame_id: str) -> Path:
    """points: f64[H,3], m; each is stamped with the time at which it is to be reached."""
    message = Path(header=header(chunk.observed_at_s, frame_id))
    for k, point in enumerate(points):
        pose = PoseStamped(header=header(chunk.observed_at_s + k * chunk.dt_s, frame_id))
        pose.pose.position = point_msg(point)
        pose.pose.orientation.w = 1.0
        message.poses.append(pose)
    return message


def point_msg(point: F64) -> Point:
    x, y, z = map(float, point)
    return Point(x=x, y=y, z=z)


def marker_array(
    points: F64, chunk: ActionChunkMsg, stamp_s: float, frame_id: str, width_m: float
) -> MarkerArray:
    """A line from green (now) to red, a ball a row, and the instruction at the end."""
    shades = np.linspace(0.0, 1.0, len(points))[:, None]
    mixed = (1 - shades) * np.array(NOW) + shades * np.array(LATER)
    colours = [ColorRGBA(r=float(r), g=float(g), b=float(b), a=1.0) for r, g, b in mixed]
    line, balls = (
        _marker(kind, number, stamp_s, frame_id)
        for number, kind in enumerate((Marker.LINE_STRIP, Marker.SPHERE_LIST))
    )
    line.scale.x = width_m
    balls.scale.x = balls.scale.y = balls.scale.z = 2 * width_m
    for marker in (line, balls):
        marker.points, marker.colors = [point_msg(point) for point in points], colours
    words = _marker(Marker.TEXT_VIEW_FACING, 2, stamp_s, frame_id)
    words.text = f"{chunk.instruction}\n{chunk.backend}"
    words.scale.z = TEXT_HEIGHT_M
    words.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    words.pose.position = point_msg(points[-1] + np.array([0.0, 0.0, 2 * TEXT_HEIGHT_M]))
    return MarkerArray(markers=[line, balls, words])


def _marker(kind: int, number: int, stamp_s: float, frame_id: str) -> Marker:
    marker = Marker(header=header(stamp_s, frame_id), ns="chunk", id=number, type=kind)
    marker.action, marker.lifetime = Marker.ADD, LIFETIME
    marker.pose.orientation.w = 1.0
    marker.color.a = 1.0
    return marker


def caption(chunk: ActionChunkMsg | None, frame: FrameLatency | None) -> tuple[str, str]:
    """The words above and below the image."""
    above = chunk.instruction if chunk is not None else "no chunk yet"
    if frame is None:
        return above, ""
    late = " LATE" if frame.deadline_missed else ""
    return above, f"{frame.backend} {frame.total_ms:.1f} ms{late} | {frame.decision}"


def annotated(image: U8, above: str, below: str, path: F64 | None = None) -> U8:
    """A larger copy with a line of words above and one below it, none of the image hidden.

    image: u8[H,W,3]; a small one is enlarged by a whole factor, so that words have room.
    path: f64[N,2], pixels of the image, drawn from green (now) to red; NaN where it is not seen.
    """
    factor = max(1, math.ceil(READABLE_WIDTH / image.shape[1]))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = enlarged.shape[:2]
    picture = PilImage.new("RGB", (width, height + 2 * BAND_HEIGHT))
    picture.paste(PilImage.fromarray(enlarged), (0, BAND_HEIGHT))
    draw = ImageDraw.Draw(picture)
    if path is not None:
        _draw_path(draw, (path + 0.5) * factor + (0.0, BAND_HEIGHT))
        for y in (0, height + BAND_HEIGHT):  # what left the image
            draw.rectangle((0, y, width, y + BAND_HEIGHT - 1), fill=(0, 0, 0))
    for text, y in ((above, 0), (below, height + BAND_HEIGHT)):
        draw.text((2, y + 2), _fitting(draw, text, width - 4), fill=(255, 255, 255))
    return np.array(picture)


def _draw_path(draw: ImageDraw.ImageDraw, points: F64) -> None:
    shades = np.linspace(0.0, 1.0, max(len(points) - 1, 1))
    # Far beyond the edges Pillow's integers overflow.
    seen = [bool((np.abs(point) < FAR_PIXELS).all()) for point in points]  # no NaN is
    for k, shade in enumerate(shades[: len(points) - 1]):
        if not (seen[k] and seen[k + 1]):
            continue
        mixed = (1 - shade) * np.array(NOW) + shade * np.array(LATER)
        colour = tuple(int(255 * part) for part in mixed)
        draw.line([*map(float, points[k]), *map(float, points[k + 1])], fill=colour, width=2)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text on one line, cut where the image ends; letters that the font lacks become '?'."""
    line = " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")
    if draw.textlength(line) <= width:
        return line
    while line and draw.textlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."

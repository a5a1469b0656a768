"""Videos of recorded episodes: the outside view, both cameras, the instruction, the outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.sim.recording import RecordedEpisode
from thor_policy_ros.types import U8

VIEW_PX = (480, 360)
CAMERA_PX = VIEW_PX[1] // 2
CAPTION_PX = 40
VIDEO_PX = (VIEW_PX[0] + CAMERA_PX, VIEW_PX[1] + CAPTION_PX)
LINGER_FRAMES = 12
"""Frames for which an episode's last picture stays."""

_BACKGROUND = (24, 26, 30)
_PLAIN = (235, 235, 235)
_SOLVED = (70, 190, 90)
_FAILED = (230, 80, 70)


def film_frames(env: TabletopArm, episode: RecordedEpisode) -> Iterator[U8]:
    """u8[H,W,3] pictures of one episode, in order. Changes the state of `env`."""
    env.reset(episode.seed, episode.speed_m_s, episode.instruction)
    picture: U8 | None = None
    last = len(episode.poses) - 1
    for number, pose in enumerate(episode.poses):
        env.show(pose)
        outcome = episode.outcome if number == last else "running"
        picture = _compose(env, f"“{episode.instruction}”", outcome)
        yield picture
    if picture is not None:
        yield from [picture] * LINGER_FRAMES


def write_video(
    episodes: Sequence[RecordedEpisode],
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render `episodes`, one after the other, to an mp4 (H.264) in real time.

    progress: called with the number of episodes done and in all. ValueError for no episodes.
    """
    if not episodes:
        raise ValueError("no episode was recorded, so there is nothing to film")
    from imageio_ffmpeg import write_frames

    env = TabletopArm()
    writer = write_frames(
        str(path),
        VIDEO_PX,
        fps=round(1.0 / episodes[0].frame_dt_s),
        codec="libx264",
        quality=7,
        macro_block_size=4,
        output_params=["-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    try:
        for done, episode in enumerate(episodes):
            for picture in film_frames(env, episode):
                writer.send(np.ascontiguousarray(picture))
            if progress is not None:
                progress(done + 1, len(episodes))
    finally:
        writer.close()


def _compose(env: TabletopArm, text: str, outcome: str) -> U8:
    canvas = Image.new("RGB", VIDEO_PX, _BACKGROUND)
    canvas.paste(Image.fromarray(env.render(*VIEW_PX)), (0, 0))
    for number, image in enumerate(env.images().values()):
        seen = Image.fromarray(image).resize((CAMERA_PX, CAMERA_PX), Image.Resampling.NEAREST)
        canvas.paste(seen, (VIEW_PX[0], number * CAMERA_PX))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=18)
    baseline = VIEW_PX[1] + 9
    draw.text((12, baseline), text, font=font, fill=_PLAIN)
    if outcome != "running":
        colour = _SOLVED if outcome == "success" else _FAILED
        draw.text((VIDEO_PX[0] - 12, baseline), outcome, font=font, fill=colour, anchor="ra")
    return np.asarray(canvas)

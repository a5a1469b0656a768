"""Films of episodes: what the base camera saw, as an mp4 in real time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from thor_policy_ros.evaluation.libero.episode import FILM_HZ
from thor_policy_ros.evaluation.libero.settings import Played
from thor_policy_ros.sim.libero.wire import CAMERA_PX


def write_film(played: Played, folder: Path) -> Path | None:
    """Returns the file, None for an episode without pictures."""
    if not played.film:
        return None
    from imageio_ffmpeg import write_frames

    record = played.record
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{record.backend}_task_{record.task:02d}_trial_{record.trial:02d}_{record.outcome}.mp4"
    writer = write_frames(
        str(folder / name),
        (CAMERA_PX, CAMERA_PX),
        fps=FILM_HZ,
        codec="libx264",
        quality=7,
        output_params=["-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    try:
        for picture in played.film:
            writer.send(np.ascontiguousarray(Image.open(io.BytesIO(picture)).convert("RGB")))
    finally:
        writer.close()
    return folder / name

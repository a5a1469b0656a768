"""The worst moments of a recording, with the images that the policy saw then."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from thor_policy_ros.evaluation.bag import Bag, RecordedFrame
from thor_policy_ros.evaluation.report_frames import Frames
from thor_policy_ros.types import U8

EACH = 3
LARGEST_SIDE = 320  # pixels of an image in the page
SMALLEST_SIDE = 160  # smaller ones are shown larger, pixel by pixel
JPEG_QUALITY = 85


@dataclass
class Moment:
    """One frame and why it is shown. images: data URIs by camera slot; missing: why there are
    none. at_s: since the recording began.
    """

    at_s: float
    frame: RecordedFrame
    why: list[str]
    images: dict[str, str] = field(default_factory=dict)
    missing: str = ""


def worst_moments(frames: Frames) -> list[Moment]:
    """The slowest frames, those with the oldest prefix, and refused chunks; in order of time."""
    found: dict[int, Moment] = {}

    def add(index: int, why: str) -> None:
        frame = frames.rows[index]
        moment = found.setdefault(index, Moment(float(frames.times_s[index]), frame, []))
        moment.why.append(why)

    for figure, words in (("total_ms", "slowest"), ("prefix_age_ms", "oldest prefix")):
        values = np.where(frames.computed, np.nan_to_num(frames.figure(figure)), 0.0)
        order = np.argsort(-values, kind="stable")[:EACH]
        for place, index in enumerate(order.tolist(), 1):
            if values[index] > 0:
                nth = "" if place == 1 else f" (number {place})"
                add(index, f"{words}{nth}: {values[index]:.0f} ms")
    refused = [k for k, kind in enumerate(frames.kinds) if kind == "refused"]
    for index in refused[:EACH]:
        add(index, frames.rows[index].decision)
    return [found[index] for index in sorted(found)]


def add_images(bag: Bag, moments: list[Moment]) -> None:
    """What each was computed from, where the bag holds it."""
    if not bag.parameters:
        for moment in moments:
            moment.missing = "the bag does not say which camera is which"
        return
    by_frame = {id(moment.frame): moment for moment in moments}
    for frame, observation in bag.observations([moment.frame for moment in moments]):
        moment = by_frame[id(frame)]
        if isinstance(observation, str):
            moment.missing = observation
        else:
            moment.images = _uris(observation.images)


def _uris(images: Mapping[str, U8]) -> dict[str, str]:
    return {slot: jpeg_uri(image) for slot, image in images.items()}


def jpeg_uri(image: U8) -> str:
    """u8[H,W,3] RGB as a data URI, not larger than a page needs."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    elif longest < SMALLEST_SIDE:
        by = -(-SMALLEST_SIDE // longest)
        size = (picture.width * by, picture.height * by)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")

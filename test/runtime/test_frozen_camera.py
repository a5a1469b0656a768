"""A camera that sends one picture again and again is noticed; one that looks at a still scene
through a sensor is not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.frozen_camera import BANDS, THAWED_AFTER, FrozenWatch, sample
from thor_policy_ros.runtime.latest_frames import LatestFrames, NotReady
from thor_policy_ros.types import Observation

RATE_HZ = 30.0
SHAPE = (120, 160, 3)


def noise(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


class Camera:
    """Puts pictures at RATE_HZ; `now_s` is the newest stamp."""

    def __init__(self, after_s: float = 1.0, refuse: bool = False) -> None:
        self.frames = LatestFrames(("base",), 0, max_age_s=0.2, max_skew_s=0.1)
        self.frames.frozen_after_s, self.frames.refuse_frozen = after_s, refuse
        self.frames.set_prompt("go")
        self.now_s = 10.0

    def show(self, picture: np.ndarray) -> None:
        self.now_s += 1 / RATE_HZ
        self.frames.put_image("base", picture.copy(), self.now_s)

    def freeze(self, seconds: float, picture: np.ndarray | None = None) -> None:
        picture = noise(0) if picture is None else picture
        for _ in range(round(seconds * RATE_HZ)):
            self.show(picture)

    @property
    def frozen(self) -> bool:
        return "base" in self.frames.frozen


def test_the_same_picture_with_new_stamps_is_frozen_after_its_time_and_not_before() -> None:
    camera = Camera(after_s=1.0)
    camera.freeze(0.95)
    assert not camera.frozen
    camera.freeze(0.2)
    assert camera.frozen
    assert camera.frames.same_picture_s["base"] == pytest.approx(1.15, abs=0.06)


def test_noise_of_one_pixel_is_life() -> None:
    """One that is not among those looked at first, in a picture that is else the same."""
    camera = Camera(after_s=0.5)
    still = noise(1)
    for k in range(120):
        picture = still.copy()
        picture[119, 1 + k % 2, 0] ^= 1
        camera.show(picture)
        assert not camera.frozen
    assert sample(still) == sample(picture), "it is not in the sample"


def test_a_picture_sent_twice_or_at_another_size_is_no_frozen_camera() -> None:
    camera = Camera(after_s=0.1)
    for k in range(60):
        camera.show(noise(k // 4))
        assert not camera.frozen
    for k in range(60):
        camera.show(np.zeros((32 + k % 2, 32, 3), np.uint8))
        assert not camera.frozen


def test_the_same_message_delivered_often_with_one_stamp_is_not_frozen() -> None:
    camera = Camera(after_s=0.5)
    for _ in range(100):
        camera.frames.put_image("base", noise(3), 10.0)
    assert not camera.frozen


def test_it_thaws_after_lasting_change_alone() -> None:
    """One new picture between frozen ones, as from a driver that stutters, does not flicker."""
    camera = Camera(after_s=1.0)
    camera.freeze(1.2)
    for k in range(3):
        camera.show(noise(100 + k))
        assert camera.frozen
        camera.freeze(0.2, noise(100 + k))
        assert camera.frozen
    for k in range(THAWED_AFTER):
        camera.show(noise(200 + k))
    assert not camera.frozen


def test_it_stops_inference_only_where_told_and_says_why() -> None:
    camera = Camera(after_s=1.0, refuse=True)
    camera.freeze(1.2)
    found = camera.frames.snapshot(camera.now_s)
    assert isinstance(found, NotReady)
    assert found.reasons == (
        "base: frozen, the same picture for 1.2 s with new stamps; see its driver",
    )
    camera.frames.refuse_frozen = False
    assert isinstance(camera.frames.snapshot(camera.now_s), Observation)
    assert camera.frozen, "still told"
    camera.frames.refuse_frozen = True
    for k in range(THAWED_AFTER):
        assert camera.frozen
        camera.show(noise(50 + k))
    assert isinstance(camera.frames.snapshot(camera.now_s), Observation)


def test_off_it_looks_at_nothing_and_forgets_what_it_knew() -> None:
    camera = Camera(after_s=1.0)
    camera.freeze(1.2)
    camera.frames.frozen_after_s = 0.0
    camera.freeze(0.1)
    assert not camera.frozen and np.isnan(camera.frames.same_picture_s["base"])
    camera.freeze(5.0)
    assert not camera.frozen
    camera.frames.frozen_after_s = 1.0
    camera.freeze(0.9)
    assert not camera.frozen
    camera.freeze(0.3)
    assert camera.frozen
    camera.frames.reset()
    assert not camera.frozen


@given(st.lists(st.integers(0, 1), max_size=80), st.sampled_from([0.1, 0.5, 1.0]))
def test_it_is_never_frozen_before_its_time_nor_fine_after_a_long_freeze(
    same: list[int], after_s: float
) -> None:
    watch, since_s, number, repeats = FrozenWatch(), 0.0, 0, 0
    for k, one in enumerate([0, *same]):
        at_s = k / RATE_HZ
        if not one:
            since_s, number, repeats = at_s, number + 1, 0
        else:
            repeats += 1
        before = watch.frozen
        picture = np.full((16, 16, 3), number % 256, np.uint8)
        watch.add(picture, sample(picture), at_s, after_s)
        long = at_s - since_s >= after_s and repeats >= BANDS
        assert watch.frozen or not long
        if watch.frozen and not before:
            assert long


def test_watching_costs_a_camera_little_whatever_its_size() -> None:
    """Of the callback's thread; 25 us and 0.4 ms were measured for 1920x1080."""
    pictures = [noise(k, (1080, 1920, 3)) for k in range(2)]
    costs = {}
    for name, shown in (("moving", pictures), ("frozen", [pictures[0], pictures[0].copy()])):
        camera, spent = Camera(after_s=0.1), []
        for k in range(60):
            begun = time.thread_time()
            camera.frames.put_image("base", shown[k % 2], 10.0 + k / RATE_HZ)
            spent.append(time.thread_time() - begun)
        costs[name] = float(np.median(spent))
        assert camera.frozen == (name == "frozen")
    assert costs["moving"] < 0.5e-3 and costs["frozen"] < 5e-3, costs

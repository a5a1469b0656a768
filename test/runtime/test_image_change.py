"""How pictures are compared: what counts as changed, and until when."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.image_change import (
    GRID,
    HYSTERESIS,
    ChangeWatch,
    change_between,
    exceeds,
    small,
)

RANDOM = np.random.default_rng(0)


def picture(level: int = 100, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (480, 640), (37, 224), (8, 8), (1, 3)])
def test_small_is_the_block_mean_at_any_size(height, width):
    found = small(picture(51, height, width))
    assert found.shape == (GRID, GRID) and found.dtype == np.float32
    assert found == pytest.approx(0.2)


def test_blocks_are_where_they_should_be():
    image = picture(0, 128, 128)
    image[:4, 4:8] = 255
    found = small(image)
    assert found[0, 1] == pytest.approx(1.0)
    assert found.sum() == pytest.approx(1.0)


def test_the_figures_of_a_change():
    image = picture(100)
    image[:16, :16] += 51  # one tile of sixteen, by a fifth of full scale
    change = change_between(small(picture(100)), small(image))
    assert change.mean == pytest.approx(0.2 / 16)
    assert change.worst_tile == pytest.approx(0.2)
    assert change.score == pytest.approx(0.1)


def test_noise_averages_out_and_a_small_object_does_not():
    still = picture(120, 480, 640)
    noise = RANDOM.integers(-12, 13, still.shape)
    noisy = (still + noise).astype(np.uint8)
    moved = still.copy()
    moved[200:260, 300:360] = 220
    first = small(still)
    assert change_between(first, small(noisy)).score < 0.006
    assert change_between(first, small(moved)).score > 0.015


def test_the_same_picture_has_not_changed():
    image = RANDOM.integers(0, 256, (64, 64, 3), np.uint8)
    assert change_between(small(image), small(image.copy())).score == 0.0


@pytest.mark.parametrize(
    ("score", "threshold", "before", "expected"),
    [
        (0.05, 0.04, False, True),
        (0.03, 0.04, False, False),
        (0.03, 0.04, True, True),
        (0.01, 0.04, True, False),
        (1.0, 0.0, True, False),
    ],
)
def test_hysteresis_by_example(score, threshold, before, expected):
    assert exceeds(score, threshold, before) is expected


@given(st.floats(0, 1), st.floats(0.001, 1), st.booleans())
def test_hysteresis_only_ever_prolongs_a_change(score, threshold, before):
    now = exceeds(score, threshold, before)
    assert now or score <= threshold
    assert not now or score > threshold * HYSTERESIS


class TestWatch:
    def watch(self) -> ChangeWatch:
        watch = ChangeWatch()
        assert watch.look({"base": picture(), "wrist": picture()}, 0.02) == {"base", "wrist"}
        watch.encoded(["base", "wrist"])
        return watch

    def test_cameras_are_judged_one_by_one(self):
        watch = self.watch()
        assert watch.look({"base": picture(), "wrist": picture(120)}, 0.02) == {"wrist"}
        assert watch.scores == pytest.approx({"base": 0.0, "wrist": 20 / 255})

    def test_a_slow_drift_adds_up(self):
        """Against the picture that was encoded, not the one before."""
        watch = self.watch()
        found = [watch.look({"base": picture(100 + k)}, 0.02) for k in range(8)]
        assert [bool(x) for x in found] == [False] * 6 + [True] * 2

    def test_what_was_encoded_anew_is_compared_anew_and_the_rest_is_not(self):
        watch = self.watch()
        both = {"base": picture(104), "wrist": picture(120)}
        assert watch.look(both, 0.02) == {"wrist"}
        watch.encoded(["wrist"])
        assert watch.look(both, 0.02) == frozenset()
        assert watch.scores == pytest.approx({"base": 4 / 255, "wrist": 0.0})

    def test_after_a_change_it_must_be_really_still(self):
        watch = self.watch()
        levels = (106, 103, 102, 103)  # 0.0235, 0.0118, 0.0078, 0.0118 of full scale
        found = [bool(watch.look({"base": picture(k)}, 0.02)) for k in levels]
        assert found == [True, True, False, False]

    def test_what_will_have_changed_when_it_matters(self):
        watch = self.watch()
        assert watch.look({"base": picture(104)}, 0.02) == frozenset()
        assert watch.look({"base": picture(104)}, 0.02, growth=1.5) == {"base"}

    def test_forgotten_cameras_have_to_be_encoded(self):
        watch = self.watch()
        watch.forget()
        assert watch.look({"base": picture()}, 0.02) == {"base"}
        assert watch.scores == {}

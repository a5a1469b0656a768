"""Latest frames: newest wins, nothing is copied, and a missing observation has its reasons."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.runtime.latest_frames import LatestFrames, NotReady
from thor_policy_ros.types import Observation

BASE, WRIST = "base_0_rgb", "left_wrist_0_rgb"


def image(value: int = 0) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def frames(state_dim: int = 2) -> LatestFrames:
    return LatestFrames((BASE, WRIST), state_dim, max_age_s=0.5, max_skew_s=0.1)


def filled(stamp_s: float = 10.0) -> LatestFrames:
    latest = frames()
    latest.put_image(BASE, image(1), stamp_s)
    latest.put_image(WRIST, image(2), stamp_s)
    latest.put_state(np.array([1.0, 2.0]), stamp_s)
    latest.set_prompt("pick up the red cube")
    return latest


def observation(latest: LatestFrames, now_s: float) -> Observation:
    got = latest.snapshot(now_s)
    assert isinstance(got, Observation), got
    return got


def reasons(latest: LatestFrames, now_s: float) -> tuple[str, ...]:
    got = latest.snapshot(now_s)
    assert isinstance(got, NotReady)
    return got.reasons


class TestObservation:
    def test_holds_the_newest_of_everything(self):
        latest = filled()
        latest.put_image(BASE, image(7), 10.03)
        latest.put_state(np.array([3.0, 4.0]), 10.05)
        latest.set_prompt("follow the blue ball")
        got = observation(latest, 10.1)
        assert (got.images[BASE][0, 0, 0], got.images[WRIST][0, 0, 0]) == (7, 2)
        assert got.state.tolist() == [3.0, 4.0]
        assert got.state.dtype == np.float32
        assert got.prompt == "follow the blue ball"

    def test_its_stamp_is_that_of_the_oldest_input(self):
        latest = filled(10.0)
        latest.put_image(BASE, image(), 10.05)
        latest.put_state(np.zeros(2), 10.08)
        assert observation(latest, 10.1).stamp_s == 10.0

    def test_images_are_not_copied_and_cannot_be_written_through_it(self):
        latest, mine = filled(), image(5)
        latest.put_image(BASE, mine, 10.01)
        got = observation(latest, 10.1).images[BASE]
        assert np.shares_memory(got, mine)
        with pytest.raises(ValueError, match="read-only"):
            got[0, 0, 0] = 1
        assert mine.flags.writeable

    def test_the_state_is_copied(self):
        latest, mine = filled(), np.array([1.0, 2.0], np.float32)
        latest.put_state(mine, 10.01)
        mine[:] = 9.0
        assert observation(latest, 10.1).state.tolist() == [1.0, 2.0]

    def test_a_later_put_does_not_change_it(self):
        latest = filled()
        got = observation(latest, 10.0)
        latest.put_image(BASE, image(9), 10.05)
        assert got.images[BASE][0, 0, 0] == 1

    def test_a_policy_without_state_waits_for_none(self):
        latest = LatestFrames((BASE,), 0, max_age_s=0.5, max_skew_s=0.1)
        latest.put_image(BASE, image(), 10.0)
        latest.set_prompt("")
        got = observation(latest, 10.0)
        assert got.state.shape == (0,)
        assert got.prompt == ""


class TestReasons:
    def test_every_missing_input_is_named(self):
        got = reasons(frames(), 10.0)
        assert len(got) == 4
        for name, reason in zip((BASE, WRIST, "state", "prompt"), got, strict=True):
            assert reason.startswith(f"{name}: missing")

    def test_a_stale_input_is_named_with_its_age(self):
        latest = filled(10.0)
        latest.put_image(BASE, image(), 10.55)
        latest.put_state(np.zeros(2), 10.55)
        assert reasons(latest, 10.6) == (f"{WRIST}: stale, 0.600 s old (at most 0.5 s)",)

    def test_an_input_from_the_future_is_named(self):
        latest = filled(10.0)
        latest.put_state(np.zeros(2), 10.2)
        (reason,) = reasons(latest, 10.0)
        assert reason.startswith("state: future, stamped 0.200 s ahead")

    def test_skewed_inputs_are_named(self):
        latest = filled(10.0)
        latest.put_state(np.zeros(2), 10.15)
        assert reasons(latest, 10.2) == (
            f"{BASE}: skewed, 0.150 s older than state (at most 0.1 s)",
        )

    def test_a_state_that_is_not_finite_is_named(self):
        latest = filled(10.0)
        latest.put_state(np.array([0.0, np.nan]), 10.0)
        assert reasons(latest, 10.0) == ("state: elements [1] are not finite",)

    def test_thresholds_may_change_while_running(self):
        latest = filled(10.0)
        assert reasons(latest, 10.8)
        latest.max_age_s = 1.0
        assert observation(latest, 10.8)
        latest.put_state(np.zeros(2), 10.5)
        assert reasons(latest, 10.8)
        latest.max_skew_s = 0.6
        assert observation(latest, 10.8)

    def test_reset_forgets_inputs_prompt_and_counters(self):
        latest = filled()
        latest.put_image(BASE, image(), 10.01)
        latest.reset()
        assert len(reasons(latest, 10.0)) == 4
        assert latest.drops == {BASE: 0, WRIST: 0}

    @given(
        st.floats(9, 11), st.floats(9, 11), st.floats(9, 11), st.floats(0.01, 2), st.floats(0.01, 2)
    )
    def test_an_observation_is_fresh_and_of_one_moment(self, base, wrist, state, age, skew):
        """And if it is not given, one of the conditions is indeed broken."""
        latest = LatestFrames((BASE, WRIST), 1, max_age_s=age, max_skew_s=skew)
        latest.put_image(BASE, image(), base)
        latest.put_image(WRIST, image(), wrist)
        latest.put_state(np.zeros(1), state)
        latest.set_prompt("x")
        stamps, now_s = (base, wrist, state), 10.0
        got = latest.snapshot(now_s)
        sane = (
            all(now_s - s <= age and s - now_s <= 0.05 for s in stamps)
            and max(stamps) - min(stamps) <= skew
        )
        assert isinstance(got, Observation) == sane
        if isinstance(got, Observation):
            assert got.stamp_s == min(stamps)
        else:
            assert got.reasons


class TestDrops:
    def test_a_frame_replaced_before_it_was_read_is_dropped(self):
        latest = filled()
        for k in range(3):
            latest.put_image(BASE, image(k), 10.01 + k * 0.01)
        assert latest.drops == {BASE: 3, WRIST: 0}

    def test_a_frame_that_was_read_is_not(self):
        latest = filled()
        for k in range(3):
            observation(latest, 10.05)
            latest.put_image(BASE, image(k), 10.01 + k * 0.01)
        assert latest.drops == {BASE: 0, WRIST: 0}

    def test_a_snapshot_without_observation_reads_nothing(self):
        latest = filled()
        assert reasons(latest, 99.0)
        latest.put_image(BASE, image(), 10.01)
        assert latest.drops[BASE] == 1

    def test_a_frame_that_comes_late_is_dropped(self):
        latest = filled(10.0)
        latest.put_image(BASE, image(9), 9.9)
        assert observation(latest, 10.0).images[BASE][0, 0, 0] == 1
        assert latest.drops[BASE] == 1

    def test_a_clock_that_went_back_is_followed(self):
        latest = filled(10.0)
        latest.put_image(BASE, image(9), 1.0)
        latest.put_image(WRIST, image(9), 1.0)
        latest.put_state(np.zeros(2), 1.0)
        assert observation(latest, 1.0).images[BASE][0, 0, 0] == 9


class TestAges:
    def test_of_each_input_none_before_it_came(self):
        latest = frames()
        latest.put_image(BASE, image(), 10.0)
        assert latest.input_ages_s(10.25) == {BASE: 0.25, WRIST: None, "state": None}


class TestMistakes:
    def test_an_unknown_slot_is_told_the_slots(self):
        with pytest.raises(ValueError, match=r"unknown camera slot 'left'; choose one of"):
            frames().put_image("left", image(), 0.0)

    @pytest.mark.parametrize(
        "wrong", [np.zeros((4, 6, 3), np.float32), np.zeros((4, 6), np.uint8), image()[..., :2]]
    )
    def test_an_image_wants_rgb_bytes(self, wrong):
        with pytest.raises(ValueError, match=r"wants u8\[H,W,3\]"):
            frames().put_image(BASE, wrong, 0.0)

    def test_a_state_wants_its_length(self):
        with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
            frames().put_state(np.zeros(3), 0.0)

    @pytest.mark.parametrize("stamp_s", [np.nan, np.inf])
    def test_a_stamp_wants_to_be_finite(self, stamp_s):
        with pytest.raises(ValueError, match="finite stamp"):
            frames().put_image(BASE, image(), stamp_s)
        with pytest.raises(ValueError, match="finite stamp"):
            frames().put_state(np.zeros(2), stamp_s)

    @pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
    def test_thresholds_want_positive_seconds(self, value):
        latest = frames()
        with pytest.raises(ValueError, match="max_age_s"):
            latest.max_age_s = value
        with pytest.raises(ValueError, match="max_skew_s"):
            latest.max_skew_s = value

    @pytest.mark.parametrize("slots", [(), (BASE, BASE)])
    def test_slots_want_to_be_distinct(self, slots):
        with pytest.raises(ValueError, match="camera slots"):
            LatestFrames(slots, 1, 0.5, 0.1)


def test_threads_see_whole_frames_and_no_frame_is_lost_from_the_count():
    """Writers put images whose pixels all equal their stamp; a reader checks every snapshot."""
    puts = 400
    latest = LatestFrames((BASE, WRIST), 1, max_age_s=1e6, max_skew_s=1e6)
    latest.set_prompt("x")
    latest.put_state(np.zeros(1), 0.0)
    started = threading.Barrier(3)

    def write(slot: str) -> None:
        started.wait()
        for k in range(puts):
            latest.put_image(slot, image(k % 251), float(k))

    writers = [threading.Thread(target=write, args=(slot,)) for slot in (BASE, WRIST)]
    for writer in writers:
        writer.start()
    started.wait()
    read: dict[str, list[np.ndarray]] = {BASE: [], WRIST: []}
    while True:
        last = not any(writer.is_alive() for writer in writers)
        got = latest.snapshot(float(puts))
        if isinstance(got, Observation):
            for slot, pixels in got.images.items():
                assert (pixels == pixels[0, 0, 0]).all(), "a torn frame"
                if not read[slot] or read[slot][-1] is not pixels:
                    read[slot].append(pixels)
        if last:
            break
    for slot in (BASE, WRIST):
        assert latest.drops[slot] + len(read[slot]) == puts
        assert read[slot][-1][0, 0, 0] == (puts - 1) % 251

"""The way of a frame between the hosts: what is known of it, and NaN for what is not."""

from __future__ import annotations

import math

import pytest

from thor_policy_ros.runtime.frame_hops import HOPS, Answer, FrameHops

ANSWER = Answer(0.002, 0.005, 0.003, 0.120)


def test_nothing_is_known_at_first() -> None:
    hops = FrameHops().of_frame({"base": 1.0}, 2.0)
    assert all(math.isnan(getattr(hops, f"{name}_ms")) for name in HOPS)
    assert hops.known() == {}


def test_the_camera_that_was_longest_under_way_counts() -> None:
    hops = FrameHops()
    hops.arrived("base", 1.0, received_s=1.010, decode_s=0.001)
    hops.arrived("wrist", 1.0, received_s=1.030, decode_s=0.002)
    found = hops.of_frame({"base": 1.0, "wrist": 1.0, "state": 1.04}, begun_s=1.050)
    assert found.camera_transport_ms == pytest.approx(30.0)
    assert found.camera_decode_ms == pytest.approx(2.0)
    assert found.camera_wait_ms == pytest.approx(18.0)


def test_it_is_the_image_that_the_frame_used_not_a_newer_one() -> None:
    hops = FrameHops()
    hops.arrived("base", 1.0, 1.010, 0.0)
    hops.arrived("base", 1.1, 1.190, 0.0)
    assert hops.of_frame({"base": 1.0}, 1.2).camera_transport_ms == pytest.approx(10.0)
    assert math.isnan(hops.of_frame({"base": 0.9}, 1.2).camera_transport_ms)


def test_clocks_that_differ_show_as_a_negative_way() -> None:
    hops = FrameHops()
    hops.arrived("base", 5.0, 4.9, 0.0)
    assert hops.of_frame({"base": 5.0}, 4.95).camera_transport_ms == pytest.approx(-100.0)


def test_an_answer_is_told_once() -> None:
    hops = FrameHops()
    hops.answered(ANSWER)
    first, second = hops.of_frame({}, 1.0), hops.of_frame({}, 1.1)
    assert set(first.known()) == {
        "chunk_transport",
        "chunk_handover",
        "feedback_transport",
        "observation_to_command",
    }
    assert first.chunk_handover_ms == pytest.approx(5.0)
    assert first.chunk_transport_ms == pytest.approx(2.0)
    assert first.observation_to_command_ms == pytest.approx(120.0)
    assert second.known() == {}

"""A cable that loses and delays frames, by its own arithmetic."""

from __future__ import annotations

import pytest

from thor_policy_ros.ros.cable_relay import Cable


def test_without_faults_a_frame_leaves_at_once_and_in_order() -> None:
    cable = Cable()
    for k in range(3):
        cable.put(1.0, 7, bytes([k]))
    assert cable.due(1.0) == [(7, b"\x00"), (7, b"\x01"), (7, b"\x02")]
    assert cable.next_s() is None


def test_a_frame_leaves_after_the_delay() -> None:
    cable = Cable()
    cable.delay_s = 0.05
    cable.put(1.0, 7, b"a")
    assert cable.due(1.049) == []
    assert cable.next_s() == pytest.approx(1.05)
    assert cable.due(1.051) == [(7, b"a")]


def test_about_the_share_that_is_asked_for_is_lost() -> None:
    cable = Cable()
    cable.loss = 0.05
    for _ in range(10_000):
        cable.put(1.0, 7, b"a")
    assert len(cable.due(1.0)) == pytest.approx(9_500, abs=100)


def test_a_cable_that_loses_all_carries_nothing() -> None:
    cable = Cable()
    cable.loss = 1.0
    cable.put(1.0, 7, b"a")
    assert cable.due(9.0) == []

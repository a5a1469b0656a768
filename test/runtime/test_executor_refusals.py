"""Chunks that are refused: the reason names what is wrong, and the motion does not change."""

import re

import numpy as np
import pytest
from support.motion import joint_limits

from thor_policy_ros.runtime.executor import ChunkExecutor
from thor_policy_ros.types import ActionChunk

JOINTS = ("shoulder", "elbow")
LIMITS = joint_limits(-2.0, 2.0, 1.0, 10.0, joints=2)
NOW_S = 50.0


def rows(value: float = 0.5, count: int = 10) -> np.ndarray:
    return np.full((count, 2), value, np.float32)


def with_value(value: float) -> np.ndarray:
    actions = rows()
    actions[3, 1] = value
    return actions


REFUSED = {
    "nan": (ActionChunk(with_value(np.nan), 0.1, NOW_S), JOINTS, "row 3, joint 'elbow'.*got nan"),
    "inf": (ActionChunk(with_value(-np.inf), 0.1, NOW_S), JOINTS, "row 3, joint 'elbow'.*got -inf"),
    "too many columns": (
        ActionChunk(np.zeros((10, 3), np.float32), 0.1, NOW_S),
        JOINTS,
        r"actions \[H,2\].*got \[10, 3\]",
    ),
    "too few columns": (
        ActionChunk(np.zeros((10, 1), np.float32), 0.1, NOW_S),
        JOINTS,
        r"got \[10, 1\]",
    ),
    "one axis": (ActionChunk(np.zeros(10, np.float32), 0.1, NOW_S), JOINTS, r"got \[10\]"),
    "no rows": (ActionChunk(rows(count=0), 0.1, NOW_S), JOINTS, "at least 2 rows, got 0"),
    "one row": (ActionChunk(rows(count=1), 0.1, NOW_S), JOINTS, "at least 2 rows, got 1"),
    "a missing joint": (
        ActionChunk(rows(), 0.1, NOW_S),
        ("shoulder", "wrist"),
        r"lacks the joints \['elbow'\]",
    ),
    "no joint names": (
        ActionChunk(rows(), 0.1, NOW_S),
        (),
        r"lacks the joints \['shoulder', 'elbow'\]",
    ),
    "an unknown joint": (
        ActionChunk(np.zeros((10, 3), np.float32), 0.1, NOW_S),
        (*JOINTS, "wrist"),
        "wants the joints.*got.*'wrist'",
    ),
    "a joint twice": (
        ActionChunk(np.zeros((10, 3), np.float32), 0.1, NOW_S),
        (*JOINTS, "elbow"),
        "each once",
    ),
    "dt 0": (ActionChunk(rows(), 0.0, NOW_S), JOINTS, "positive dt in s, got 0.0"),
    "dt negative": (ActionChunk(rows(), -0.1, NOW_S), JOINTS, "positive dt in s, got -0.1"),
    "dt nan": (ActionChunk(rows(), np.nan, NOW_S), JOINTS, "positive dt in s, got nan"),
    "dt inf": (ActionChunk(rows(), np.inf, NOW_S), JOINTS, "positive dt in s, got inf"),
    "stamp nan": (ActionChunk(rows(), 0.1, np.nan), JOINTS, "finite observed_at"),
    "stamp inf": (ActionChunk(rows(), 0.1, np.inf), JOINTS, "finite observed_at"),
    "an old stamp": (
        ActionChunk(rows(), 0.5, NOW_S - 1.01),
        JOINTS,
        r"1\.010 s ago \(at most 1 s\)",
    ),
    "stamp 0": (ActionChunk(rows(), 0.1, 0.0), JOINTS, "50.000 s ago"),
    "a future stamp": (ActionChunk(rows(), 0.1, NOW_S + 0.2), JOINTS, "0.200 s in the future"),
    "all rows in the past": (ActionChunk(rows(), 0.05, NOW_S - 0.5), JOINTS, "ran out 0.050 s ago"),
    "out of order": (ActionChunk(rows(), 0.1, NOW_S - 0.2), JOINTS, "before the one.*out of order"),
}


def running() -> ChunkExecutor:
    """In motion, executing a chunk observed at NOW_S - 0.1."""
    ex = ChunkExecutor(JOINTS, LIMITS, 0.01, max_chunk_age_s=1.0, max_future_s=0.05)
    ex.set_measured([0.0, 0.1], NOW_S - 0.1)
    assert ex.accept(ActionChunk(rows(-1.0), 0.1, NOW_S - 0.1), JOINTS, NOW_S - 0.1) == ""
    for k in range(10):
        ex.command(NOW_S - 0.1 + 0.01 * k)
    return ex


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name):
    chunk, joint_names, said = REFUSED[name]
    ex = running()
    with_reason = ex.accept(chunk, joint_names, NOW_S)
    assert with_reason
    assert re.search(said, with_reason), with_reason
    assert ex.stats.refused == 1


@pytest.mark.parametrize("name", REFUSED)
def test_the_motion_is_the_same_as_without_the_refused_chunk(name):
    chunk, joint_names, _ = REFUSED[name]
    ex, undisturbed = running(), running()
    for k in range(200):
        if k < 10:  # later the future would have come
            assert ex.accept(chunk, joint_names, NOW_S + 0.01 * k)
        got, expected = ex.command(NOW_S + 0.01 * k), undisturbed.command(NOW_S + 0.01 * k)
        assert (got.positions == expected.positions).all()
        assert (got.state, got.reason) == (expected.state, expected.reason)


@pytest.mark.parametrize("name", [n for n in REFUSED if n != "out of order"])
def test_a_refused_chunk_starts_no_motion(name):
    chunk, joint_names, _ = REFUSED[name]
    ex = ChunkExecutor(JOINTS, LIMITS, 0.01, max_chunk_age_s=1.0, max_future_s=0.05)
    ex.set_measured([0.0, 0.1], NOW_S)
    assert ex.accept(chunk, joint_names, NOW_S)
    assert ex.command(NOW_S).state == "waiting"


def test_an_older_chunk_is_taken_when_allowed():
    chunk, joint_names, _ = REFUSED["out of order"]
    assert running().accept(chunk, joint_names, NOW_S, allow_older=True) == ""


def test_a_chunk_of_the_same_observation_is_taken():
    """As a reused prefix gives."""
    ex = running()
    assert ex.accept(ActionChunk(rows(), 0.1, NOW_S - 0.1), JOINTS, NOW_S) == ""

"""The ways in which a chunk joins the one before it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.motion import joint_limits, positions

from thor_policy_ros.runtime.blending import BLENDINGS, Joining, Mean
from thor_policy_ros.runtime.executor import ChunkExecutor
from thor_policy_ros.runtime.trajectory import Trajectory
from thor_policy_ros.types import ActionChunk

DT_S = 0.01
FAST = joint_limits(-10, 10, 1e4, 1e7)


def line(*rows: float, start_s: float = 0.0, dt_s: float = 0.1) -> Trajectory:
    return Trajectory(np.array(rows)[:, None], start_s, dt_s, start_s + dt_s * (len(rows) - 1))


def chunk(*rows: float, observed_s: float) -> ActionChunk:
    return ActionChunk(np.array(rows, np.float32)[:, None], 0.1, observed_s)


def motion(blending: str, chunks: dict[float, ActionChunk], until_s: float) -> np.ndarray:
    """Commands at 100 Hz of an executor that accepts each chunk at its time; joint at 0."""
    executor = ChunkExecutor(("a",), FAST, DT_S, blending=blending, ensemble_decay=0.0)
    executor.set_measured([0.0], 0.0)
    path, waiting = [], dict(chunks)
    for tick in range(round(until_s / DT_S)):
        now_s = tick * DT_S
        for at_s in [t for t in waiting if t <= now_s]:
            assert executor.accept(waiting.pop(at_s), ("a",), now_s) == ""
        command = executor.command(now_s)
        path.append(math.nan if command.positions is None else command.positions[0])
    return np.array(path)


ZEROS, ONES = (0.0,) * 10, (1.0,) * 10
SWITCH = {0.0: chunk(*ZEROS, observed_s=0.0), 0.2: chunk(*ONES, observed_s=0.2)}


def test_latest_switches_at_once():
    path = motion("latest", SWITCH, 0.5)
    assert path[19] == 0.0 and path[21] == pytest.approx(1.0)


@pytest.mark.parametrize("blending", ["crossfade", "rtc"])
def test_crossfade_and_rtc_take_over_within_the_fade(blending):
    path = motion(blending, SWITCH, 0.5)
    assert path[25] == pytest.approx(0.5, abs=0.05) and path[31] == pytest.approx(1.0)
    assert np.abs(np.diff(path[1:])).max() < 0.2


def test_the_ensemble_ends_at_the_mean():
    path = motion("temporal_ensemble", SWITCH, 0.7)
    assert path[35:70] == pytest.approx(0.5)


def test_a_member_of_the_ensemble_leaves_over_its_last_row():
    mean = Mean((line(*ZEROS), line(*ONES, start_s=0.5)), decay=0.0)
    assert mean.preview(0.7).at[0] == pytest.approx(0.5)
    places = [mean.preview(t).at[0] for t in (0.8, 0.85, 0.9, 1.2)]
    assert places == pytest.approx([0.5, 1 / 1.5, 1.0, 1.0])


def test_older_members_count_less_by_row():
    mean = Mean((line(*ZEROS), line(*ONES, start_s=0.2)), decay=1.0)
    assert mean.preview(0.3).at[0] == pytest.approx(1 / (1 + math.exp(-2)))


def test_rows_in_the_past_are_dropped_in_every_mode():
    """A chunk that comes late is joined where it should be by now, not at its row 0."""
    late = chunk(*(5.0, 5.0, 5.0, *ONES[3:]), observed_s=0.0)
    for blending in BLENDINGS:
        path = motion(blending, {0.0: chunk(*ZEROS, observed_s=0.0), 0.3: late}, 0.8)
        assert np.nanmax(path) <= 1.0 + 1e-6, blending


def test_a_new_motion_knows_nothing_of_the_chunks_before():
    joining = Joining("temporal_ensemble")
    joining.join(line(*ZEROS), 0.0, 0.1)
    joining.forget()
    newest = line(*ONES, start_s=0.1)
    assert joining.join(newest, 0.1, 0.1) == (newest, 0.1)


@given(
    rows=st.lists(st.lists(positions, min_size=10, max_size=10), min_size=1, max_size=5),
    gap_s=st.floats(0.0, 0.4),
    decay=st.floats(0.0, 5.0),
    at_s=st.floats(0.0, 3.0),
    later_s=st.floats(0.0, 3.0),
)
def test_the_mean_stays_in_the_range_it_says(rows, gap_s, decay, at_s, later_s):
    members = tuple(line(*row, start_s=gap_s * k) for k, row in enumerate(rows))
    mean = Mean(members, decay)
    now, later = mean.preview(at_s), mean.preview(at_s + later_s)
    assert (now.low <= now.at).all() and (now.at <= now.high).all()
    assert (later.at >= now.low - 1e-9).all() and (later.at <= now.high + 1e-9).all()


@given(st.floats(0.0, 0.89), st.floats(0.0, 5.0))
def test_the_mean_moves_without_jumps(at_s, decay):
    mean = Mean((line(*ZEROS), line(*ONES, start_s=0.3), line(*ZEROS, start_s=0.5)), decay)
    step = mean.preview(at_s + 1e-4).at - mean.preview(at_s).at
    assert abs(float(step[0])) < 5e-3


@pytest.mark.parametrize(
    ("blending", "decay"), [("averaged", 0.5), ("rtc", -1.0), ("rtc", math.nan)]
)
def test_what_is_no_way_to_blend_is_refused(blending, decay):
    executor = ChunkExecutor(("a",), FAST, DT_S)
    with pytest.raises(ValueError, match=r"chunk_blending|ensemble_decay"):
        executor.set_blending(blending, decay)

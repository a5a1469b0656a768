"""The chunk executor under arbitrary chunks, clocks, measurements and joints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from hypothesis import event, given, note
from hypothesis import strategies as st
from support.motion import assert_limits_kept, control_dts_s, limits, positions

from thor_policy_ros.runtime.blending import BLENDINGS
from thor_policy_ros.runtime.executor import ChunkExecutor, Command
from thor_policy_ros.types import ActionChunk, JointLimits

JOINTS = ("a", "b")
inf32 = np.float32(np.inf)

any_float = st.floats(width=32) | st.floats(-3, 3, width=32)
any_time_s = st.floats() | st.floats(-2.0, 2.0)
leaps_s = st.floats(-200.0, 200.0) | st.floats(-0.2, 0.2)


@dataclass(frozen=True)
class Tick:
    """Control ticks, the first `leap_s` later or earlier than expected."""

    leap_s: float = 0.0
    count: int = 1


@dataclass(frozen=True)
class Arrival:
    """A chunk, observed `delay_s` before it arrives."""

    rows: tuple[tuple[float, ...], ...]
    joint_names: tuple[str, ...]
    dt_s: float
    delay_s: float


@dataclass(frozen=True)
class Measured:
    positions: tuple[float, float]


@dataclass(frozen=True)
class Blending:
    """The way to blend is set while the motion is under way."""

    name: str
    ensemble_decay: float


sane_rows = st.lists(st.tuples(positions, positions), min_size=2, max_size=12)
wild_rows = st.lists(st.tuples(any_float, any_float), min_size=0, max_size=4)
sane_arrivals = st.builds(
    Arrival,
    rows=sane_rows.map(tuple),
    joint_names=st.permutations(JOINTS).map(tuple),
    dt_s=st.floats(0.005, 0.5),
    delay_s=st.floats(-0.05, 0.6),
)
wild_arrivals = st.builds(
    Arrival,
    rows=(sane_rows | wild_rows).map(tuple),
    joint_names=st.lists(st.sampled_from("abc"), max_size=3).map(tuple),
    dt_s=any_time_s,
    delay_s=any_time_s,
)
ticks = st.builds(Tick, st.just(0.0) | st.floats(-0.02, 0.02) | leaps_s, st.integers(1, 20))
measurements = st.builds(Measured, st.tuples(positions, positions))
decays = st.just(0.0) | st.floats(0.0, 10.0)
blendings = st.builds(Blending, st.sampled_from(BLENDINGS), decays)
others = ticks | ticks | sane_arrivals | wild_arrivals | measurements | blendings
# A motion under way, then anything.
events = st.tuples(sane_arrivals, ticks, st.lists(others, min_size=12, max_size=40)).map(
    lambda parts: [parts[0], parts[1], *parts[2]]
)
times = st.fixed_dictionaries(
    {
        "crossfade_s": st.just(0.0) | st.floats(0.0, 0.5),
        "hold_timeout_s": st.floats(0.0, 0.5),
        "max_chunk_age_s": st.floats(0.1, 2.0),
        "max_measured_age_s": st.just(math.inf) | st.floats(0.1, 1.0),
        "max_lag_s": st.just(math.inf) | st.floats(0.1, 2.0),
        "blending": st.sampled_from(BLENDINGS),
        "ensemble_decay": decays,
    }
)


class Session:
    """Plays events to an executor and keeps what it commanded."""

    def __init__(self, limits: JointLimits, dt_s: float, times: dict[str, float]) -> None:
        self.executor = ChunkExecutor(JOINTS, limits, dt_s, **times)
        self.dt_s = dt_s
        self.now_s = 1000.0
        self.commands: list[Command] = []

    def play(self, event: Tick | Arrival | Measured | Blending) -> str:
        """'' or the reason of a refusal."""
        if isinstance(event, Tick):
            self.now_s += event.leap_s
            for _ in range(event.count):
                self.now_s += self.dt_s
                self.commands.append(self.executor.command(self.now_s))
            return ""
        if isinstance(event, Measured):
            return self.executor.set_measured(event.positions, self.now_s)
        if isinstance(event, Blending):
            self.executor.set_blending(event.name, event.ensemble_decay)
            return ""
        rows = np.array(event.rows, np.float32).reshape(-1, 2)
        chunk = ActionChunk(rows, event.dt_s, self.now_s - event.delay_s)
        return self.executor.accept(chunk, event.joint_names, self.now_s)

    @property
    def path(self) -> list[np.ndarray]:
        return [c.positions for c in self.commands if c.positions is not None]


def widened(limits: JointLimits, start: tuple[float, float]) -> JointLimits:
    """`limits`, and where the joints were when the motion began."""
    low, high = np.nextafter(np.float32(start), -inf32), np.nextafter(np.float32(start), inf32)
    return replace(
        limits, lower=np.minimum(limits.lower, low), upper=np.maximum(limits.upper, high)
    )


def assert_never_farther_out(path: Sequence[npt.ArrayLike], limits: JointLimits) -> None:
    """Inside the position limits for good, or on the way there."""
    rows = np.array(path)
    outside = np.maximum(np.maximum(limits.lower - rows, rows - limits.upper), 0.0)
    assert (np.diff(outside, axis=0) <= 0.0).all(), np.diff(outside, axis=0).max(0)


@given(limits(2), control_dts_s, times, st.tuples(positions, positions), events)
def test_every_command_keeps_every_limit(limits, dt_s, times, start, events):
    session = Session(limits, dt_s, {**times, "start_tolerance": math.inf})
    session.play(Measured(start))
    begun = None
    for happening in events:
        if not session.path and isinstance(happening, Measured):
            start = happening.positions
        note(f"{happening} -> {session.play(happening)}")
        if session.path and begun is None:
            begun = start
    event(f"{len(session.path) // 20 * 20} commands or more")
    event(f"states {sorted({c.state for c in session.commands})}")
    if begun is not None:
        assert_limits_kept(session.path, begun, widened(limits, begun), dt_s)
        assert_never_farther_out([begun, *session.path], limits)


@given(limits(2), control_dts_s, times, st.tuples(positions, positions), events)
def test_once_started_there_is_always_a_finite_command(limits, dt_s, times, start, events):
    session = Session(limits, dt_s, {**times, "start_tolerance": math.inf})
    session.play(Measured(start))
    for happening in events:
        session.play(happening)
    states = [c.state for c in session.commands]
    if "tracking" in states:
        since = next(k for k, state in enumerate(states) if state != "waiting")
        assert "waiting" not in states[since:]
    for command in session.commands:
        assert (command.positions is None) == (command.state == "waiting")
        assert (command.reason == "") == (command.state == "tracking")
        if command.positions is not None:
            assert np.isfinite(command.positions).all() and np.isfinite(command.velocities).all()


@given(limits(2), control_dts_s, times, st.tuples(positions, positions), events)
def test_refused_chunks_leave_no_trace_in_the_motion(limits, dt_s, times, start, events):
    """A second executor that is shown only the accepted chunks commands the same."""
    session, twin = (
        Session(limits, dt_s, {**times, "start_tolerance": math.inf}) for _ in range(2)
    )
    for happening in [Measured(start), *events]:
        refused = session.play(happening)
        if isinstance(happening, Arrival) and refused:
            continue
        assert twin.play(happening) == refused
    assert len(session.commands) == len(twin.commands)
    for one, other in zip(session.commands, twin.commands, strict=True):
        assert (one.state, one.reason) == (other.state, other.reason)
        if one.positions is not None:
            assert (one.positions == other.positions).all()


@given(
    limits(2),
    control_dts_s,
    times,
    st.tuples(positions, positions),
    st.lists(sane_arrivals | ticks, min_size=6, max_size=20),
)
def test_the_robot_comes_to_rest_when_no_chunk_comes_any_more(limits, dt_s, times, start, events):
    session = Session(limits, dt_s, {**times, "start_tolerance": math.inf})
    for happening in [Measured(start), *events]:
        session.play(happening)
    if not session.path:
        return
    session.play(Tick(leap_s=10.0))
    assert session.commands[-1].state == "stopped"
    slowest = np.abs(session.commands[-1].velocities) / limits.acceleration / dt_s
    for _ in range(math.ceil(slowest.max()) + 1):
        session.play(Tick())
    assert session.commands[-1].state == "stopped"
    assert np.abs(session.commands[-1].velocities).max() < 1e-7
    stood = session.commands[-1].positions
    session.play(Tick())
    assert np.allclose(session.commands[-1].positions, stood, atol=1e-9, rtol=0)


@given(limits(2), times, st.tuples(positions, positions), sane_rows, st.permutations(JOINTS))
def test_the_order_of_columns_does_not_matter(limits, times, start, rows, names):
    straight, permuted = (
        Session(limits, 0.01, {**times, "start_tolerance": math.inf}) for _ in range(2)
    )
    order = [JOINTS.index(name) for name in names]
    shuffled = tuple(tuple(row[i] for i in order) for row in rows)
    straight.play(Measured(start))
    permuted.play(Measured(start))
    assert straight.play(Arrival(tuple(rows), JOINTS, 0.1, 0.0)) == ""
    assert permuted.play(Arrival(shuffled, tuple(names), 0.1, 0.0)) == ""
    for _ in range(20):
        straight.play(Tick())
        permuted.play(Tick())
    assert np.array_equal(straight.path, permuted.path)

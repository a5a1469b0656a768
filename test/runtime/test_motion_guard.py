"""Nothing an operator, a watchdog or a chunk does takes a command beyond a limit."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.arm_urdf import ARM_JOINTS, ARM_URDF
from support.motion import assert_limits_kept, joint_limits

from thor_policy_ros.runtime.executor import ChunkExecutor
from thor_policy_ros.runtime.motion_guard import HeartbeatWatch, MotionGuard
from thor_policy_ros.runtime.urdf import Urdf
from thor_policy_ros.runtime.workspace import WorkspaceBox
from thor_policy_ros.types import ActionChunk

DT_S = 0.01
LIMITS = joint_limits([-1.3, -0.75, 0.4, -0.5], [1.3, 1.4, 2.75, 2.2], 2.0, 10.0, 4)
HOME = np.array([0.0, 0.3, 1.5, 1.0])
URDF = Urdf(ARM_URDF)
ACTS = ("estop", "reset_estop", "enable", "disable", "silence", "heard")

rows = st.lists(st.tuples(*(st.floats(-4, 4) for _ in ARM_JOINTS)), min_size=2, max_size=6)
ticks = st.integers(1, 40)
happenings = st.lists(st.sampled_from(ACTS) | rows | rows | ticks | ticks, min_size=8, max_size=30)
boxes = st.tuples(st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.floats(0.01, 0.3))


def act(guard: MotionGuard, name: str) -> None:
    if name in ("silence", "heard"):
        guard.watchdog_fault = "silent" if name == "silence" else ""
    elif name in ("enable", "disable"):
        guard.enable(name == "enable")
    else:
        getattr(guard, name)()


def play(executor: ChunkExecutor, happenings: list[Any]) -> tuple[np.ndarray, list[bool]]:
    """What was commanded, and whether the robot was to stand still at each command."""
    now_s, path, halted = 100.0, [], []
    for happening in [[HOME, HOME], 1, *happenings]:
        if isinstance(happening, str):
            act(executor.guard, happening)
        elif isinstance(happening, int):
            for _ in range(happening):
                now_s += DT_S
                executor.set_measured(path[-1] if path else HOME, now_s)
                command = executor.command(now_s)
                if command.positions is not None:
                    path.append(command.positions)
                    halted.append(bool(executor.guard.halt))
        else:
            chunk = ActionChunk(np.array(happening, np.float32), 0.1, now_s)
            executor.accept(chunk, ARM_JOINTS, now_s)
    return np.array(path), halted


def make(**kwargs: Any) -> ChunkExecutor:
    executor = ChunkExecutor(
        ARM_JOINTS, LIMITS, DT_S, max_measured_age_s=0.5, max_lag_s=0.5, **kwargs
    )
    executor.set_resume(0.5, 1.0)
    return executor


@settings(deadline=None)
@given(happenings)
def test_limits_hold_and_a_halted_robot_slows_down_and_stands(happenings: list[Any]) -> None:
    path, halted = play(make(), happenings)
    assert_limits_kept(path, HOME, LIMITS, DT_S)
    speed = np.abs(np.diff(path, axis=0)) / DT_S
    event("halted" if any(halted) else "never halted")
    for before, after, halt in zip(speed[:-1], speed[1:], halted[2:], strict=True):
        if halt:
            assert (after <= np.maximum(before - 10.0 * DT_S, 0.0) + 1e-6).all()


@settings(deadline=None)
@given(happenings, boxes, boxes)
def test_the_tool_stays_in_its_workspace(happenings, below, above) -> None:
    chain = URDF.chain("tip", ARM_JOINTS)
    home = chain.positions(HOME[None])[0]
    box = WorkspaceBox(chain, home - np.array(below), home + np.array(above))
    executor = make(workspace=box)
    path, _ = play(executor, happenings)
    assert_limits_kept(path, HOME, LIMITS, DT_S)
    event(f"workspace interventions: {bool(executor.guard.interventions['workspace'])}")
    at = chain.positions(path)
    assert (at >= box.lower - 1e-4).all() and (at <= box.upper + 1e-4).all()


def test_the_workspace_is_no_trap() -> None:
    chain = URDF.chain("tip", ARM_JOINTS)
    home = chain.positions(HOME[None])[0]
    executor = make(workspace=WorkspaceBox(chain, home - 0.05, home + 0.05))
    outwards = [[1.0, 0.3, 1.5, 1.0]] * 6
    path, _ = play(executor, [outwards, 50])
    assert 0.02 < path[-1][0] < 0.3 and "workspace" in executor.guard.lasting
    path, _ = play(make(workspace=WorkspaceBox(chain, home - 0.05, home + 0.05)),
                   [outwards, 50, [HOME] * 6, 50])  # fmt: skip
    assert abs(path[-1][0]) < 1e-3


def test_an_emergency_stop_is_latched_until_reset_and_enable() -> None:
    guard = MotionGuard()
    guard.estop()
    assert "emergency" in guard.halt
    assert "latched" in guard.enable(True) and guard.halt
    assert guard.reset_estop() == "" and "disabled" in guard.halt
    assert guard.enable(True) == "" and guard.halt == ""
    assert guard.reset_estop() != ""
    assert guard.interventions["emergency_stop"] == 1


def test_motion_begins_slowly_and_again_so_after_a_stop() -> None:
    path, _ = play(make(), [[[1.0, 0.3, 1.5, 1.0]] * 6, 10, "estop", 20, "reset_estop", "enable",
                            [[1.0, 0.3, 1.5, 1.0]] * 6, 10])  # fmt: skip
    speed = np.diff(path[:, 0]) / DT_S
    assert 0.3 < speed[:10].max() <= 2.0 * (0.2 + 0.8 * 11 / 50) + 1e-6
    assert 0.3 < speed[-9:].max() <= 2.0 * (0.2 + 0.8 * 11 / 50) + 1e-6


def test_no_start_towards_a_place_too_far_away() -> None:
    executor = make()
    executor.set_measured([0, 0, 0.5, 0], 1.0)
    chunk = ActionChunk(np.tile(np.float32([0, 0, 2.7, 0]), (4, 1)), 0.1, 1.0)
    assert executor.accept(chunk, ARM_JOINTS, 1.0) == ""
    command = executor.command(1.01)
    assert command.positions is None and "'elbow'" in command.reason
    assert executor.guard.interventions["start_refused"] == 1


def test_a_silent_node_is_dead_only_once_it_was_heard() -> None:
    heart = HeartbeatWatch(1.0)
    assert heart.fault(1e9) == ""
    heart.beat(5.0)
    assert heart.fault(6.0) == "" and "1.5 s" in heart.fault(6.5)
    heart.beat(6.5)
    assert heart.fault(7.0) == ""

"""Frames, policy and executor in a closed loop around one joint, with delay and jitter.

The joint lags behind its command, the camera shows the goal as a grey value, the policy plans a
straight way from the joint to the goal it saw. Everything runs on simulated time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_policy import HORIZON, Clock, FakePolicy, policy_config
from support.motion import assert_limits_kept, joint_limits

from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.runtime.executor import ChunkExecutor, Command
from thor_policy_ros.runtime.latest_frames import LatestFrames, NotReady
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.types import F32, ActionChunk, ModelInputs

CONTROL_DT_S = 0.01
CAMERA_PERIOD_S = 0.03
TICK_S = 0.1
PLAN_DT_S = 0.25  # five rows: a plan of one second
PLANNED_SPEED = 0.6
LIMITS = joint_limits(-1.0, 1.0, 1.0, 8.0)
GREY = 1 / 127.5  # how finely the camera shows the goal


def plan(towards: F32, state: F32) -> F32:
    """From the joint to the goal at PLANNED_SPEED, then stay."""
    reach = PLANNED_SPEED * PLAN_DT_S * np.arange(HORIZON, dtype=np.float32)
    way = towards[:, :1] - state[:1]
    return state[:1] + np.clip(way, -reach[:, None], reach[:, None])


def see_goal(inputs: ModelInputs, noise: F32) -> F32:
    """The goal that the prefix shows; a millimetre of noise, as a flow would leave."""
    return in_model_range(inputs.images)[0, 0, 0, 0] + 0.001 * np.tanh(noise)


@dataclass
class Joint:
    """A servo that closes a part of the gap to its command at every control tick."""

    position: float
    gain: float = 0.3

    def follow(self, command: Command) -> None:
        if command.positions is not None:
            self.position += self.gain * (float(command.positions[0]) - self.position)


@dataclass
class Loop:
    """One joint, one camera, one policy; latency_s tells the delay of every inference."""

    start: float
    goal: float
    latency_s: Callable[[], float]
    reuse_every: int = 1
    actions: Callable[[F32, F32], F32] = plan
    now_s: float = 0.0
    commands: list[Command] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = policy_config(action_dim=1, action_dt_s=PLAN_DT_S)
        policy = FakePolicy(
            Clock(),
            reuse_every=self.reuse_every,
            config=config,
            actions=self.actions,
            flow=see_goal,
        )
        self.runner = PolicyRunner(policy, LIMITS, policy.clock)
        self.frames = LatestFrames(("base",), 2, max_age_s=0.2, max_skew_s=0.1)
        self.frames.set_prompt("go")
        self.executor = ChunkExecutor(
            ("a",), LIMITS, CONTROL_DT_S, crossfade_s=0.1, hold_timeout_s=0.5, max_chunk_age_s=1.5
        )
        self.joint = Joint(self.start)
        self.under_way: tuple[float, ActionChunk | None] | None = None
        self.policy_tick = -1

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / CONTROL_DT_S)):
            self._sense()
            self._deliver()
            self._infer()
            self.commands.append(self.executor.command(self.now_s))
            self.joint.follow(self.commands[-1])
            self.now_s += CONTROL_DT_S

    def _sense(self) -> None:
        self.frames.put_state(np.array([self.joint.position, 0.0], np.float32), self.now_s)
        self.executor.set_measured([self.joint.position], self.now_s)
        if round(self.now_s / CONTROL_DT_S) % round(CAMERA_PERIOD_S / CONTROL_DT_S) == 0:
            grey = np.full((8, 8, 3), round((self.goal + 1) / GREY), np.uint8)
            self.frames.put_image("base", grey, self.now_s)

    def _infer(self) -> None:
        """At every policy tick at which the one inference before has ended."""
        tick = math.floor(self.now_s / TICK_S + 1e-9)
        if self.under_way is not None or tick == self.policy_tick:
            return
        self.policy_tick = tick
        seen = self.frames.snapshot(self.now_s)
        if isinstance(seen, NotReady):
            self.refused.extend(seen.reasons)
            return
        result = self.runner.step(seen, self.now_s, tick, seed=tick)
        if result.chunk is None:
            self.refused.append(result.refused)
        self.under_way = (self.now_s + self.latency_s(), result.chunk)

    def _deliver(self) -> None:
        if self.under_way is None or self.under_way[0] > self.now_s:
            return
        _, chunk = self.under_way
        self.under_way = None
        if chunk is not None:
            reason = self.executor.accept(chunk, ("a",), self.now_s)
            if reason:
                self.refused.append(reason)

    @property
    def path(self) -> list[np.ndarray]:
        return [c.positions for c in self.commands if c.positions is not None]


def delays(seed: int, mean_s: float, jitter_s: float) -> Callable[[], float]:
    random = np.random.default_rng(seed)
    return lambda: min(max(mean_s + jitter_s * random.uniform(-1, 1), 0.0), 0.4)


def seconds_for(way: float) -> float:
    """Enough for the way with a plan from a lagging joint, and a wait for what may run out."""
    return 2.0 + 4.0 * abs(way) / PLANNED_SPEED


few = settings(max_examples=30)  # an example is some ten seconds of control ticks
places = st.floats(-0.9, 0.9)


@few
@given(
    places,
    places,
    st.floats(0.0, 0.4),
    st.floats(0.0, 0.2),
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
)
def test_the_joint_arrives_within_limits_whatever_the_delay(
    start, goal, mean_s, jitter_s, seed, reuse_every
):
    loop = Loop(start, goal, delays(seed, mean_s, jitter_s), reuse_every)
    loop.run(seconds_for(goal - start))
    assert loop.joint.position == pytest.approx(goal, abs=GREY)
    assert_limits_kept(loop.path, [start], LIMITS, CONTROL_DT_S)
    assert loop.refused == []
    # It goes there, and neither back nor beyond by more than it sees and brakes.
    low, high = sorted((start, goal))
    assert low - 0.02 <= min(loop.path) and max(loop.path) <= high + 0.02


@few
@given(places, places, places, st.floats(0.0, 0.4), st.integers(0, 2**32 - 1))
def test_a_goal_that_jumps_on_the_way_is_reached(start, goal, then, mean_s, seed):
    loop = Loop(start, goal, delays(seed, mean_s, 0.1))
    loop.run(0.7)
    loop.goal = then
    loop.run(seconds_for(2.0))
    assert loop.joint.position == pytest.approx(then, abs=GREY)
    assert_limits_kept(loop.path, [start], LIMITS, CONTROL_DT_S)


@few
@given(st.floats(0.0, 0.4), st.integers(0, 2**32 - 1), st.floats(0.1, 0.4))
def test_chunks_of_nonsense_in_between_are_refused_and_the_joint_still_arrives(mean_s, seed, share):
    random = np.random.default_rng(seed)

    def now_and_then_nonsense(towards: F32, state: F32) -> F32:
        planned = plan(towards, state)
        if random.uniform() < share:
            planned[random.integers(HORIZON)] = random.choice([np.nan, 5.0, -np.inf])
        return planned

    loop = Loop(-0.5, 0.5, delays(seed, mean_s, 0.1), 2, now_and_then_nonsense)
    loop.run(2 * seconds_for(1.0))
    assert loop.joint.position == pytest.approx(0.5, abs=0.05)
    assert_limits_kept(loop.path, [-0.5], LIMITS, CONTROL_DT_S)
    assert loop.refused


def test_when_the_policy_dies_on_the_way_the_joint_stops_and_resumes_with_it():
    loop = Loop(-0.8, 0.8, lambda: 0.1)
    loop.run(0.6)
    assert loop.commands[-1].state == "tracking"
    loop.latency_s = lambda: 5.0
    loop.run(2.5)
    assert loop.commands[-1].state == "stopped"
    assert loop.commands[-1].velocities == pytest.approx(0.0)
    assert loop.joint.position < 0.7, "had arrived before"
    loop.latency_s = lambda: 0.1
    loop.run(8.0)
    assert loop.joint.position == pytest.approx(0.8, abs=GREY)
    assert "5.0" in loop.refused[0] and "ago" in loop.refused[0]
    assert_limits_kept(loop.path, [-0.8], LIMITS, CONTROL_DT_S)


def test_longer_delays_take_longer_but_not_another_way():
    """The plan belongs to its observation: with no delay and with 300 ms the joint is, once
    under way, at the same place at the same time."""
    prompt, late = (Loop(-0.9, 0.9, lambda d=d: d) for d in (0.0, 0.3))
    prompt.run(1.5)
    late.run(1.5)
    assert late.joint.position == pytest.approx(prompt.joint.position, abs=0.1)

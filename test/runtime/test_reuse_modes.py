"""The runner under its reuse rules: what forces a refill, what is kept, what short time allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_policy import HORIZON, Clock, FakeBackend, FakePolicy, policy_config

from thor_policy_ros.runtime.deadline import MAX_SKIPPED_TICKS
from thor_policy_ros.runtime.frame_costs import WARM_UP_FRAMES
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.prefix_keeper import MAX_KEPT_TICKS
from thor_policy_ros.runtime.reuse import MODES, ReuseRules
from thor_policy_ros.types import Bool, ModelInputs, Observation, PrefixKV, StepResult

CAMERAS = ("base", "wrist")
TICK_S = 0.1
# FakeBackend: prefill 20 ms, denoise 10 ms, preprocess 5 ms, postprocess 1 ms


@dataclass
class KeepingBackend(FakeBackend):
    """Remembers which cameras it was to keep, () for a whole prefill."""

    kept: list[tuple[str, ...]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def prefill(self, inputs: ModelInputs, observed_at_s: float) -> PrefixKV:
        self.kept.append(())
        return super().prefill(inputs, observed_at_s)

    def prefill_keeping(self, inputs: ModelInputs, observed_at_s: float, keep: Bool) -> PrefixKV:
        self.kept.append(tuple(np.array(CAMERAS)[keep].tolist()))
        return super().prefill(inputs, observed_at_s)

    def denoise(self, prefix, noise, num_steps, guidance=None):
        self.steps.append(num_steps)
        return super().denoise(prefix, noise, num_steps, guidance)


class Robot:
    """A runner, and two cameras whose grey values a test sets."""

    def __init__(self, every: int = 9, *, state_in_prompt: bool = False, **rules: object) -> None:
        config = policy_config(state_in_prompt=state_in_prompt)
        model = replace(config.model, num_cameras=len(CAMERAS))
        config = replace(config, model=model, camera_slots=CAMERAS)
        self.policy = FakePolicy(Clock(), reuse_every=every, config=config)
        self.backend = KeepingBackend(self.policy.spec, self.policy.clock)
        self.policy.backend = self.backend
        self.runner = PolicyRunner(self.policy, None, self.policy.clock)
        self.runner.rules = ReuseRules(**rules)
        self.grey = {"base": 100, "wrist": 100}

    def step(self, tick: int, *, late_s: float = 0.0, waited_s: float = 0.0, **seen) -> StepResult:
        """late_s: how old the observation is at the step."""
        images = {slot: np.full((32, 32, 3), grey, np.uint8) for slot, grey in self.grey.items()}
        now_s = tick * TICK_S
        state = np.array(seen.pop("state", (0.0, 0.0)), np.float32)
        observation = Observation(images, state, seen.pop("prompt", "red"), now_s - late_s)
        return self.runner.step(observation, now_s, tick, 10, waited_s=waited_s, **seen)

    def said(self, *ticks: int) -> list[str]:
        return [self.step(tick).decision for tick in ticks]


class TestAge:
    def test_in_ms_bounds_a_reuse(self):
        robot = Robot(max_age_ms=250.0)
        assert robot.said(0, 1, 2, 3) == [
            "refill: no prefix",
            "reuse",
            "reuse",
            "refill: age in ms",
        ]

    def test_in_ms_counts_from_the_observation(self):
        robot = Robot(max_age_ms=250.0)
        robot.step(0, late_s=0.15)
        assert robot.step(1).decision == "reuse"
        assert robot.step(2).decision == "refill: age in ms"

    def test_unknown_is_stale(self):
        robot = Robot()
        robot.step(0, late_s=math.nan)
        assert robot.said(1, 2) == ["refill: time unknown", "reuse"]


class TestState:
    def test_in_the_prompt_refills_unless_told_not_to(self):
        for refresh, decision in ((True, "refill: state changed"), (False, "reuse")):
            robot = Robot(state_in_prompt=True, refresh_on_state=refresh)
            robot.step(0, state=(0.0, 0.0))
            assert robot.step(1, state=(3.0, 0.0)).decision == decision

    def test_then_reuse_is_spared_the_transforms(self):
        robot = Robot(state_in_prompt=True, refresh_on_state=False)
        robot.said(0, 1, 2)
        assert len(robot.policy.preprocessed) == 1


class TestImages:
    def test_are_not_compared_unless_asked(self):
        robot = Robot()
        robot.step(0)
        robot.grey["base"] = 250
        assert robot.said(1) == ["reuse"]
        assert robot.runner.image_changes == {}

    def test_a_change_refills_and_keeps_the_other_camera(self):
        robot = Robot(refresh_threshold=0.05)
        assert robot.said(0, 1) == ["refill: no prefix", "reuse"]
        robot.grey["base"] = 130
        assert robot.said(2) == ["refill: image changed: base (kept wrist)"]
        assert robot.backend.kept == [(), ("wrist",)]
        assert robot.runner.image_changes == pytest.approx({"base": 30 / 255, "wrist": 0.0})
        assert robot.said(3) == ["reuse"]

    def test_a_refill_by_age_keeps_what_shows_nothing_new(self):
        robot = Robot(every=2, refresh_threshold=0.05)
        assert robot.said(0, 1, 2) == [
            "refill: no prefix",
            "reuse",
            "refill: age (kept base, wrist)",
        ]

    def test_a_new_instruction_keeps_all_cameras(self):
        robot = Robot(refresh_threshold=0.05)
        robot.step(0)
        assert robot.step(1, prompt="blue").decision == "refill: prompt changed (kept base, wrist)"

    def test_a_kept_camera_is_compared_with_what_was_encoded(self):
        """A slow drift under the threshold of each step adds up."""
        robot = Robot(every=2, refresh_threshold=0.05)
        said = []
        for tick in range(8):
            robot.grey["wrist"] = 100 + 4 * tick
            said.append(robot.step(tick).decision)
        assert said[2] == "refill: age (kept base, wrist)"
        assert said[4] == "refill: age (kept base)"

    def test_a_camera_is_not_kept_for_ever(self):
        robot = Robot(every=1, refresh_threshold=0.05)
        robot.said(*range(MAX_KEPT_TICKS + 3))
        kept = [bool(cameras) for cameras in robot.backend.kept]
        assert kept == [False] + [True] * MAX_KEPT_TICKS + [False, True]

    def test_nor_longer_than_the_age_in_ms(self):
        robot = Robot(every=1, refresh_threshold=0.05, max_age_ms=250.0)
        robot.said(0, 1, 2, 3)
        assert robot.backend.kept == [(), CAMERAS, CAMERAS, ()]

    @pytest.mark.parametrize("lost", ["reset", "failed check", "failed step"])
    def test_nothing_is_kept_of_a_prefix_that_is_gone(self, lost):
        robot = Robot(refresh_threshold=0.05)
        robot.step(0)
        if lost == "reset":
            robot.runner.reset()
        elif lost == "failed check":
            robot.policy.actions = lambda n, s: np.full((HORIZON, 2), np.nan, np.float32)
            assert robot.step(1).refused
            robot.policy.actions = lambda n, s: np.zeros((HORIZON, 2), np.float32)
        else:
            robot.backend.fails = RuntimeError("out of memory")
            with pytest.raises(RuntimeError):
                robot.step(1)
            robot.backend.fails = None
        assert robot.step(2).decision == f"refill: {lost}"
        assert robot.backend.kept[-1] == ()

    def test_an_engine_that_cannot_keep_encodes_all(self):
        robot = Robot(every=2, refresh_threshold=0.05)
        robot.policy.backend = FakeBackend(robot.policy.spec, robot.policy.clock)
        assert robot.said(0, 1, 2) == ["refill: no prefix", "reuse", "refill: age"]

    def test_comparing_may_be_switched_on_and_off(self):
        robot = Robot(refresh_threshold=0.05)
        robot.step(0)
        robot.runner.rules = ReuseRules()
        robot.grey["base"] = 250
        assert robot.said(1) == ["reuse"]
        robot.runner.rules = ReuseRules(refresh_threshold=0.05)
        assert robot.said(2, 3) == ["refill: image changed: base, wrist", "reuse"]


class TestAdaptive:
    def test_refills_by_age_while_nothing_moves(self):
        robot = Robot(every=4, mode="adaptive")
        said = robot.said(*range(6))
        assert said[1:4] == ["reuse"] * 3 and said[4] == "refill: age (kept base, wrist)"

    @pytest.mark.parametrize(
        ("mode", "decision"),
        [("fixed", "reuse"), ("adaptive", "refill: image changed: wrist (kept base)")],
    )
    def test_refills_before_the_change_is_too_large(self, mode, decision):
        """Two grey levels a tick: 0.0157 of full scale after two, 0.0235 after three."""
        robot = Robot(every=9, mode=mode, refresh_threshold=0.02)
        said = []
        for tick in range(3):
            robot.grey["wrist"] = 100 + 2 * tick
            said.append(robot.step(tick).decision)
        assert said == ["refill: no prefix", "reuse", decision]


class TestContinue:
    def test_nothing_is_computed_between_refills(self):
        robot = Robot(every=3, mode="continue", deadline_ms=100.0)
        results = [robot.step(tick) for tick in range(4)]
        assert [r.decision for r in results] == [
            "refill: no prefix", "continue", "continue", "refill: age",
        ]  # fmt: skip
        assert [r.chunk is None for r in results] == [False, True, True, False]
        assert results[1].refused == "" and results[1].num_steps == 0
        assert robot.backend.calls == ["prefill", "denoise"] * 2

    def test_a_chunk_that_ends_is_not_continued(self):
        """Five rows of 0.1 s end 0.4 s after the observation."""
        robot = Robot(every=9, mode="continue", deadline_ms=100.0)
        assert robot.said(0, 1, 2, 3) == [
            "refill: no prefix", "continue", "continue", "refill: chunk ends",
        ]  # fmt: skip

    def test_a_change_is_not_waited_for(self):
        robot = Robot(every=9, mode="continue", deadline_ms=100.0)
        robot.step(0)
        assert robot.step(1, prompt="blue").decision == "refill: prompt changed"


class TestDeadline:
    def warm(self, every: int = 9, **rules: object) -> Robot:
        """Costs are known: prefill 20 ms, ten steps 10 ms, the rest 6 ms."""
        robot = Robot(every=every, mode="deadline", **rules)
        for tick in range(-2 * WARM_UP_FRAMES, 1):
            robot.step(tick)
        assert robot.runner.costs.frame_ms(10, refill=True) == pytest.approx(36.0)
        return robot

    def test_a_full_frame_wherever_it_is_in_time(self):
        robot = self.warm(deadline_ms=40.0)
        assert robot.said(1, 2) == ["refill: in time", "refill: in time"]

    def test_fewer_steps_next(self):
        robot = self.warm(deadline_ms=33.0)
        result = robot.step(1)
        assert result.decision == "refill: in time (5 steps)"
        assert (result.num_steps, robot.backend.steps[-1]) == (5, 5)

    def test_then_reuse_then_nothing(self):
        robot = self.warm(deadline_ms=40.0, min_steps=10)
        assert robot.step(1, waited_s=0.020).decision == "reuse"
        assert robot.step(2, waited_s=0.035).decision == "continue"
        assert robot.step(3).decision == "refill: in time"

    def test_hold_when_the_chunk_ends(self):
        robot = self.warm(deadline_ms=300.0)
        assert robot.step(1, waited_s=0.299).decision == "hold"

    def test_a_refill_that_is_due_is_not_reused_but_waits(self):
        robot = self.warm(every=1, deadline_ms=40.0, min_steps=10)
        assert [robot.step(t, waited_s=0.02).decision for t in (1, 2, 3)] == [
            "continue", "continue", "refill: overdue (late)",
        ]  # fmt: skip

    def test_a_change_does_not_wait(self):
        robot = self.warm(deadline_ms=40.0, min_steps=2)
        result = robot.step(1, waited_s=0.03, prompt="blue")
        assert result.decision == "refill: prompt changed (2 steps; late)"

    def test_missed_ticks_count_as_skipped(self):
        robot = self.warm(every=2, deadline_ms=40.0, min_steps=10)
        result = robot.step(MAX_SKIPPED_TICKS + 1, waited_s=0.02)
        assert result.decision == "refill: overdue (late)"


happenings = st.tuples(
    st.integers(-2, 4),  # ticks since the step before
    st.sampled_from(["red", "red", "red", "blue"]),
    st.sampled_from([100, 100, 101, 180]),  # what the base camera shows
    st.sampled_from(["fine", "fine", "fine", "refused", "raises", "reset"]),
    st.floats(0.0, 0.3),  # waited, s
)
modes = st.sampled_from(MODES)


@given(
    modes,
    st.integers(1, 5),
    st.sampled_from([0.0, 150.0, 350.0]),
    st.sampled_from([0.0, 0.05]),
    st.lists(happenings, min_size=5, max_size=40),
)
def test_in_no_mode_is_a_prefix_too_old_or_of_another_key_and_nobody_starves(
    mode, every, max_age_ms, threshold, steps
):
    robot = Robot(
        every=every,
        mode=mode,
        max_age_ms=max_age_ms,
        refresh_threshold=threshold,
        deadline_ms=60.0,
    )
    made: tuple[int, str] | None = None  # tick and prompt of the prefix
    shown: int | None = None  # the base camera, when it was encoded
    tick, skipped_since = 0, 0
    for ticks, prompt, grey, fate, waited_s in steps:
        tick += ticks
        if fate == "reset":
            robot.runner.reset()
            made, skipped_since = None, tick
        nan = np.full((HORIZON, 2), np.nan if fate == "refused" else 0.0, np.float32)
        robot.policy.actions = lambda normalised, state, nan=nan: nan
        robot.backend.fails = ZeroDivisionError() if fate == "raises" else None
        robot.grey["base"] = grey
        try:
            result = robot.step(tick, prompt=prompt, waited_s=waited_s)
        except ZeroDivisionError:
            made = None
            continue
        if result.decision in ("continue", "hold"):
            assert mode in ("continue", "deadline")
            assert made is not None and made[1] == prompt, "the chunk in hand is of other words"
            assert result.chunk is None and not result.refused
            if mode == "deadline":
                assert tick - skipped_since <= MAX_SKIPPED_TICKS
            else:
                assert tick - made[0] < every
            continue
        skipped_since = tick
        if result.decision.startswith("refill"):
            kept = robot.backend.kept[-1]
            assert made is not None or not kept, "kept of a prefix that is gone"
            made = (tick, prompt)
            if "base" not in kept:
                shown = grey
        assert made is not None and made[1] == prompt
        assert 0 <= tick - made[0] < every
        assert not max_age_ms or (tick - made[0]) * 100.0 <= max_age_ms + 1e-6
        if threshold:
            assert shown is not None and abs(grey - shown) / 255 <= threshold
        if result.chunk is None:
            assert result.refused
            made = None
        else:
            assert result.chunk.observed_at_s == pytest.approx(made[0] * TICK_S)

"""One episode in simulated time: what is told, what is seen, when chunks arrive."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from support.tabletop import expert_answer

from thor_policy_ros.evaluation.closed_loop import (
    Conditions,
    noise_seed,
    run_episode,
    told_instruction,
)
from thor_policy_ros.evaluation.motion_trace import MotionTrace
from thor_policy_ros.sim.arm_env import TabletopArm
from thor_policy_ros.types import ActionChunk, FrameTiming, Observation, StepResult


@dataclass
class ExpertRunner:
    """Stands in for a PolicyRunner: the expert looks at the arm itself; notes every call."""

    env: TabletopArm
    steps: list[tuple[Observation, float, int, int]] = field(default_factory=list)
    refuses: str = ""
    waits: list[float] = field(default_factory=list)

    def reset(self) -> None:
        self.steps.clear()
        self.waits.clear()

    def step(
        self,
        observation: Observation,
        now_s: float,
        tick: int,
        num_steps: int,
        *,
        seed: int,
        waited_s: float,
    ) -> StepResult:
        self.waits.append(waited_s)
        self.steps.append((observation, now_s, tick, seed))
        if self.refuses:
            return StepResult(None, FrameTiming(), refused=self.refuses)
        return StepResult(ActionChunk(expert_answer(self.env), 0.1, now_s), FrameTiming())


@pytest.fixture(scope="module")
def env() -> TabletopArm:
    return TabletopArm(image_size=8)


@pytest.mark.parametrize("latency_ms", [0.0, 40.0])
@pytest.mark.parametrize("episode", range(4))
def test_the_expert_succeeds_through_the_executor(
    env: TabletopArm, episode: int, latency_ms: float
) -> None:
    record = run_episode(env, ExpertRunner(env), Conditions(latency_ms=latency_ms), episode)
    assert record.success and record.refused_chunks == 0
    assert record.told == record.intended == env.instruction
    assert record.duration_s == pytest.approx(env.time_s)


def test_an_episode_follows_from_its_seed(env: TabletopArm) -> None:
    conditions = Conditions(latency_ms=20.0)
    runner = ExpertRunner(env)
    first = run_episode(env, runner, conditions, 5)
    seeds = [step[3] for step in runner.steps]
    assert run_episode(env, runner, conditions, 5) == first
    assert [step[3] for step in runner.steps] == seeds
    assert len(set(seeds)) == len(seeds)


def test_the_policy_is_asked_every_replan_ticks(env: TabletopArm) -> None:
    runner = ExpertRunner(env)
    run_episode(env, runner, Conditions(replan=3), 1)
    assert [step[2] for step in runner.steps[:3]] == [0, 3, 6]
    assert [step[1] for step in runner.steps[:3]] == pytest.approx([0.0, 0.3, 0.6])


def test_black_images_are_black_and_the_right_size(env: TabletopArm) -> None:
    runner = ExpertRunner(env)
    run_episode(env, runner, Conditions(images="black"), 1)
    for image in runner.steps[0][0].images.values():
        assert image.shape == (8, 8, 3) and not image.any()
    run_episode(env, runner, Conditions(), 1)
    assert all(image.any() for image in runner.steps[0][0].images.values())


def test_images_through_a_jpeg_are_nearly_the_same(env: TabletopArm) -> None:
    runner = ExpertRunner(env)
    run_episode(env, runner, Conditions(), 1)
    normal = runner.steps[0][0].images
    for quality, most in ((90, 20.0), (20, 60.0)):
        runner = ExpertRunner(env)
        run_episode(env, runner, Conditions(images=f"jpeg_{quality}"), 1)
        for slot, image in runner.steps[0][0].images.items():
            error = np.abs(image.astype(int) - normal[slot]).mean()
            assert image.shape == normal[slot].shape and 0.0 < error < most


def test_what_is_told(env: TabletopArm) -> None:
    for episode in range(12):
        env.reset(episode, 0.1)
        colours = {c for c in ("red", "green", "blue", "yellow") if c in env.instruction}
        assert told_instruction(env, Conditions(), episode) == env.instruction
        assert told_instruction(env, Conditions(instruction="blank"), episode) == ""
        wrong = told_instruction(env, Conditions(instruction="wrong"), episode)
        assert wrong.split(" the ")[0] == env.instruction.split(" the ")[0]
        assert not any(colour in wrong for colour in colours)
        assert wrong == told_instruction(env, Conditions(instruction="wrong"), episode)


def test_a_runner_that_refuses_leaves_the_arm_where_it_is(env: TabletopArm) -> None:
    runner = ExpertRunner(env, refuses="not finite")
    env.reset(2, 0.12)
    start = env.state()
    record = run_episode(env, runner, Conditions(), 2)
    assert record.outcome == "timeout" and record.last_refusal == "not finite"
    assert record.refused_chunks == len(runner.steps) == 80
    np.testing.assert_allclose(env.state(), start, atol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": "loud"}, "choose one of: right, blank, wrong"),
        ({"images": "pink"}, "choose one of: normal, black, jpeg_90"),
        ({"speed_m_s": -0.1}, "speed_m_s wants at least 0"),
        ({"num_steps": 0}, "num_steps wants at least 1"),
        ({"replan": 0}, "replan wants at least 1"),
    ],
)
def test_impossible_conditions_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Conditions(), **change)


def test_noise_differs_between_chunks_episodes_and_settings() -> None:
    seeds = {
        noise_seed(Conditions(seed=seed), episode, tick)
        for seed in range(3)
        for episode in range(3)
        for tick in range(3)
    }
    assert len(seeds) == 27


def test_a_policy_that_computes_is_served_its_newest_tick_when_it_is_done(
    env: TabletopArm,
) -> None:
    runner = ExpertRunner(env)
    run_episode(env, runner, Conditions(), 1, takes_s=lambda result: 0.25)
    assert [step[1] for step in runner.steps[:4]] == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert [step[2] for step in runner.steps[:4]] == [0, 2, 5, 7]
    assert runner.waits[:4] == pytest.approx([0.0, 0.05, 0.0, 0.05])


def test_the_trace_is_told_of_every_command_and_chunk(env: TabletopArm) -> None:
    trace = MotionTrace(0.01, np.isfinite(env.limits.velocity))
    record = run_episode(env, ExpertRunner(env), Conditions(), 1, trace)
    sums = trace.sums()
    assert sums["motion_s"] == pytest.approx(record.duration_s)
    assert sums["jumps"] == pytest.approx(record.duration_s / 0.1, abs=2)
    assert sums["jerk_squared"] > 0


def test_naive_indexing_begins_each_chunk_where_it_arrives(env: TabletopArm) -> None:
    """Of a chunk that came 0.3 s late it plays the past: every join is a jump back."""
    worst = {}
    for indexing in ("aligned", "naive"):
        trace = MotionTrace(0.01, np.isfinite(env.limits.velocity))
        conditions = Conditions(latency_ms=300.0, indexing=indexing, speed_m_s=0.0)
        run_episode(env, ExpertRunner(env), conditions, 1, trace)
        worst[indexing] = trace.sums()["jump_sum"]
    assert worst["naive"] > 2 * worst["aligned"]


def test_an_unknown_indexing_is_refused() -> None:
    with pytest.raises(ValueError, match="indexing 'both'; choose one of: aligned, naive"):
        Conditions(indexing="both")

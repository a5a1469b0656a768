"""One policy step: the prefix, the check, the times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_policy import HORIZON, MODEL_DIM, Clock, FakePolicy, policy_config
from support.motion import joint_limits

from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.safety import Tolerance
from thor_policy_ros.types import Observation, StepResult

LIMITS = joint_limits(-1.0, 1.0, 1.0, 10.0, joints=2)


def observation(
    stamp_s: float = 10.0,
    prompt: str = "red",
    cameras: tuple[str, ...] = ("base",),
    state: tuple[float, float] = (0.0, 0.0),
) -> Observation:
    images = {slot: np.zeros((8, 8, 3), np.uint8) for slot in cameras}
    return Observation(images, np.array(state, np.float32), prompt, stamp_s)


def runner(policy: FakePolicy, limits=LIMITS) -> PolicyRunner:
    return PolicyRunner(policy, limits, policy.clock, joint_names=("elbow", "wrist"))


class TestChunk:
    def test_carries_the_actions_and_their_time(self):
        wanted = np.linspace(0, 0.2, HORIZON * 2, dtype=np.float32).reshape(HORIZON, 2)
        policy = FakePolicy(Clock(), actions=lambda normalised, state: wanted)
        result = runner(policy).step(observation(10.0), 10.03, tick=0)
        chunk = result.chunk
        assert chunk is not None
        assert (chunk.actions == wanted).all()
        assert (chunk.observed_at_s, chunk.dt_s, chunk.prefix_reused) == (10.0, 0.1, False)
        assert chunk.timing == result.timing
        assert (result.decision, result.refused) == ("refill: no prefix", "")

    def test_num_steps_and_noise_reach_the_backend(self):
        policy = FakePolicy(Clock())
        noise = np.ones((HORIZON, MODEL_DIM), np.float32)
        runner(policy).step(observation(), 10.0, 0, 3, noise=noise)
        assert policy.backend.noises[0] is noise

    def test_noise_drawn_ahead_is_that_of_its_seed_and_of_no_other(self):
        policy = FakePolicy(Clock())
        run = runner(policy)
        for ahead, seed in ((7, 7), (8, 7), (None, 7)):
            if ahead is not None:
                run.draw_ahead(ahead)
            run.step(observation(), 10.0, 0, seed=seed)
        first, *others = policy.backend.noises
        assert all(np.array_equal(first, other) for other in others)

    def test_a_seed_gives_the_same_noise_every_time_and_none_gives_another(self):
        policy = FakePolicy(Clock())
        run = runner(policy)
        for seed in (7, 7, None, None):
            run.step(observation(), 10.0, 0, seed=seed)
        first, same, other, another = policy.backend.noises
        assert first.shape == (HORIZON, MODEL_DIM)
        assert first.dtype == np.float32
        assert (first == same).all()
        assert not (other == first).all() and not (other == another).all()


class TestReuse:
    def test_in_between_refills_the_backend_only_denoises(self):
        policy = FakePolicy(Clock(), reuse_every=3)
        run = runner(policy)
        said = [run.step(observation(10.0 + k / 10), 10.0 + k / 10, k).decision for k in range(4)]
        assert said == ["refill: no prefix", "reuse", "reuse", "refill: age"]
        assert policy.backend.calls == [
            "prefill",
            "denoise",
            "denoise",
            "denoise",
            "prefill",
            "denoise",
        ]
        assert len(policy.preprocessed) == 2, "images that nobody looks at were resized"

    def test_a_reused_chunk_is_timed_by_the_observation_of_its_prefix(self):
        run = runner(FakePolicy(Clock(), reuse_every=2))
        run.step(observation(10.0), 10.0, 0)
        chunk = run.step(observation(10.1), 10.1, 1).chunk
        assert chunk is not None
        assert (chunk.observed_at_s, chunk.prefix_reused) == (10.0, True)

    def test_actions_are_relative_to_the_state_of_the_prefix(self):
        policy = FakePolicy(Clock(), reuse_every=2)
        run = runner(policy)
        run.step(observation(10.0, state=(0.1, 0.2)), 10.0, 0)
        run.step(observation(10.1, state=(0.8, 0.9)), 10.1, 1)
        assert policy.states[1] == pytest.approx([0.1, 0.2])

    def test_missed_ticks_count_towards_the_age(self):
        run = runner(FakePolicy(Clock(), reuse_every=3))
        run.step(observation(10.0), 10.0, 0)
        result = run.step(observation(10.4), 10.4, 4)
        assert result.decision == "refill: age"
        assert result.timing.missed_ticks == 3
        assert result.notes == ("missed 3 control ticks",)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [({"prompt": "blue"}, "prompt changed"), ({"cameras": ()}, "cameras changed")],
    )
    def test_a_change_refills(self, change, reason):
        run = runner(FakePolicy(Clock(), reuse_every=9))
        run.step(observation(10.0), 10.0, 0)
        assert run.step(observation(10.1, **change), 10.1, 1).decision == f"refill: {reason}"

    def test_a_state_that_changes_the_prompts_tokens_refills(self):
        config = policy_config(state_in_prompt=True)
        policy = FakePolicy(Clock(), reuse_every=9, config=config)
        run = runner(policy)
        run.step(observation(10.0, state=(1.0, 2.0)), 10.0, 0)
        same_bins = run.step(observation(10.1, state=(1.1, 2.1)), 10.1, 1)
        other_bins = run.step(observation(10.2, state=(3.0, 2.0)), 10.2, 2)
        assert (same_bins.decision, other_bins.decision) == ("reuse", "refill: state changed")
        assert len(policy.preprocessed) == 3, "the inputs of a refill are made once"

    def test_a_state_outside_the_prompt_does_not(self):
        run = runner(FakePolicy(Clock(), reuse_every=9))
        run.step(observation(10.0, state=(1.0, 2.0)), 10.0, 0)
        assert run.step(observation(10.1, state=(9.0, 2.0)), 10.1, 1).decision == "reuse"

    def test_reset_forgets_the_prefix_and_the_tick(self):
        run = runner(FakePolicy(Clock(), reuse_every=9))
        run.step(observation(10.0), 10.0, 0)
        run.reset()
        result = run.step(observation(10.1), 10.1, 50)
        assert result.decision == "refill: reset"
        assert result.timing.missed_ticks == 0


class TestPipelined:
    def test_the_next_prefix_is_launched_before_the_older_one_is_denoised(self):
        policy = FakePolicy(Clock(), pipelined=True)
        run = runner(policy)
        results = [
            run.step(observation(10 + k / 10, state=(k / 10, 0.0)), 10 + k / 10, k)
            for k in range(3)
        ]
        assert policy.backend.calls == ["prefill", "denoise"] * 3
        assert [r.decision for r in results] == ["refill: no prefix", "pipelined", "pipelined"]
        assert [r.chunk.observed_at_s for r in results] == pytest.approx([10.0, 10.0, 10.1])
        assert [s[0] for s in policy.states] == pytest.approx([0.0, 0.0, 0.1])
        assert [r.timing.prefix_age_ms for r in results] == pytest.approx([25.0, 125.0, 125.0])

    @pytest.mark.parametrize(
        ("change", "now_s", "tick", "reason"),
        [
            ({"prompt": "blue"}, 10.1, 1, "prompt changed"),
            ({"cameras": ()}, 10.1, 1, "cameras changed"),
            ({}, 9.0, 1, "time went back"),
            ({}, 12.0, 20, "age"),
        ],
    )
    def test_what_may_not_be_late_is_waited_for(self, change, now_s, tick, reason):
        run = runner(FakePolicy(Clock(), pipelined=True))
        run.step(observation(10.0), 10.0, 0)
        result = run.step(observation(now_s, **change), now_s, tick)
        assert result.decision == f"refill: {reason}"
        assert result.chunk is not None and result.chunk.observed_at_s == now_s

    def test_a_state_in_the_prompt_is_late_with_the_rest(self):
        config = policy_config(state_in_prompt=True)
        run = runner(FakePolicy(Clock(), pipelined=True, config=config))
        run.step(observation(10.0, state=(1.0, 2.0)), 10.0, 0)
        assert run.step(observation(10.1, state=(3.0, 2.0)), 10.1, 1).decision == "pipelined"

    def test_a_slow_policy_still_overlaps(self):
        run = runner(FakePolicy(Clock(), pipelined=True))
        said = [run.step(observation(10.0 + k), 10.0 + k, 2 * k).decision for k in range(3)]
        assert said == ["refill: no prefix", "pipelined", "pipelined"]

    @pytest.mark.parametrize("failing", [True, False])
    def test_after_a_failure_or_a_reset_nothing_older_is_used(self, failing):
        policy = FakePolicy(Clock(), pipelined=True)
        run = runner(policy)
        run.step(observation(10.0), 10.0, 0)
        if failing:
            policy.backend.fails = RuntimeError("out of memory")
            with pytest.raises(RuntimeError):
                run.step(observation(10.1), 10.1, 1)
            policy.backend.fails = None
        else:
            run.reset()
        result = run.step(observation(10.2), 10.2, 2)
        assert result.decision == ("refill: failed step" if failing else "refill: reset")
        assert result.chunk is not None and result.chunk.observed_at_s == 10.2


class TestRefusal:
    def refused(self, policy: FakePolicy, run: PolicyRunner) -> StepResult:
        bad = np.zeros((HORIZON, 2), np.float32)
        bad[2, 1] = np.nan
        good, policy.actions = policy.actions, lambda normalised, state: bad
        result = run.step(observation(10.1), 10.1, 1)
        policy.actions = good
        return result

    def test_has_a_reason_and_no_chunk_but_its_times(self):
        policy = FakePolicy(Clock())
        result = self.refused(policy, runner(policy))
        assert result.chunk is None
        assert result.refused == "joint wrist row 2: nan is not finite"
        assert result.decision == "refill: no prefix"
        assert result.timing.denoise_ms == 10.0

    def test_invalidates_the_prefix(self):
        policy = FakePolicy(Clock(), reuse_every=9)
        run = runner(policy)
        run.step(observation(10.0), 10.0, 0)
        assert self.refused(policy, run).decision == "reuse"
        assert run.step(observation(10.2), 10.2, 2).decision == "refill: failed check"

    def test_is_for_limits_too(self):
        beyond = np.full((HORIZON, 2), 1.2, np.float32)
        policy = FakePolicy(Clock(), actions=lambda normalised, state: beyond)
        assert "1.2 is outside [-1, 1]" in runner(policy).step(observation(), 10.0, 0).refused
        assert runner(policy, limits=None).step(observation(), 10.0, 0).refused == ""
        wide = PolicyRunner(policy, LIMITS, policy.clock, tolerance=Tolerance(position=0.3))
        assert wide.step(observation(), 10.0, 0).refused == ""

    @pytest.mark.parametrize("failing", ["prefill", "denoise"])
    def test_what_the_backend_raises_passes_through_and_leaves_no_prefix(self, failing):
        policy = FakePolicy(Clock(), reuse_every=9)
        run = runner(policy)
        if failing == "denoise":
            run.step(observation(10.0), 10.0, 0)
        policy.backend.fails = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            run.step(observation(10.1), 10.1, 1)
        assert policy.backend.calls[-1] == failing
        policy.backend.fails = None
        assert run.step(observation(10.2), 10.2, 2).decision == "refill: failed step"


class TestTiming:
    def test_of_a_refill(self):
        timing = runner(FakePolicy(Clock())).step(observation(10.0), 10.04, 0).timing
        assert timing.preprocess_ms == pytest.approx(5.0)
        assert (timing.vision_ms, timing.prefill_ms, timing.denoise_ms) == (8.0, 12.0, 10.0)
        assert timing.postprocess_ms == pytest.approx(1.0)
        assert timing.total_ms == pytest.approx(36.0)
        # 40 ms old at the call, 5 ms of preprocessing and 20 ms of prefill before denoising.
        assert timing.prefix_age_ms == pytest.approx(65.0)

    def test_of_a_reuse(self):
        run = runner(FakePolicy(Clock(), reuse_every=2))
        run.step(observation(10.0), 10.0, 0)
        timing = run.step(observation(10.1), 10.1, 1).timing
        assert (timing.preprocess_ms, timing.vision_ms, timing.prefill_ms) == (0.0, 0.0, 0.0)
        assert timing.denoise_ms == 10.0
        assert timing.total_ms == pytest.approx(11.0)
        assert timing.prefix_age_ms == pytest.approx(100.0)


class TestMistakes:
    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"num_steps": 0}, "at least 1 denoise step, got 0"),
            ({"noise": np.zeros((2, 2), np.float32)}, r"noise of shape \(5, 4\), got \(2, 2\)"),
            ({"noise": np.zeros((HORIZON, MODEL_DIM), np.float32), "seed": 1}, "got both"),
        ],
    )
    def test_are_told(self, wrong, said):
        with pytest.raises(ValueError, match=said):
            runner(FakePolicy(Clock())).step(observation(), 10.0, 0, **wrong)


happenings = st.tuples(
    st.integers(-2, 4),  # ticks since the step before
    st.sampled_from(["red", "red", "red", "blue"]),
    st.sampled_from([("base",), ("base",), ()]),
    st.sampled_from(["fine", "fine", "fine", "refused", "raises"]),
)


@given(st.integers(1, 5), st.lists(happenings, min_size=5, max_size=40))
def test_whatever_happens_no_chunk_comes_from_a_prefix_too_old_or_of_another_key(
    reuse_every, steps
):
    """The backend itself refuses a stale prefix; here are age, key and what went before."""
    policy = FakePolicy(Clock(), reuse_every=reuse_every)
    run = runner(policy)
    made_at: tuple[int, str, tuple[str, ...]] | None = None
    tick = 0
    for ticks, prompt, cameras, fate in steps:
        tick += ticks
        nan = np.full((HORIZON, 2), np.nan if fate == "refused" else 0.0, np.float32)
        policy.actions = lambda normalised, state, nan=nan: nan
        policy.backend.fails = ZeroDivisionError() if fate == "raises" else None
        before = policy.backend.calls.count("prefill")
        seen = observation(10.0 + tick / 10, prompt, cameras)
        try:
            result = run.step(seen, seen.stamp_s, tick)
        except ZeroDivisionError:
            made_at = None
            continue
        refilled = policy.backend.calls.count("prefill") > before
        assert refilled == result.decision.startswith("refill")
        if refilled:
            made_at = (tick, prompt, cameras)
        assert made_at is not None, "reused after a failure"
        assert made_at[1:] == (prompt, cameras)
        assert refilled or 0 <= tick - made_at[0] < reuse_every
        if result.chunk is None:
            assert result.refused
            made_at = None
        else:
            assert result.chunk.observed_at_s == pytest.approx(10.0 + made_at[0] / 10)
            assert result.chunk.prefix_reused == (not refilled)

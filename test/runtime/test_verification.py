"""No engine that differs from the policy passes; one that computes the same otherwise does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import faulty_engine as faulty
from support.golden import TOY, toy_config
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint

import thor_policy_ros
from thor_policy_ros.runtime.engine_difference import THRESHOLDS
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification import (
    ReferenceFrame,
    is_reference,
    precision_of,
    reference_frames,
    verification_json,
    verify_backend_engine,
    verify_frames,
)
from thor_policy_ros.runtime.verification_inputs import (
    engine_inputs,
    recorded_inputs,
    synthetic_observations,
)
from thor_policy_ros.types import BackendSpec, VerificationFailedError

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"
"""Trained weights: with random ones the actions hardly depend on what is seen."""
PRECISIONS = sorted(THRESHOLDS)
FAULTS = {
    faulty.layer_shuffled: "keys of layer 1: cosine",
    faulty.expert_layer_shuffled: "actions: cosine",
    faulty.mask_dropped: "of layer",
    faulty.keys_scaled: "keys of layer 0: scale 1.0500",
    faulty.norm_plus_one_forgotten: "keys of layer 1: cosine",
    faulty.nan_in_one_position: "values of layer 3: 1 of 4544 values are not finite",
    faulty.one_token_misplaced: "keys of layer 0: cosine",
    faulty.prefix_too_short: "shape of keys is (4, 1, 141, 32), wanted (4, 1, 142, 32)",
    faulty.one_row_missing: "shape of actions is (9, 32), wanted (10, 32)",
    faulty.actions_constant: "actions: cosine",
    faulty.one_step_more: "actions: cosine",
    faulty.one_step_less: "actions: cosine",
    faulty.stale_prefix: "actions: cosine",
}


@pytest.fixture
def policy() -> Iterator[UnifiedPolicy]:
    with UnifiedPolicy(DEMO, dtype="float32", device="cpu") as policy:
        yield policy


@pytest.fixture(scope="module")
def frames() -> tuple[ReferenceFrame, ...]:
    with UnifiedPolicy(DEMO, dtype="float32", device="cpu") as reference:
        seen = synthetic_observations(reference.config, 3)
        return reference_frames(
            reference, engine_inputs(reference.preprocess, reference.config, seen)
        )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_is_caught_and_named(
    policy: UnifiedPolicy,
    frames: tuple[ReferenceFrame, ...],
    fault: faulty.Fault,
    precision: str,
) -> None:
    fault(policy)
    found = verify_frames(policy, frames, THRESHOLDS[precision])
    assert not found.ok
    assert FAULTS[fault] in found.reason
    assert f"for {precision}, on observation" in found.reason


def test_another_way_to_compute_the_same_passes_the_tightest_bounds(
    policy: UnifiedPolicy, frames: tuple[ReferenceFrame, ...]
) -> None:
    faulty.padded(policy)
    found = verify_frames(policy, frames, THRESHOLDS["float32"])
    assert found.ok and not found.reason
    assert 1.0 > found.cosine > 0.999999 or found.max_abs_error > 0, "it computes otherwise"
    assert len(found.keys_cosine) == len(found.values_cosine) == 4


def test_bfloat16_passes_its_own_bounds_and_not_those_of_float32(
    frames: tuple[ReferenceFrame, ...],
) -> None:
    with UnifiedPolicy(DEMO, dtype="bfloat16", device="cpu") as policy:
        assert precision_of(policy) == "bfloat16" and not is_reference(policy)
        found = verify_frames(policy, frames)
        assert found.ok and found.precision == "bfloat16"
        assert 0.999 < found.cosine < 0.99999
        assert not verify_frames(policy, frames, THRESHOLDS["float32"]).ok


def test_a_pipelined_engine_is_verified_with_its_next_prefix_under_way(
    frames: tuple[ReferenceFrame, ...],
) -> None:
    with UnifiedPolicy(DEMO, "pytorch_pipelined", dtype="float32", device="cpu") as policy:
        assert not is_reference(policy)
        calls: list[str] = []
        prefill, denoise = policy.backend.prefill, policy.backend.denoise
        policy.backend.prefill = lambda *a: calls.append("prefill") or prefill(*a)
        policy.backend.denoise = lambda *a: calls.append("denoise") or denoise(*a)
        assert verify_frames(policy, frames).ok
        assert calls == ["prefill", "prefill", "denoise", "prefill", "denoise", "denoise"]


def test_the_worst_observation_decides_not_the_mean(
    policy: UnifiedPolicy, frames: tuple[ReferenceFrame, ...]
) -> None:
    spoiled = replace(frames[1].frame, actions=-frames[1].frame.actions)
    mixed = (frames[0], ReferenceFrame(frames[1].given, spoiled), frames[2])
    found = verify_frames(policy, mixed)
    assert not found.ok and found.cosine == pytest.approx(-1.0)
    assert found.worst == frames[1].given.label and found.worst in found.reason


def test_the_public_function_takes_observations_and_is_reproducible(tmp_path: Path) -> None:
    folder = write_toy_checkpoint(tmp_path)
    with UnifiedPolicy(folder, device="cpu") as policy, UnifiedPolicy(folder, device="cpu") as ref:
        seen = [toy_observation(seed=seed) for seed in range(2)]
        first = thor_policy_ros.verify_backend_engine(policy, seen, ref)
        assert first.ok and first.observations == 2 and first.backend == "pytorch"
        assert first == verify_backend_engine(policy, seen, ref)
        alone = verify_backend_engine(policy, seen[0], ref)
        assert alone == verify_backend_engine(policy, seen[:1], ref) and alone.observations == 1
        with pytest.raises(ValueError, match="at least 1 observation"):
            verify_backend_engine(policy, [], ref)


def test_other_weights_are_another_policy(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write_toy_checkpoint(folder, seed=seed)
    with UnifiedPolicy(folders[0]) as policy, UnifiedPolicy(folders[1]) as reference:
        assert not verify_backend_engine(policy, [toy_observation()], reference).ok


def test_a_reference_that_is_not_finite_is_no_reference(policy: UnifiedPolicy) -> None:
    faulty.nan_in_one_position(policy)
    with pytest.raises(VerificationFailedError, match="reference itself gives values"):
        verify_backend_engine(policy, synthetic_observations(policy.config, 1), policy)


def test_fp8_and_unknown_precision(policy: UnifiedPolicy) -> None:
    assert precision_of(policy) == "float32" and is_reference(policy)
    policy.spec = BackendSpec("fp8_mlp", "fp8_mlp", mlp="fp8_hybrid")
    assert precision_of(policy) == "fp8"
    policy.spec = BackendSpec("other", "other")
    policy.backend.dtype = torch.float16
    assert precision_of(policy) == "float32", "an unknown dtype is held to the tightest bounds"


def test_the_report_is_json_without_nan(
    policy: UnifiedPolicy, frames: tuple[ReferenceFrame, ...]
) -> None:
    faulty.one_row_missing(policy)
    found = verification_json(verify_frames(policy, frames))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["actions_cosine"] is None and not found["ok"] and found["keys_cosine"] == []


def test_synthetic_observations_are_the_same_for_a_seed_and_lack_a_camera_in_turn() -> None:
    first, again, other = (synthetic_observations(TINY, 4, seed) for seed in (3, 3, 4))
    for one, two, three in zip(first, again, other, strict=True):
        assert one.prompt == two.prompt and one.images.keys() == two.images.keys()
        np.testing.assert_array_equal(one.state, two.state)
        for slot, image in one.images.items():
            np.testing.assert_array_equal(image, two.images[slot])
            assert (image != three.images[slot]).any() and image.std() > 10
    assert [len(seen.images) for seen in first] == [2, 1, 2, 1]
    with pytest.raises(ValueError, match="at least 1 observation"):
        synthetic_observations(TINY, 0)


def test_recorded_inputs_and_their_sizes(tmp_path: Path) -> None:
    config = replace(TINY, model=toy_config(), camera_slots=("a", "b", "c"))
    given = recorded_inputs(TOY, config)
    assert [frame.num_steps for frame in given] == [10, 2, 1]
    assert given[0].inputs.image_mask.dtype == np.bool_
    with pytest.raises(ValueError, match=r"images is .* policy 'tiny' has"):
        recorded_inputs(TOY, TINY)
    with pytest.raises(FileNotFoundError, match=r"no inputs\.safetensors"):
        recorded_inputs(tmp_path, config)

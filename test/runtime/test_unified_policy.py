"""UnifiedPolicy: an observation in robot units becomes a chunk of commands."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint

import thor_policy_ros
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.pixels import in_model_range
from thor_policy_ros.model.transforms import Preprocessor
from thor_policy_ros.model.weight_files import CheckpointError
from thor_policy_ros.runtime.unified_policy import InferenceRefusedError, UnifiedPolicy
from thor_policy_ros.types import ModelInputs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> UnifiedPolicy:
    made = UnifiedPolicy(checkpoint, device="cpu")
    made.warmup()
    return made


def test_a_chunk_in_robot_units_with_its_times(policy: UnifiedPolicy) -> None:
    chunk = policy.infer(toy_observation(stamp_s=7.5), num_steps=3)
    assert chunk.actions.shape == (TINY.model.action_horizon, TINY.action_dim)
    assert chunk.actions.dtype == np.float32 and np.isfinite(chunk.actions).all()
    assert (chunk.observed_at_s, chunk.dt_s, chunk.prefix_reused) == (7.5, TINY.action_dt_s, False)
    timing = chunk.timing
    assert timing is not None
    stages = (timing.preprocess_ms, timing.vision_ms, timing.prefill_ms, timing.denoise_ms)
    assert min(stages) > 0 and timing.total_ms >= sum(stages)


def test_the_chunk_is_what_transforms_and_model_compute(
    policy: UnifiedPolicy, checkpoint: Path
) -> None:
    """Step by step on the model's full path, from a noise of NumPy's generator."""
    seen, transforms = toy_observation(), policy._preprocessor
    assert isinstance(transforms, Preprocessor)
    inputs: ModelInputs = transforms(seen)
    model = load_pi05(checkpoint, TINY.model)
    noise = np.random.default_rng(5).standard_normal((6, 32), dtype=np.float32)
    encoded = model.prefill(
        torch.from_numpy(in_model_range(inputs.images))[None],
        torch.from_numpy(inputs.image_mask)[None],
        torch.from_numpy(inputs.tokens)[None],
        torch.from_numpy(inputs.token_mask)[None],
    )
    normalised = model.sample(encoded, torch.from_numpy(noise)[None], 4)[0].numpy()
    expected = transforms.unnormalise(normalised, seen.state)
    chunk = policy.infer(seen, num_steps=4, seed=5)
    assert np.allclose(chunk.actions, expected, atol=1e-5)
    assert np.array_equal(policy.infer(seen, num_steps=4, noise=noise).actions, chunk.actions)


def test_images_are_resized_unless_the_backend_does_that(
    policy: UnifiedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, size = toy_observation(), TINY.model.vision.image_size
    assert policy.preprocess(seen).images.shape[2:] == (size, size)
    monkeypatch.setattr(policy.backend, "resizes_frames", True, raising=False)
    found = policy.preprocess(seen)
    for frame, image in zip(found.frames, seen.images.values(), strict=True):
        assert frame is not None and np.array_equal(frame, image)
    with pytest.raises(ValueError, match="does not resize camera frames"):
        policy.infer(seen)


def test_seeds_repeat_and_differ(policy: UnifiedPolicy) -> None:
    def actions(seed: int | None) -> np.ndarray:
        return policy.infer(toy_observation(), num_steps=2, seed=seed).actions

    assert np.array_equal(actions(1), actions(1))
    assert not np.array_equal(actions(1), actions(2))
    assert not np.array_equal(actions(None), actions(None))


def test_words_images_and_state_all_matter(policy: UnifiedPolicy) -> None:
    seen = toy_observation()
    base = policy.infer(seen, num_steps=2, seed=0).actions
    black = {slot: np.zeros_like(image) for slot, image in seen.images.items()}
    one = {"base_0_rgb": seen.images["base_0_rgb"]}
    for change in ({"prompt": "push"}, {"images": black}, {"images": one}, {"state": -seen.state}):
        other = dataclasses.replace(seen, **change)  # type: ignore[arg-type]
        assert not np.allclose(policy.infer(other, num_steps=2, seed=0).actions, base)


def test_actions_that_are_not_finite_are_refused(checkpoint: Path) -> None:
    with UnifiedPolicy(checkpoint, device="cpu") as policy:
        noise = np.full((6, 32), np.nan, np.float32)
        with pytest.raises(InferenceRefusedError, match=r"backend 'pytorch': .*finite"):
            policy.infer(toy_observation(), noise=noise)


def test_leaving_the_context_closes_the_backend(checkpoint: Path) -> None:
    with UnifiedPolicy(checkpoint, device="cpu") as policy:
        policy.infer(toy_observation(), num_steps=1)
    with pytest.raises(RuntimeError, match="closed"):
        policy.infer(toy_observation(), num_steps=1)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", 'has no "policy" entry'),
        ("tokenizer.model", "no tokenizer file"),
        ("assets/tiny/norm_stats.json", "no normalisation statistics"),
        ("model.safetensors", "wanted model.safetensors"),
    ],
)
def test_an_incomplete_folder_is_refused_by_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str, message: str
) -> None:
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "no cache"))
    folder = write_toy_checkpoint(tmp_path / "checkpoint")
    (folder / removed).unlink()
    with pytest.raises((ValueError, FileNotFoundError, CheckpointError), match=message):
        UnifiedPolicy(folder, device="cpu")


def test_wrong_names_list_the_choices(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="choose one of: pytorch"):
        UnifiedPolicy(checkpoint, "warp_drive")
    with pytest.raises(ValueError, match="choose one of: demo, pi05_aloha"):
        UnifiedPolicy(checkpoint, config="pi0")


def test_the_package_offers_it_without_importing_torch_first() -> None:
    assert thor_policy_ros.UnifiedPolicy is UnifiedPolicy
    code = (
        "import sys, thor_policy_ros;"
        "from thor_policy_ros.backends.registry import BACKENDS;"
        "assert 'pytorch' in BACKENDS; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

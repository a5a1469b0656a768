"""The pytorch backend: the recorded actions, within its savings, and its contract."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.golden import TOLERANCE, TOY, largest_error, toy_config, toy_model_inputs, toy_noise
from support.golden import toy_outputs as outputs

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, create_backend
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.types import BackendUnavailableError, ModelInputs, StalePrefixError

NOISE = toy_noise()[0].numpy()


@pytest.fixture(scope="module")
def backend() -> PyTorchBackend:
    made = create_backend("pytorch", TOY, toy_config(), "cpu", "float32")
    assert isinstance(made, PyTorchBackend)
    return made


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_recorded_actions(backend: PyTorchBackend, num_steps: int) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    actions = torch.from_numpy(backend.denoise(prefix, NOISE, num_steps))
    assert largest_error(actions, outputs()[f"actions_{num_steps}_steps"][0]) < TOLERANCE


def test_the_prefix_holds_the_valid_tokens_and_nothing_else(backend: PyTorchBackend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 12.5)
    valid = outputs()["prefix_pad_mask"][0]
    assert largest_error(prefix.keys, outputs()["prefix_k"][..., valid, :]) < TOLERANCE
    assert largest_error(prefix.values, outputs()["prefix_v"][..., valid, :]) < TOLERANCE
    assert prefix.pad_mask.all() and prefix.pad_mask.shape == (1, int(valid.sum()))
    assert prefix.observed_at_s == 12.5


def test_a_prefix_serves_several_denoisings_alike(backend: PyTorchBackend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    first = backend.denoise(prefix, NOISE, 3)
    backend.denoise(prefix, NOISE + 1, 5)
    assert np.array_equal(backend.denoise(prefix, NOISE, 3), first)


def test_prefixes_of_changing_length_match_the_full_path(backend: PyTorchBackend) -> None:
    """Compaction agrees with masking, whichever cameras and tokens are present."""
    model = load_pi05(TOY, toy_config())
    inputs = toy_model_inputs()
    for cameras in itertools.product([True, False], repeat=3):
        mask = np.array(cameras)
        if not mask.any():
            continue
        token_mask = np.arange(24) < 3 + 4 * mask.sum()
        varied = ModelInputs(inputs.images, mask, inputs.tokens, token_mask)
        ours = backend.denoise(backend.prefill(varied, 0.0), NOISE, 2)
        full = model.prefill(
            torch.from_numpy(varied.images)[None],
            torch.from_numpy(mask)[None],
            torch.from_numpy(varied.tokens)[None],
            torch.from_numpy(token_mask)[None],
        )
        theirs = model.sample(full, torch.from_numpy(NOISE)[None], 2)[0]
        assert largest_error(torch.from_numpy(ours), theirs) < 2e-5


def test_a_stale_prefix_is_refused(backend: PyTorchBackend) -> None:
    old = backend.prefill(toy_model_inputs(), 0.0)
    new = backend.prefill(toy_model_inputs(), 1.0)
    with pytest.raises(StalePrefixError, match="prefill again"):
        backend.denoise(old, NOISE, 1)
    assert np.isfinite(backend.denoise(new, NOISE, 1)).all()


def test_wrong_noise_and_step_counts_are_refused(backend: PyTorchBackend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    with pytest.raises(ValueError, match=r"noise of shape \(10, 32\), got \(9, 32\)"):
        backend.denoise(prefix, NOISE[:9], 1)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        backend.denoise(prefix, NOISE, 0)


def test_bfloat16_on_the_cpu_stays_close_to_float32(backend: PyTorchBackend) -> None:
    half = create_backend("pytorch", TOY, toy_config(), "cpu", "bfloat16")
    ours = half.denoise(half.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    theirs = backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    cosine = np.dot(ours.ravel(), theirs.ravel()) / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert ours.dtype == np.float32
    assert 0.999 < cosine < 1.0


def test_stage_times_are_those_of_the_clock() -> None:
    """A clock that advances one second a reading: each stage lasts one second."""
    ticks = itertools.count()
    model = load_pi05(TOY, toy_config())
    backend = PyTorchBackend(BACKENDS["pytorch"], model, clock=lambda: float(next(ticks)))
    backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 1)
    assert backend.stage_times_ms() == {"vision": 1000.0, "prefill": 1000.0, "denoise": 1000.0}


def test_a_closed_backend_says_so() -> None:
    backend = create_backend("pytorch", TOY, toy_config(), "cpu")
    backend.warmup()
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.prefill(toy_model_inputs(), 0.0)


@pytest.mark.parametrize(("device", "dtype"), [("meta", None), ("cpu", "float16")])
def test_what_it_cannot_run_on_is_named(device: str, dtype: str | None) -> None:
    with pytest.raises(BackendUnavailableError, match="not supported; choose"):
        create_backend("pytorch", TOY, toy_config(), device, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_cuda_is_an_error_not_a_fallback() -> None:
    with pytest.raises(BackendUnavailableError, match="sees no CUDA device"):
        create_backend("pytorch", TOY, toy_config(), "cuda")

"""Pipelining changes when a prefix is used, never what it gives."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise
from support.toy_checkpoint import TINY, toy_observation, write_toy_checkpoint

from thor_policy_ros.backends.pipelined import PipelinedBackend
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, create_backend
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.runtime.policy_runner import PolicyRunner
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.types import ModelInputs, Observation, StalePrefixError

NOISE = toy_noise()[0].numpy()
ON_GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ],
)


@pytest.fixture(params=["cpu", ON_GPU])
def backend(request: pytest.FixtureRequest) -> Iterator[PipelinedBackend]:
    made = create_backend("pytorch_pipelined", TOY, toy_config(), request.param, "float32")
    assert isinstance(made, PipelinedBackend)
    made.warmup()
    yield made
    made.close()


def test_two_prefixes_are_valid_and_a_third_makes_the_first_stale(
    backend: PipelinedBackend,
) -> None:
    plain = create_backend("pytorch", TOY, toy_config(), backend.device, "float32")
    inputs = toy_model_inputs()
    wanted = plain.denoise(plain.prefill(inputs, 0.0), NOISE, 3)
    first = backend.prefill(inputs, 0.0)
    second = backend.prefill(_brighter(), 0.1)
    assert np.array_equal(backend.denoise(first, NOISE, 3), wanted)
    assert not np.allclose(backend.denoise(second, NOISE, 3), wanted)
    assert np.array_equal(backend.denoise(first, NOISE, 3), wanted), "either, in any order"
    third = backend.prefill(inputs, 0.2)
    with pytest.raises(StalePrefixError, match="prefill again"):
        backend.denoise(first, NOISE, 3)
    assert np.array_equal(backend.denoise(third, NOISE, 3), wanted)


def test_prefixes_of_two_lengths_keep_apart(backend: PipelinedBackend) -> None:
    inputs = toy_model_inputs()
    short_mask = inputs.image_mask & (np.arange(len(inputs.image_mask)) < 1)
    short = type(inputs)(inputs.images, short_mask, inputs.tokens, inputs.token_mask)
    plain = create_backend("pytorch", TOY, toy_config(), backend.device, "float32")
    long_prefix, short_prefix = backend.prefill(inputs, 0.0), backend.prefill(short, 0.1)
    for prefix, given in ((long_prefix, inputs), (short_prefix, short)):
        wanted = plain.denoise(plain.prefill(given, 0.0), NOISE, 2)
        assert np.array_equal(backend.denoise(prefix, NOISE, 2), wanted)


def test_stage_times_are_those_of_the_prefix_in_use() -> None:
    """A clock that doubles with every reading: each stage has a duration of its own."""
    readings = (float(2**n) for n in range(60))
    engine = PyTorchBackend(
        BACKENDS["pytorch_pipelined"], load_pi05(TOY, toy_config()), clock=lambda: next(readings)
    )
    backend = PipelinedBackend(engine)
    first = backend.prefill(toy_model_inputs(), 0.0)  # readings 1, 2, 4, 8
    backend.prefill(toy_model_inputs(), 0.1)  # 16 to 128
    backend.denoise(first, NOISE, 1)  # 256, 512
    wanted = {"vision": 1e3, "prefill": 4e3, "denoise": 256e3}
    assert backend.stage_times_ms() == wanted


def test_an_engine_of_one_slot_is_refused() -> None:
    engine = PyTorchBackend(BACKENDS["pytorch"], load_pi05(TOY, toy_config()))
    with pytest.raises(ValueError, match="2 prefix slots, got 1"):
        PipelinedBackend(engine)


def test_the_chunk_of_a_tick_is_that_of_the_observation_before(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As `pytorch` computes it, with the noise of the tick: state, stamp and all."""
    folder = write_toy_checkpoint(tmp_path_factory.mktemp("tiny"))
    frames = [toy_observation(TINY, seed=n, stamp_s=n / 10) for n in range(5)]
    with UnifiedPolicy(folder) as plain, UnifiedPolicy(folder, "pytorch_pipelined") as pipelined:
        runner = PolicyRunner(pipelined, None, time.perf_counter)
        for tick, observation in enumerate(frames):
            result = runner.step(observation, observation.stamp_s, tick, 3, seed=tick)
            older: Observation = frames[max(tick - 1, 0)]
            wanted = plain.infer(older, 3, seed=tick)
            assert result.chunk is not None
            assert np.array_equal(result.chunk.actions, wanted.actions)
            assert result.chunk.observed_at_s == older.stamp_s
            assert result.decision == ("pipelined" if tick else "refill: no prefix")


def test_one_frame_alone_is_answered_with_itself(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = write_toy_checkpoint(tmp_path_factory.mktemp("tiny"))
    observation = toy_observation()
    with UnifiedPolicy(folder) as plain, UnifiedPolicy(folder, "pytorch_pipelined") as pipelined:
        for seed in (1, 2):
            ours, theirs = (p.infer(observation, 3, seed=seed) for p in (pipelined, plain))
            assert np.array_equal(ours.actions, theirs.actions)


def _brighter() -> ModelInputs:
    inputs = toy_model_inputs()
    return type(inputs)(
        np.clip(inputs.images + 0.5, -1, 1), inputs.image_mask, inputs.tokens, inputs.token_mask
    )

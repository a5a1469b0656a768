"""Backend tensorrt on a GPU, with the real library. Not run yet: tolerances are what float32 and
bfloat16 gave elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden import (
    TOLERANCE,
    TOY,
    largest_error,
    toy_config,
    toy_model_inputs,
    toy_noise,
    toy_outputs,
)

from thor_policy_ros.backends.registry import availability, create_backend
from thor_policy_ros.types import F32, Backend, EngineOptions, Guidance, StalePrefixError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(availability("tensorrt") != (), reason="; ".join(availability("tensorrt"))),
]
NOISE = toy_noise()[0].numpy()


@pytest.fixture(scope="module", name="options")
def _options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    return EngineOptions(cache_dir=str(tmp_path_factory.mktemp("engines")))


def make(options: EngineOptions, name: str = "tensorrt", dtype: str = "float32") -> Backend:
    return create_backend(name, TOY, toy_config(), "cuda", dtype, options)


@pytest.fixture(scope="module", name="backend")
def _backend(options: EngineOptions) -> Iterator[Backend]:
    made = make(options)
    made.warmup()
    yield made
    made.close()


def frame(made: Backend, steps: int = 3, guidance: Guidance | None = None) -> F32:
    return made.denoise(made.prefill(toy_model_inputs(), 0.0), NOISE, steps, guidance)


def test_the_recorded_outputs_are_met_by_graphs_and_their_first_runs(backend: Backend) -> None:
    recorded = toy_outputs()
    kept = recorded["prefix_pad_mask"][0]
    for _ in range(2):
        prefix = backend.prefill(toy_model_inputs(), 0.0)
        for steps in (1, 3, 10):
            actions = torch.from_numpy(backend.denoise(prefix, NOISE, steps))
            assert largest_error(actions, recorded[f"actions_{steps}_steps"][0]) < TOLERANCE
        keys = prefix.keys[:, 0].cpu()
        assert largest_error(keys, recorded["prefix_k"][:, 0][..., kept, :]) < TOLERANCE


def test_every_engine_is_captured(backend: Backend) -> None:
    assert getattr(backend, "warnings", None) == ()


def test_bfloat16_stays_close_to_float32(options: EngineOptions) -> None:
    made = make(options, dtype="bfloat16")
    ours, theirs = frame(made, 10).ravel(), toy_outputs()["actions_10_steps"][0].numpy().ravel()
    made.close()
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.999


def test_pipelined_frames_are_those_of_the_plain_engine(
    backend: Backend, options: EngineOptions
) -> None:
    made = make(options, "tensorrt_pipelined")
    made.warmup()
    wanted = frame(backend)
    prefixes = [made.prefill(toy_model_inputs(), 0.0)]
    for n in range(5):
        prefixes.append(made.prefill(toy_model_inputs(), float(n)))
        assert np.array_equal(made.denoise(prefixes[-2], NOISE, 3), wanted)
    with pytest.raises(StalePrefixError):
        made.denoise(prefixes[0], NOISE, 3)
    made.close()


def test_guidance_is_that_of_pytorch(backend: Backend) -> None:
    weights = (np.arange(len(NOISE)) < 4).astype(np.float32)
    guidance = Guidance(np.full(NOISE.shape, 0.4, np.float32), weights)
    plain = create_backend("pytorch", TOY, toy_config(), "cuda", "float32")
    theirs = plain.denoise(plain.prefill(toy_model_inputs(), 0.0), NOISE, 5, guidance)
    assert np.abs(frame(backend, 5, guidance) - theirs).max() < TOLERANCE
    free = Guidance(guidance.actions, np.zeros_like(weights))
    assert np.array_equal(frame(backend, 5, free), frame(backend, 5))


def test_stage_times_come_from_the_device(backend: Backend) -> None:
    frame(backend)
    assert all(0 < ms < 10_000 for ms in backend.stage_times_ms().values())


def test_engines_are_found_again(backend: Backend, options: EngineOptions) -> None:
    made = make(options)
    assert any("vision found, prefix found, denoise found" in n for n in getattr(made, "notes", ()))
    assert len(list(Path(options.cache_dir).glob("*.engine"))) in (3, 6)
    made.close()

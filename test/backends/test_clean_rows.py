"""A prefix of actions given as they are, at the flow's time 0: in the model and in the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.pi05 import flow_times
from thor_policy_ros.types import Backend, Guidance

NOISE = toy_noise()[0].numpy()
TARGET = np.random.default_rng(3).standard_normal(NOISE.shape).astype(np.float32)


@pytest.fixture(scope="module", params=["pytorch", "pytorch_pipelined"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return create_backend(request.param, TOY, toy_config(), "cpu", "float32")


def given(rows: int) -> Guidance:
    return Guidance(TARGET, np.zeros(len(NOISE), np.float32), 5.0, rows)


def test_given_rows_come_out_as_they_went_in(backend: Backend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    free = backend.denoise(prefix, NOISE, 3)
    actions = backend.denoise(prefix, NOISE, 3, given(4))
    assert np.array_equal(actions[:4], TARGET[:4])
    assert not np.allclose(actions[4:], free[4:]), "the rest is a continuation"
    assert np.array_equal(backend.denoise(prefix, NOISE, 3, given(0)), free)
    assert np.array_equal(backend.denoise(prefix, NOISE, 3), free)


def test_the_engine_agrees_with_the_model_with_a_time_for_each_row(backend: Backend) -> None:
    model, inputs = load_pi05(TOY, toy_config()), toy_model_inputs()
    arrays = (inputs.images, inputs.image_mask, inputs.tokens.astype(np.int64), inputs.token_mask)
    with torch.inference_mode():
        encoded = model.prefill(*(torch.from_numpy(x)[None] for x in arrays))
        x = torch.from_numpy(np.concatenate((TARGET[:4], NOISE[4:])))[None]
        for time in flow_times(3, torch.device("cpu")):
            t = torch.full((1, len(NOISE)), float(time))
            t[:, :4] = 0.0
            v = model.denoise_step(x, t, encoded.keys, encoded.values, encoded.pad_mask)
            x = torch.cat((x[:, :4], x[:, 4:] - v[:, 4:] / 3), 1)
    ours = backend.denoise(backend.prefill(inputs, 0.0), NOISE, 3, given(4))
    np.testing.assert_allclose(ours, x[0].numpy(), atol=2e-5)


def test_one_time_for_all_rows_is_that_time_for_each() -> None:
    model = load_pi05(TOY, toy_config())
    once = model.modulations(torch.tensor([0.3]))
    each = model.modulations(torch.full((1, 5), 0.3))
    for one, five in zip(once, each, strict=True):
        assert five.scale.shape[:2] == (1, 5)
        torch.testing.assert_close(one.scale.expand_as(five.scale), five.scale)
        torch.testing.assert_close(one.gate.expand_as(five.gate), five.gate)

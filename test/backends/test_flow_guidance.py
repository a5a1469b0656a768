"""Guidance of the flow: exact when off, bounded when on, and the same for every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise

from thor_policy_ros.backends.flow_guidance import (
    GuidanceBuffers,
    check_guidance,
    guidance_gain,
    guided_velocity,
    step_gains,
    step_times,
)
from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.types import F32, Backend, Guidance

NOISE = toy_noise()[0].numpy()
SHAPE = NOISE.shape
TARGET = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)


def guidance(weights: F32, max_weight: float = 5.0) -> Guidance:
    return Guidance(TARGET, weights.astype(np.float32), max_weight)


def first_rows(count: int) -> F32:
    return (np.arange(SHAPE[0]) < count).astype(np.float32)


@pytest.fixture(scope="module", params=["pytorch", "pytorch_pipelined"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return create_backend(request.param, TOY, toy_config(), "cpu", "float32")


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_weights_of_zero_change_no_bit(backend: Backend, num_steps: int) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    plain = backend.denoise(prefix, NOISE, num_steps)
    assert np.array_equal(
        backend.denoise(prefix, NOISE, num_steps, guidance(0 * NOISE[:, 0])), plain
    )
    none = guidance(first_rows(SHAPE[0]), max_weight=0.0)
    assert np.array_equal(backend.denoise(prefix, NOISE, num_steps, none), plain)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_guided_rows_come_near_their_target(backend: Backend, num_steps: int) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    free = backend.denoise(prefix, NOISE, num_steps)
    pulled = backend.denoise(prefix, NOISE, num_steps, guidance(first_rows(4), 10.0))
    before, after = (np.abs(x[:4] - TARGET[:4]).mean() for x in (free, pulled))
    assert after < 0.2 * before


def test_the_next_denoising_knows_nothing_of_the_guidance_before(backend: Backend) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    plain = backend.denoise(prefix, NOISE, 3)
    assert not np.allclose(backend.denoise(prefix, NOISE, 3, guidance(first_rows(4))), plain)
    assert np.array_equal(backend.denoise(prefix, NOISE, 3), plain)


def test_one_step_of_full_weight_is_the_target(backend: Backend) -> None:
    """The bound by the number of steps: a step goes to the target, never past it."""
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    actions = backend.denoise(prefix, NOISE, 1, guidance(first_rows(SHAPE[0]), 100.0))
    assert np.allclose(actions, TARGET, atol=1e-5)


@given(
    num_steps=st.integers(1, 50),
    max_weight=st.floats(0.0, 100.0),
    at=st.integers(0, 49),
)
def test_the_gain_is_bounded(num_steps: int, max_weight: float, at: int) -> None:
    t = step_times(num_steps)[at % num_steps]
    gain = guidance_gain(t, num_steps, max_weight)
    assert 0.0 <= gain <= min(max_weight, num_steps)


def test_the_gain_is_the_papers_where_it_is_not_bounded() -> None:
    """(1-tau)/tau * ((1-tau)^2 + tau^2)/(1-tau)^2 at tau = 0.3 and 0.5."""
    for tau in (0.3, 0.5):
        wanted = (1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2
        assert guidance_gain(1 - tau, 10, 5.0) == pytest.approx(wanted)
    assert guidance_gain(1.0, 10, 5.0) == 5.0


def test_gains_are_weights_times_the_gain_of_the_step() -> None:
    gains = step_gains(guidance(first_rows(2) * 0.5), 3)
    wanted = [guidance_gain(t, 3, 5.0) * 0.5 for t in step_times(3)]
    assert np.allclose(gains[:, 0], wanted) and not gains[:, 2:].any()


def test_a_flow_that_already_leads_to_the_target_is_left_alone() -> None:
    x, target = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    velocity = (x - target) / 0.5
    gain = torch.full((1, 4, 1), 3.0)
    assert torch.allclose(guided_velocity(x, velocity, 0.5, target, gain), velocity, atol=1e-5)


def test_buffers_keep_their_addresses() -> None:
    buffers = GuidanceBuffers(3, *SHAPE, "cpu")
    addresses = buffers.target.data_ptr(), buffers.gains.data_ptr()
    buffers.set(guidance(first_rows(2)))
    assert buffers.gains.any()
    buffers.set(None)
    assert not buffers.gains.any()
    assert addresses == (buffers.target.data_ptr(), buffers.gains.data_ptr())


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        (Guidance(TARGET[1:], first_rows(1)), "actions of shape"),
        (Guidance(TARGET, first_rows(1)[1:]), "weights"),
        (Guidance(TARGET, first_rows(1) * 1.5), r"\[0,1\]"),
        (Guidance(TARGET, first_rows(1) * np.nan), r"\[0,1\]"),
        (Guidance(TARGET * np.inf, first_rows(1)), "finite actions"),
        (Guidance(TARGET, first_rows(1), np.inf), "max_weight"),
        (Guidance(TARGET, first_rows(1), 5.0, SHAPE[0]), "clean rows"),
    ],
)
def test_what_does_not_fit_is_refused(backend: Backend, given_: Guidance, says: str) -> None:
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    with pytest.raises(ValueError, match=says):
        backend.denoise(prefix, NOISE, 3, given_)


def test_clean_rows_are_for_those_who_can() -> None:
    with pytest.raises(ValueError, match="no prefix of clean actions"):
        GuidanceBuffers(3, *SHAPE, "cpu").set(Guidance(TARGET, first_rows(1), 5.0, 1))
    check_guidance(Guidance(TARGET, first_rows(1), 5.0, 1), SHAPE, clean_rows=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_captured_graph_takes_the_guidance_that_was_set_last() -> None:
    """float32 on any CUDA GPU; equal to the bit where the guidance is off."""
    buffers = GuidanceBuffers(3, *SHAPE, "cuda")
    x = torch.randn(1, *SHAPE, device="cuda")
    velocity = torch.randn(1, *SHAPE, device="cuda")
    buffers.guided(1, x, velocity)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = buffers.guided(1, x, velocity)
    graph.replay()
    assert torch.equal(out, velocity), "off"
    buffers.set(guidance(first_rows(4)))
    graph.replay()
    wanted = guided_velocity(x, velocity, step_times(3)[1], buffers.target, buffers.gains[1])
    assert torch.allclose(out, wanted, atol=1e-5) and not torch.equal(out[:, :4], velocity[:, :4])
    buffers.set(None)
    graph.replay()
    assert torch.equal(out, velocity), "off again"

"""Norms, residual sums and activations against float64, at odd widths too."""

from __future__ import annotations

import pytest
import torch
from support.kernel_errors import assert_close
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3
from thor_policy_ros.backends.kernels import create_ops
from thor_policy_ros.backends.kernels.ops import Ops

EXACT = create_ops("reference", "cpu")
SHAPES = [(1, 16), (3, 40), (10, 1024), (5, 1152), (7, 2048), (2, 4304)]
DTYPES = [torch.float32, torch.bfloat16]


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.double().cpu() for x in tensors)


def _poisoned(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(
    triton_ops: Ops, device: torch.device, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, delta = (_random(device, dtype, *shape) * 5 for _ in range(2))
    weight = _random(device, torch.float32, shape[1]) + 1
    plain = triton_ops.rms_norm(x, weight, out=_poisoned(x))
    assert_close(plain, EXACT.rms_norm(*_exact(x, weight)))
    wanted_x = x + delta
    summed = triton_ops.rms_norm(x, weight, delta=delta)
    torch.testing.assert_close(x, wanted_x, rtol=0, atol=0)
    assert_close(summed, EXACT.rms_norm(*_exact(x, weight)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ada_rms_norm(
    triton_ops: Ops, device: torch.device, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, delta = (_random(device, dtype, *shape) for _ in range(2))
    scale, shift, gate = (_random(device, torch.float32, shape[1]) for _ in range(3))
    plain = triton_ops.ada_rms_norm(x, scale, shift)
    assert_close(plain, EXACT.ada_rms_norm(*_exact(x, scale, shift)), 2)
    before = _exact(x)[0]
    gated = triton_ops.ada_rms_norm(x, scale, shift, delta=delta, gate=gate)
    exact_delta, exact_gate = _exact(delta, gate)
    assert_close(x, before + exact_delta * exact_gate)
    assert_close(gated, EXACT.ada_rms_norm(*_exact(x, scale, shift)), 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_of_values_far_from_0(
    triton_ops: Ops, device: torch.device, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, delta = (_random(device, dtype, *shape) + 3 for _ in range(2))
    weight, bias = (_random(device, dtype, shape[1]) for _ in range(2))
    plain = triton_ops.layer_norm(x, weight, bias)
    assert_close(plain, EXACT.layer_norm(*_exact(x, weight, bias)), 2)
    wanted_x = x + delta
    summed = triton_ops.layer_norm(x, weight, bias, delta=delta, out=_poisoned(x))
    torch.testing.assert_close(x, wanted_x, rtol=0, atol=0)
    assert_close(summed, EXACT.layer_norm(*_exact(x, weight, bias)), 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_parts_of_a_sum_are_added_up(
    triton_ops: Ops, device: torch.device, name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, parts = _random(device, dtype, *shape), _random(device, torch.float32, 3, *shape)
    norm = [
        _random(device, torch.float32, shape[1]) for _ in range(2 if name == "layer_norm" else 1)
    ]
    wanted = (x.float() + ((parts[0] + parts[1]) + parts[2])).to(dtype)
    summed = getattr(triton_ops, name)(x, *norm, delta=parts)
    torch.testing.assert_close(x, wanted, rtol=0, atol=0)
    exact_x = _exact(x)[0]
    assert_close(summed, getattr(EXACT, name)(exact_x, *_exact(*norm)), 2)


def test_a_delta_of_another_shape_is_refused(triton_ops: Ops, device: torch.device) -> None:
    x = torch.zeros(3, 16, device=device)
    with pytest.raises(
        ValueError, match=r"wanted a delta of \[3, 16\], or parts of it, got \[3, 8\]"
    ):
        triton_ops.rms_norm(x, x[0], delta=torch.zeros(3, 8, device=device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 24), (3, 1024), (2, 4096), (3, 1500)])
def test_geglu_and_gelu(
    triton_ops: Ops, device: torch.device, rows: int, hidden: int, dtype: torch.dtype
) -> None:
    gate_up = _random(device, dtype, rows, 2 * hidden) * 3
    assert_close(triton_ops.geglu(gate_up), EXACT.geglu(*_exact(gate_up)))
    bias = _random(device, dtype, 2 * hidden)
    assert_close(triton_ops.bias_gelu(gate_up), EXACT.bias_gelu(*_exact(gate_up)))
    shifted = triton_ops.bias_gelu(gate_up, bias, out=_poisoned(gate_up))
    assert_close(shifted, EXACT.bias_gelu(*_exact(gate_up, bias)))


def test_gelu_of_extreme_values_is_finite(triton_ops: Ops, device: torch.device) -> None:
    extreme = torch.tensor([[-1e30, -3e4, -20.0, 0.0, 20.0, 3e4]], device=device)
    got = triton_ops.bias_gelu(extreme)
    torch.testing.assert_close(got, extreme.clamp_min(0), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("power", [-6, 0, 3])
def test_results_in_fp8_equal_the_reference(
    triton_ops: Ops, device: torch.device, power: int
) -> None:
    """A value that was itself rounded differently may be cast to the neighbour."""
    scale = torch.tensor(2.0**power, device=device)
    x = _random(device, torch.bfloat16, 9, 2 * 72) * 300
    weight, bias = (_random(device, torch.float32, 2 * 72) for _ in range(2))
    for made, wanted in (
        (triton_ops.geglu(x, quantise=scale), EXACT.geglu(x, quantise=scale)),
        (triton_ops.bias_gelu(x, quantise=scale), EXACT.bias_gelu(x, quantise=scale)),
        (triton_ops.rms_norm(x, weight, quantise=scale), EXACT.rms_norm(x, weight, quantise=scale)),
        (
            triton_ops.layer_norm(x, weight, bias, quantise=scale),
            EXACT.layer_norm(x, weight, bias, quantise=scale),
        ),
    ):
        assert made.dtype == E4M3
        got, reference = made.float(), wanted.float()
        assert got.isfinite().all()
        assert (got != reference).float().mean() < 2e-3
        torch.testing.assert_close(got, reference, rtol=0.13, atol=2.0**-9)


def test_nan_stays_nan_in_fp8(triton_ops: Ops, device: torch.device) -> None:
    x = torch.tensor([[1.0, torch.nan, 3e38, -3e38]], device=device)
    made = triton_ops.bias_gelu(x, quantise=torch.tensor(0.5, device=device)).float()[0]
    assert made[1].isnan()
    assert made[[0, 2, 3]].tolist() == [1.625, 448.0, 0.0]

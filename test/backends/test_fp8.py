"""FP8 products in emulation: rounding, saturation, padding, and how close an MLP stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thor_policy_ros.backends.fp8 import (
    E4M3_MAX,
    Fp8Linear,
    activation_scale,
    emulated_matmul,
    saturating_cast,
)
from thor_policy_ros.backends.fp8_mlp import FP8MLP, FP8MLPWithStaticScale, HybridMlp
from thor_policy_ros.backends.fp8_scales import LayerRanges, Range
from thor_policy_ros.model.config import GemmaConfig
from thor_policy_ros.model.gemma import Mlp

SIZES = GemmaConfig(width=40, depth=2, mlp_dim=72, num_heads=2, num_kv_heads=1, head_dim=8)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))


def e4m3_by_definition(x: float) -> float:
    """The nearest number of 4 exponent bits (bias 7) and 3 mantissa bits, even on a tie."""
    if x == 0.0:
        return 0.0
    exponent = max(np.floor(np.log2(abs(x))), -6.0)
    step = 2.0 ** (exponent - 3)
    return float(np.clip(np.round(x / step) * step, -E4M3_MAX, E4M3_MAX))


@given(st.lists(st.floats(-2000, 2000, width=32), min_size=1, max_size=40))
def test_the_cast_rounds_to_nearest_and_saturates(values: list[float]) -> None:
    cast = saturating_cast(torch.tensor(values), torch.tensor(1.0)).float()
    assert cast.tolist() == [e4m3_by_definition(np.float32(value)) for value in values]


@given(st.floats(1e-10, 1e6))
def test_a_scale_is_the_least_power_of_two_that_fits(absmax: float) -> None:
    scale = float(activation_scale(torch.tensor(absmax)))
    assert np.log2(scale) == np.round(np.log2(scale))
    assert absmax <= E4M3_MAX * scale * (1 + 1e-5)
    assert absmax >= E4M3_MAX * scale / 2 * (1 - 1e-5)


def test_nan_is_not_hidden_by_saturation() -> None:
    assert saturating_cast(torch.tensor([float("nan")]), torch.tensor(1.0)).float().isnan().all()


@pytest.mark.parametrize("shape", [(16, 16), (24, 40), (7, 3)])
def test_operands_are_padded_and_the_second_is_column_major(shape: tuple[int, int]) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def matmul(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
        seen.append((a, b))
        return emulated_matmul(a, b, scale_a, scale_b)

    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(2, 5, shape[1])
    out = Fp8Linear(weight, None, matmul)(x)
    a, b = seen[0]
    assert a.is_contiguous() and b.stride(0) == 1 and not b.is_contiguous()
    assert all(size % 16 == 0 for size in (a.shape[1], *b.shape))
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert out.shape == (2, 5, shape[0]) and out.dtype == x.dtype
    exact = x.double() @ weight.double().t()
    assert cosine(out, exact) > 0.998


def test_a_static_scale_saturates_what_calibration_did_not_see() -> None:
    linear = Fp8Linear(torch.eye(16), absmax=1.0, matmul=emulated_matmul)
    limit = E4M3_MAX * float(activation_scale(torch.tensor(1.0)))
    out = linear(torch.tensor([[1.0] * 8 + [1e6] * 8]))
    assert out[0, :8].tolist() == pytest.approx([1.0] * 8, rel=0.01)
    assert out[0, 8:].tolist() == pytest.approx([limit] * 8, rel=0.01)


@pytest.fixture
def mlp() -> Mlp:
    torch.manual_seed(1)
    return Mlp(SIZES).requires_grad_(False)


@pytest.mark.parametrize("kind", ["hybrid dynamic", "hybrid static", "full", "full static"])
def test_an_mlp_in_fp8_stays_close_and_is_not_the_same(mlp: Mlp, kind: str) -> None:
    x = torch.randn(9, 40)
    ranges = ranges_of(mlp, x)
    made = {
        "hybrid dynamic": lambda: HybridMlp(mlp, None, emulated_matmul),
        "hybrid static": lambda: HybridMlp(mlp, ranges, emulated_matmul),
        "full": lambda: FP8MLP(mlp, emulated_matmul),
        "full static": lambda: FP8MLPWithStaticScale(mlp, ranges, emulated_matmul),
    }[kind]()
    assert 0.995 < cosine(made(x), mlp(x)) < 0.999999
    keeps_down = made.down_proj is mlp.down_proj
    assert keeps_down == kind.startswith("hybrid")


def ranges_of(mlp: Mlp, x: Tensor) -> LayerRanges:
    gate, up = mlp.gate_up_proj(x).chunk(2, -1)
    hidden = torch.nn.functional.gelu(gate, approximate="tanh") * up
    return LayerRanges(*(Range(float(t.abs().max()), float(t.abs().max())) for t in (x, hidden)))

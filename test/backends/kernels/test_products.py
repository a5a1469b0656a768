"""Products of few rows against float64: split sums, FP8 weights, norms folded in, odd sizes."""

from __future__ import annotations

import pytest
import torch
from support.kernel_errors import assert_close
from torch import Tensor

from thor_policy_ros.backends.kernels import Scaled, Weight, create_ops, quantise_rows, rope_halves
from thor_policy_ros.backends.kernels.folded_gemm import expert_geglu, expert_qkv
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.small_gemm import gated_linear
from thor_policy_ros.backends.kernels.target import KernelTarget
from thor_policy_ros.backends.kernels.tiles import GemmTiles

EXACT = create_ops("reference", "cpu")
FORMATS = ["float32", "bfloat16", "fp8"]
# rows, K, and units of N (columns, hidden units or head_dim)
SIZES = [(1, 16, 16), (10, 200, 72), (50, 96, 34)]
TILES = [None, GemmTiles(16, 32, 64, 1, 1, 3), GemmTiles(16, 16, 32, 3, 4, 3)]
FACTOR = 2.0


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _weight(device: torch.device, wanted: str, *shape: int) -> Weight:
    values = torch.randn(shape, device=device) / shape[1] ** 0.5
    return quantise_rows(values) if wanted == "fp8" else Weight(values.to(_dtype(wanted)))


def _dtype(wanted: str) -> torch.dtype:
    return torch.float32 if wanted == "float32" else torch.bfloat16


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.cpu() if x.dtype == torch.int32 else x.double().cpu() for x in tensors)


def _exact_weight(weight: Weight) -> Weight:
    return Weight(weight.dense().double().cpu())


def _scaled(device: torch.device, dtype: torch.dtype, rows: int, k: int) -> Scaled:
    """What is read of an x of large values, its squares in three parts."""
    x = _random(device, dtype, rows, k) * 40
    scale = _random(device, torch.float32, k) + 1
    squares = torch.stack([part.float().square().sum(-1) for part in x.tensor_split(3, -1)])
    return Scaled((x.float() * scale).to(dtype), squares)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("wanted", FORMATS)
def test_gated_linear(
    target: KernelTarget,
    device: torch.device,
    wanted: str,
    sizes: tuple[int, int, int],
    tiles: GemmTiles | None,
) -> None:
    rows, k, n = sizes
    weight = _weight(device, wanted, n, k)
    x, y = _random(device, _dtype(wanted), rows, n), _random(device, _dtype(wanted), rows, k)
    gate, scale = _random(device, torch.float32, n), _random(device, torch.float32, n)
    before, again = _exact(x)[0], x.clone()
    made = gated_linear(target, x, y, weight, gate, scale, tiles)
    exact_y, exact_gate = _exact(y, gate)
    EXACT.gated_linear(before, exact_y, _exact_weight(weight), exact_gate, scale.cpu())
    assert_close(x, before)
    assert_close(made.h, _exact(x)[0] * scale.cpu())
    torch.testing.assert_close(made.squares.sum(0), x.float().square().sum(-1))
    repeated = gated_linear(target, again, y, weight, gate, scale, tiles)
    assert torch.equal(again, x)
    assert all(map(torch.equal, repeated, made))
    assert not target.arrivals(0).any()


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("wanted", FORMATS)
def test_expert_geglu(
    target: KernelTarget,
    device: torch.device,
    wanted: str,
    sizes: tuple[int, int, int],
    tiles: GemmTiles | None,
) -> None:
    rows, k, hidden = sizes
    weight, bias = (
        _weight(device, wanted, 2 * hidden, k),
        _random(device, torch.float32, 2 * hidden),
    )
    x = _scaled(device, _dtype(wanted), rows, k)
    out = torch.full((rows, hidden), torch.nan, device=device, dtype=x.h.dtype)
    got = expert_geglu(target, x, bias, weight, out, tiles)
    exact_x, (exact_bias,) = Scaled(*_exact(*x)), _exact(bias)
    assert_close(got, EXACT.expert_geglu(exact_x, exact_bias, _exact_weight(weight)), FACTOR)
    assert torch.equal(got, expert_geglu(target, x, bias, weight, None, tiles))


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize(
    ("rows", "k", "heads", "groups", "head_dim"),
    [(10, 80, 8, 1, 16), (3, 96, 2, 2, 10), (18, 64, 1, 1, 72), (1, 32, 0, 1, 16)],
)
@pytest.mark.parametrize("wanted", FORMATS)
def test_expert_qkv(
    target: KernelTarget,
    device: torch.device,
    wanted: str,
    rows: int,
    k: int,
    heads: int,
    groups: int,
    head_dim: int,
    tiles: GemmTiles | None,
) -> None:
    columns = (heads + 2 * groups) * head_dim
    weight, bias = _weight(device, wanted, columns, k), _random(device, torch.float32, columns)
    x = _scaled(device, _dtype(wanted), rows, k)
    cos, sin = rope_halves(30, head_dim, device)
    start = torch.tensor([11], dtype=torch.int32, device=device)
    keys, values = torch.full((2, groups, 30, head_dim), 7.0, device=device, dtype=x.h.dtype)
    exact_kv = _exact(keys.clone(), values.clone())
    q = expert_qkv(target, x, bias, weight, cos, sin, start, keys, values, tiles=tiles)
    exact_x, (exact_bias,) = Scaled(*_exact(*x)), _exact(bias)
    tables = _exact(cos, sin, start)
    wanted_q = EXACT.expert_qkv(exact_x, exact_bias, _exact_weight(weight), *tables, *exact_kv)
    assert q.shape == (rows, heads, head_dim)
    for made, reference in zip((q, keys, values), (wanted_q, *exact_kv), strict=True):
        if made.numel():
            assert_close(made, reference, FACTOR)
    assert (keys[:, :11] == 7).all() and (values[:, 11 + rows :] == 7).all()


@pytest.mark.parametrize("wanted", ["bfloat16", "fp8"])
def test_a_step_of_the_expert_at_full_width(
    triton_ops: Ops, device: torch.device, wanted: str
) -> None:
    """Tiles as they follow from pi0.5's sizes; one product of each kind."""
    x, y = _random(device, torch.bfloat16, 10, 1024), _random(device, torch.bfloat16, 10, 4096)
    down, gate = _weight(device, wanted, 1024, 4096), _random(device, torch.float32, 1024)
    gate_up, bias = _weight(device, wanted, 2 * 128, 1024), _random(device, torch.float32, 2 * 128)
    scale = _random(device, torch.float32, 1024)
    before = _exact(x)[0]
    read_next = triton_ops.gated_linear(x, y, down, gate, scale)
    EXACT.gated_linear(before, *_exact(y), _exact_weight(down), *_exact(gate, scale))
    assert_close(x, before)
    hidden = triton_ops.expert_geglu(read_next, bias, gate_up)
    exact = EXACT.expert_geglu(Scaled(*_exact(*read_next)), *_exact(bias), _exact_weight(gate_up))
    assert_close(hidden, exact, FACTOR)


def test_operands_that_are_not_contiguous_are_refused(
    triton_ops: Ops, device: torch.device
) -> None:
    x, y = _random(device, torch.float32, 3, 16), _random(device, torch.float32, 3, 32)
    weight = Weight(_random(device, torch.float32, 32, 16).t())
    with pytest.raises(ValueError, match=r"weight of shape .* must be contiguous"):
        triton_ops.gated_linear(x, y, weight, *_random(device, torch.float32, 2, 16))

"""Attention and the split of q, k and v against float64: odd lengths, odd heads, split keys."""

from __future__ import annotations

import pytest
import torch
from support.kernel_errors import assert_close
from torch import Tensor

from thor_policy_ros.backends.kernels import create_ops, rope_halves
from thor_policy_ros.backends.kernels.attention import prefix_attention
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.suffix_attention import suffix_attention
from thor_policy_ros.backends.kernels.target import KernelTarget
from thor_policy_ros.backends.kernels.tiles import AttentionTiles, SuffixTiles

EXACT = create_ops("reference", "cpu")
DTYPES = [torch.float32, torch.bfloat16]
FACTOR = 2.0  # softmax weights are rounded to the dtype too


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.cpu() if x.dtype == torch.int32 else x.double().cpu() for x in tensors)


def _length(device: torch.device, value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32, device=device)


def _keys_values(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], valid: int
) -> tuple[Tensor, Tensor]:
    """NaN behind the valid rows: whoever looks there fails."""
    keys, values = (_random(device, dtype, *shape) for _ in range(2))
    keys[:, valid:] = values[:, valid:] = torch.nan
    return keys, values


# tokens, heads, kv heads, head_dim, rows of the buffer, length
PREFIXES = [
    (1, 8, 1, 16, 5, 1),
    (37, 2, 1, 16, 64, 33),
    (20, 4, 2, 32, 130, 130),
    (9, 8, 1, 256, 96, 70),
    (5, 3, 3, 72, 40, 21),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PREFIXES)
def test_prefix(
    triton_ops: Ops, device: torch.device, problem: tuple[int, ...], dtype: torch.dtype
) -> None:
    tokens, heads, groups, head_dim, rows, valid = problem
    q = _random(device, dtype, tokens, heads, head_dim)
    keys, values = _keys_values(device, dtype, (groups, rows, head_dim), valid)
    length = _length(device, valid)
    out = torch.full_like(q.flatten(1), torch.nan)
    got = triton_ops.prefix_attention(q, keys, values, length, out=out)
    assert got is out
    assert_close(got, EXACT.prefix_attention(*_exact(q, keys, values, length)), FACTOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("splits", "parts"), [(1, 1), (2, 2), (5, 1), (4, 4)])
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "valid"),
    [(5, 8, 16, 100), (3, 8, 256, 60), (3, 8, 32, 17), (20, 3, 16, 70)],
)
def test_suffix_with_split_keys(
    target: KernelTarget,
    device: torch.device,
    tokens: int,
    heads: int,
    head_dim: int,
    valid: int,
    splits: int,
    parts: int,
    dtype: torch.dtype,
) -> None:
    """More splits than blocks of keys, too: the last ones are empty."""
    q = _random(device, dtype, tokens, heads, head_dim)
    keys, values = _keys_values(device, dtype, (1, valid + tokens + 9, head_dim), valid + tokens)
    length = _length(device, valid)
    tiles = SuffixTiles(16, 32, splits, parts, warps=4, stages=2)
    got = suffix_attention(target, q, keys, values, length, tiles=tiles)
    assert_close(got, EXACT.suffix_attention(*_exact(q, keys, values, length)), FACTOR)
    assert not target.arrivals(0).any()
    again = suffix_attention(target, q, keys, values, length, tiles=tiles)
    assert torch.equal(got, again)


def test_suffix_with_tiles_of_its_own(triton_ops: Ops, device: torch.device) -> None:
    q = _random(device, torch.bfloat16, 10, 8, 256)
    keys, values = _keys_values(device, torch.bfloat16, (1, 200, 256), 90)
    length = _length(device, 80)
    got = triton_ops.suffix_attention(q, keys, values, length)
    assert_close(got, EXACT.suffix_attention(*_exact(q, keys, values, length)), FACTOR)


def test_prefix_with_the_values_shared_between_blocks_and_two_kv_heads(
    target: KernelTarget, device: torch.device
) -> None:
    q = _random(device, torch.float32, 21, 4, 32)
    keys, values = _keys_values(device, torch.float32, (2, 150, 32), 121)
    length = _length(device, 121)
    tiles = AttentionTiles(block_m=16, block_n=16, value_parts=2, warps=4, stages=2)
    got = prefix_attention(target, q, keys, values, length, tiles=tiles)
    assert_close(got, EXACT.prefix_attention(*_exact(q, keys, values, length)), FACTOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("images", "tokens", "heads", "head_dim"),
    [(2, 64, 2, 72), (1, 16, 4, 10), (3, 49, 2, 32), (1, 30, 1, 48)],
)
def test_vision(
    triton_ops: Ops,
    device: torch.device,
    images: int,
    tokens: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    qkv = _random(device, dtype, images, tokens, 3 * heads * head_dim)
    got = triton_ops.vision_attention(qkv, heads)
    assert_close(got, EXACT.vision_attention(*_exact(qkv), heads), FACTOR)


def test_attention_in_fp8(triton_ops: Ops, device: torch.device) -> None:
    qkv = _random(device, torch.bfloat16, 1, 33, 3 * 2 * 24)
    scale = torch.tensor(2.0**-7, device=device)
    got = triton_ops.vision_attention(qkv, 2, quantise=scale).float() * scale
    wanted = triton_ops.vision_attention(qkv, 2).float()
    torch.testing.assert_close(got, wanted, rtol=0.08, atol=2.0**-15)


def test_a_buffer_that_is_not_laid_out_by_rows_is_refused(
    triton_ops: Ops, device: torch.device
) -> None:
    q = _random(device, torch.float32, 2, 2, 16)
    keys = _random(device, torch.float32, 1, 16, 8).transpose(1, 2)
    with pytest.raises(ValueError, match="contiguous rows"):
        triton_ops.prefix_attention(q, keys, keys, _length(device, 3))


def test_too_many_splits_are_refused(target: KernelTarget, device: torch.device) -> None:
    q = _random(device, torch.float32, 600, 8, 256)
    keys, values = _keys_values(device, torch.float32, (1, 700, 256), 700)
    tiles = SuffixTiles(64, 32, splits=16, value_parts=1, warps=4, stages=2)
    with pytest.raises(ValueError, match="choose fewer splits"):
        suffix_attention(target, q, keys, values, _length(device, 100), tiles=tiles)


# rows, heads, kv heads, head_dim, start
SPLITS = [
    (1, 8, 1, 16, 0),
    (5, 2, 1, 256, 13),
    (7, 4, 2, 10, 3),
    (5, 0, 1, 32, 2),
    (9, 1, 1, 6, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", SPLITS)
def test_split_qkv(
    triton_ops: Ops, device: torch.device, problem: tuple[int, ...], dtype: torch.dtype
) -> None:
    rows, heads, groups, head_dim, first = problem
    cos, sin = rope_halves(40, head_dim, device)
    start = _length(device, first)
    qkv = _random(device, dtype, rows, (heads + 2 * groups) * head_dim)
    keys, values = torch.full((2, groups, 40, head_dim), 7.0, device=device, dtype=dtype)
    exact_keys, exact_values = _exact(keys.clone(), values.clone())
    got = triton_ops.split_qkv(qkv, cos, sin, start, keys, values)
    wanted = EXACT.split_qkv(*_exact(qkv, cos, sin, start), exact_keys, exact_values)
    assert got.shape == wanted.shape == (rows, heads, head_dim)
    for made, exact in ((got, wanted), (keys, exact_keys), (values, exact_values)):
        if made.numel():
            assert_close(made, exact)
    untouched = torch.cat((keys[:, :first], keys[:, first + rows :]), 1)
    assert (untouched == 7).all()

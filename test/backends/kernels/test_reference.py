"""The reference operations are the model's own arithmetic, and Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thor_policy_ros.backends.kernels import (
    Weight,
    create_ops,
    fold,
    quantise_rows,
    resize_taps,
    rope_halves,
)
from thor_policy_ros.backends.kernels.reference import scaled
from thor_policy_ros.model.config import GemmaConfig
from thor_policy_ros.model.gemma import ExpertLayer, Modulation, PrefixLayer, rope_tables
from thor_policy_ros.model.transforms import resize_with_pad

OPS = create_ops("reference", "cpu")
CONFIG = GemmaConfig(width=48, depth=1, mlp_dim=80, num_heads=8, num_kv_heads=1, head_dim=16)
PREFIX, HORIZON, ROWS = 13, 5, 24
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def _seeded() -> None:
    torch.manual_seed(3)


def test_a_prefix_layer() -> None:
    _seeded()
    layer = PrefixLayer(CONFIG).eval()
    x = torch.randn(PREFIX, CONFIG.width)
    positions = torch.arange(PREFIX)[None]
    with torch.no_grad():
        wanted, (k, v) = layer(x[None], rope_tables(positions, CONFIG.head_dim), None)
        got, keys, values = _prefix_layer(layer, x.clone())
    torch.testing.assert_close(got, wanted[0], **CLOSE)
    torch.testing.assert_close(keys[:, :PREFIX], k[0], **CLOSE)
    torch.testing.assert_close(values[:, :PREFIX], v[0], **CLOSE)


def _prefix_layer(layer: PrefixLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = rope_halves(ROWS, CONFIG.head_dim, torch.device("cpu"))
    keys, values = (torch.full((1, ROWS, CONFIG.head_dim), torch.nan) for _ in range(2))
    start, length = torch.zeros(1, dtype=torch.int32), torch.tensor([PREFIX], dtype=torch.int32)
    normed = OPS.rms_norm(x, layer.input_layernorm.weight + 1)
    q = OPS.split_qkv(layer.self_attn.qkv_proj(normed), cos, sin, start, keys, values)
    attended = OPS.prefix_attention(q, keys, values, length)
    delta = layer.self_attn.o_proj(attended)
    normed = OPS.rms_norm(x, layer.post_attention_layernorm.weight + 1, delta=delta)
    hidden = OPS.geglu(layer.mlp.gate_up_proj(normed))
    return x + layer.mlp.down_proj(hidden), keys, values


def test_an_expert_layer_with_folded_modulations() -> None:
    _seeded()
    layer = ExpertLayer(CONFIG).eval()
    x = torch.randn(HORIZON, CONFIG.width)
    keys, values = torch.randn(2, 1, ROWS, CONFIG.head_dim)
    first, second = (_modulation() for _ in range(2))
    positions = torch.arange(PREFIX, PREFIX + HORIZON)[None]

    def extend(_: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (
            torch.cat((keys[None, :, :PREFIX], k), 2),
            torch.cat((values[None, :, :PREFIX], v), 2),
        )

    with torch.no_grad():
        rope = rope_tables(positions, CONFIG.head_dim)
        wanted = layer.attention_block(x[None], first, rope, None, extend, 0)
        wanted = layer.mlp_block(wanted, second)[0]
        got = _expert_layer(layer, x, first, second, keys.clone(), values.clone())
    torch.testing.assert_close(got, wanted, **CLOSE)


def _modulation() -> Modulation:
    scale, shift, gate = torch.randn(3, 1, 1, CONFIG.width)
    return Modulation(scale + 1, shift, gate)


def _expert_layer(
    layer: ExpertLayer,
    x: Tensor,
    first: Modulation,
    second: Modulation,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    cos, sin = rope_halves(ROWS, CONFIG.head_dim, torch.device("cpu"))
    length = torch.tensor([PREFIX], dtype=torch.int32)
    qkv, o, gate_up, down = (
        Weight(linear.weight)
        for linear in (
            layer.self_attn.qkv_proj,
            layer.self_attn.o_proj,
            layer.mlp.gate_up_proj,
            layer.mlp.down_proj,
        )
    )
    folded = fold(first.scale[0, 0], first.shift[0, 0], qkv)
    mlp = fold(second.scale[0, 0], second.shift[0, 0], gate_up)
    q = OPS.expert_qkv(scaled(x, folded.scale), folded.bias, qkv, cos, sin, length, keys, values)
    attended = OPS.suffix_attention(q, keys, values, length)
    read_next = OPS.gated_linear(x, attended, o, first.gate[0, 0], mlp.scale)
    hidden = OPS.expert_geglu(read_next, mlp.bias, gate_up)
    OPS.gated_linear(x, hidden, down, second.gate[0, 0], folded.scale)
    return x


def test_folded_and_plain_adaptive_norms_agree() -> None:
    _seeded()
    x, delta, gate, scale, shift = torch.randn(5, 7, 32).double().unbind(0)
    weight = Weight(torch.randn(24, 32).double())
    normed = OPS.ada_rms_norm(x.clone(), scale[0], shift[0])
    torch.testing.assert_close(
        OPS.ada_rms_norm(x.clone(), scale[0], shift[0], delta=delta, gate=gate[0]),
        OPS.ada_rms_norm(x + delta * gate[0], scale[0], shift[0]),
    )
    folded = fold(scale[0], shift[0], weight)
    hidden = OPS.expert_geglu(scaled(x, folded.scale), folded.bias, weight)
    torch.testing.assert_close(hidden, OPS.geglu(normed @ weight.data.t()), rtol=1e-4, atol=1e-5)


def test_an_empty_set_of_queries_still_writes_keys_and_values() -> None:
    _seeded()
    cos, sin = rope_halves(ROWS, 16, torch.device("cpu"))
    keys, values = torch.zeros(2, 1, ROWS, 16)
    qkv = torch.randn(4, 32)
    q = OPS.split_qkv(qkv, cos, sin, torch.tensor([2], dtype=torch.int32), keys, values)
    assert q.shape == (4, 0, 16)
    torch.testing.assert_close(values[0, 2:6], qkv[:, 16:])
    assert not keys[0, :2].any() and not keys[0, 6:].any() and keys[0, 2:6].all()


def test_rows_quantised_to_fp8_stand_for_their_weights() -> None:
    _seeded()
    weight = torch.randn(16, 64) * torch.logspace(-3, 3, 16)[:, None]
    error = (quantise_rows(weight).dense() - weight).norm(dim=1) / weight.norm(dim=1)
    assert error.max() < 0.04  # E4M3 rounds to 1/16 at most, per value


def test_values_behind_the_valid_length_are_not_seen_even_if_they_are_nan() -> None:
    _seeded()
    q = torch.randn(3, 2, 16)
    keys, values = torch.randn(2, 1, 9, 16)
    length = torch.tensor([5], dtype=torch.int32)
    wanted = F.scaled_dot_product_attention(
        q.transpose(0, 1), keys[:, :5].expand(2, -1, -1), values[:, :5].expand(2, -1, -1)
    )
    keys[:, 5:] = values[:, 5:] = torch.nan
    got = OPS.prefix_attention(q, keys, values, length)
    torch.testing.assert_close(got, wanted.transpose(0, 1).flatten(1), **CLOSE)


SIZES = [
    (480, 640),
    (720, 1280),
    (224, 224),
    (37, 100),
    (224, 500),
    (31, 224),
    (256, 256),
    (9, 640),
]
SIZES += [(1080, 1920), (223, 224), (225, 226)]
"""None taller than wide, as frames that engines get."""


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_resized_image_equals_pillows_to_the_bit(height: int, width: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    out = torch.full((3, 224, 224), 77, dtype=torch.uint8)
    OPS.resize_image(torch.from_numpy(image), resize_taps(height, width, 224, "cpu"), out)
    assert np.array_equal(out.permute(1, 2, 0).numpy(), resize_with_pad(image, 224))


def test_unknown_ops_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="choose one of: reference, triton"):
        create_ops("cuda", "cpu")

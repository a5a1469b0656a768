"""Every fused operation at pi0.5's sizes: inputs, the call, what it must move and compute.

Two cameras and 32 words of prompt: 544 prefix tokens; horizon 10. Inputs are made on any device,
also on `meta`, where launches are recorded instead of made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thor_policy_ros.backends.fp8 import E4M3, saturating_cast
from thor_policy_ros.backends.kernels import (
    Ops,
    ResizeTaps,
    Scaled,
    Weight,
    quantise_rows,
    resize_taps,
    rope_halves,
)
from thor_policy_ros.backends.kernels.reference import scaled
from thor_policy_ros.backends.kernels.weights import CameraImages, split_patches
from thor_policy_ros.model.gemma import RMS_NORM_EPS

PREFIX, ROWS, HORIZON = 544, 978, 10
WIDTH, HIDDEN, HEADS, HEAD_DIM = 2048, 16384, 8, 256
EXPERT_WIDTH, EXPERT_HIDDEN = 1024, 4096
IMAGES, TOKENS, VISION_WIDTH, VISION_HIDDEN, VISION_HEADS = 2, 256, 1152, 4304, 16
ACTIONS, PATCH, SIZE = 32, 14, 224

Inputs = dict[str, Any]
Call = Callable[[Ops, Inputs], Any]


@dataclass(frozen=True)
class Case:
    """make: inputs on a device. call: the operation; what it gives back, with `changed` inputs, is
    compared with float64. plain: the same in plain torch, to be timed. bytes: least traffic.
    tolerance: relative, of norms. fp8: whether E4M3 is wanted."""

    name: str
    make: Callable[[torch.device], Inputs]
    call: Call
    bytes: float
    flops: float = 0.0
    plain: Callable[[Inputs], object] | None = None
    changed: tuple[str, ...] = ()
    tolerance: float = 4e-3
    fp8: bool = False


def all_cases() -> tuple[Case, ...]:
    """Of the prefix, the vision tower, the expert and the image path."""
    return (*_prefix_cases(), *_vision_cases(), *_expert_cases(), *_image_cases())


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.randn(shape, device=device).to(dtype)


def _weight(device: torch.device, n: int, k: int, fp8: bool) -> Weight:
    if fp8 and device.type == "meta":
        data = torch.empty((n, k), dtype=E4M3, device=device)
        return Weight(data, _random(device, n, dtype=torch.float32))
    values = _random(device, n, k) / k**0.5
    return quantise_rows(values) if fp8 else Weight(values)


def _f32(device: torch.device, *shape: int) -> Tensor:
    return _random(device, *shape, dtype=torch.float32)


def _scalar(device: torch.device, value: float, dtype: torch.dtype) -> Tensor:
    return torch.full((1,), value, dtype=dtype, device=device)


def _scale(device: torch.device) -> Tensor:
    return torch.full((), 2.0**-5, device=device)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# --- prefix


def _prefix_cases() -> tuple[Case, ...]:
    row, hidden = PREFIX * WIDTH * 2, PREFIX * HIDDEN * 2
    attention = 4.0 * PREFIX * PREFIX * HEADS * HEAD_DIM
    return (
        Case(
            "rms_norm",
            lambda d: {
                "x": _random(d, PREFIX, WIDTH),
                "weight": _f32(d, WIDTH),
                "delta": _random(d, PREFIX, WIDTH),
            },
            lambda ops, i: ops.rms_norm(i["x"], i["weight"], delta=i["delta"]),
            4.0 * row,
            plain=_plain_rms_norm,
            changed=("x",),
        ),
        Case(
            "rms_norm_fp8",
            lambda d: {
                "x": _random(d, PREFIX, WIDTH),
                "weight": _f32(d, WIDTH),
                "delta": _random(d, PREFIX, WIDTH),
                "scale": _scale(d),
            },
            lambda ops, i: ops.rms_norm(i["x"], i["weight"], delta=i["delta"], quantise=i["scale"]),
            3.5 * row,
            plain=lambda i: saturating_cast(_plain_rms_norm(i), i["scale"]),
            changed=("x",),
            tolerance=0.04,
            fp8=True,
        ),
        Case(
            "geglu",
            lambda d: {"gate_up": _random(d, PREFIX, 2 * HIDDEN)},
            lambda ops, i: ops.geglu(i["gate_up"]),
            3.0 * hidden,
            plain=_plain_geglu,
        ),
        Case(
            "geglu_fp8",
            lambda d: {"gate_up": _random(d, PREFIX, 2 * HIDDEN), "scale": _scale(d)},
            lambda ops, i: ops.geglu(i["gate_up"], quantise=i["scale"]),
            2.5 * hidden,
            plain=lambda i: saturating_cast(_plain_geglu(i), i["scale"]),
            tolerance=0.04,
            fp8=True,
        ),
        Case(
            "split_qkv",
            lambda d: {
                "qkv": _random(d, PREFIX, (HEADS + 2) * HEAD_DIM),
                **_rope(d),
                "start": _scalar(d, 0, torch.int32),
                **_buffers(d),
            },
            lambda ops, i: ops.split_qkv(
                i["qkv"], i["cos"], i["sin"], i["start"], i["keys"], i["values"]
            ),
            4.0 * PREFIX * (HEADS + 2) * HEAD_DIM + PREFIX * HEAD_DIM * 4,
            changed=("keys", "values"),
        ),
        Case(
            "prefix_attention",
            partial(_attention_inputs, rows=PREFIX, length=PREFIX),
            lambda ops, i: ops.prefix_attention(i["q"], i["keys"], i["values"], i["length"]),
            4.0 * PREFIX * (HEADS + 1) * HEAD_DIM,
            attention,
            plain=partial(_plain_attention, seen=PREFIX),
            tolerance=8e-3,
        ),
        Case(
            "prefix_attention_fp8_out",
            lambda d: (
                _attention_inputs(d, rows=PREFIX, length=PREFIX)
                | {"scale": torch.full((), 2.0**-10, device=d)}
            ),
            lambda ops, i: ops.prefix_attention(
                i["q"], i["keys"], i["values"], i["length"], quantise=i["scale"]
            ),
            3.0 * PREFIX * (HEADS + 1) * HEAD_DIM,
            attention,
            tolerance=0.04,
            fp8=True,
        ),
    )


def _rope(device: torch.device) -> Inputs:
    if device.type == "meta":
        return {name: _f32(device, ROWS, HEAD_DIM // 2) for name in ("cos", "sin")}
    return dict(zip(("cos", "sin"), rope_halves(ROWS, HEAD_DIM, device), strict=True))


def _buffers(device: torch.device) -> Inputs:
    return {name: _random(device, 1, ROWS, HEAD_DIM) for name in ("keys", "values")}


def _attention_inputs(device: torch.device, rows: int, length: int) -> Inputs:
    return {
        "q": _random(device, rows, HEADS, HEAD_DIM),
        **_buffers(device),
        "length": _scalar(device, length, torch.int32),
    }


def _plain_rms_norm(i: Inputs) -> Tensor:
    i["x"].add_(i["delta"])
    return F.rms_norm(i["x"].float(), (WIDTH,), i["weight"], RMS_NORM_EPS).to(i["x"].dtype)


def _plain_geglu(i: Inputs) -> Tensor:
    gate, up = i["gate_up"].chunk(2, -1)
    return _gelu(gate) * up


def _plain_attention(i: Inputs, seen: int) -> Tensor:
    rows = i["q"].view(1, 1, -1, HEAD_DIM)
    return F.scaled_dot_product_attention(
        rows, i["keys"][None, :, :seen], i["values"][None, :, :seen]
    )


# --- vision tower


def _vision_cases() -> tuple[Case, ...]:
    rows = IMAGES * TOKENS
    width, hidden = rows * VISION_WIDTH * 2, rows * VISION_HIDDEN * 2
    return (
        Case(
            "layer_norm",
            lambda d: {
                "x": _random(d, rows, VISION_WIDTH),
                "weight": _random(d, VISION_WIDTH),
                "bias": _random(d, VISION_WIDTH),
                "delta": _random(d, rows, VISION_WIDTH),
            },
            lambda ops, i: ops.layer_norm(i["x"], i["weight"], i["bias"], delta=i["delta"]),
            4.0 * width,
            plain=lambda i: F.layer_norm(
                i["x"].add_(i["delta"]), (VISION_WIDTH,), i["weight"], i["bias"], 1e-6
            ),
            changed=("x",),
        ),
        Case(
            "bias_gelu",
            lambda d: {"x": _random(d, rows, VISION_HIDDEN), "bias": _random(d, VISION_HIDDEN)},
            lambda ops, i: ops.bias_gelu(i["x"], i["bias"]),
            2.0 * hidden,
            plain=lambda i: _gelu(i["x"] + i["bias"]),
        ),
        Case(
            "vision_attention",
            lambda d: {"qkv": _random(d, IMAGES, TOKENS, 3 * VISION_WIDTH)},
            lambda ops, i: ops.vision_attention(i["qkv"], VISION_HEADS),
            4.0 * width,
            4.0 * rows * TOKENS * VISION_WIDTH,
            plain=_plain_vision_attention,
            tolerance=8e-3,
        ),
    )


def _plain_vision_attention(i: Inputs) -> Tensor:
    heads = i["qkv"].unflatten(-1, (3, VISION_HEADS, -1))
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


# --- expert


def _expert_cases() -> tuple[Case, ...]:
    seen = PREFIX + HORIZON
    return (
        Case(
            "ada_rms_norm",
            lambda d: {
                "x": _random(d, HORIZON, EXPERT_WIDTH),
                "scale": _f32(d, EXPERT_WIDTH),
                "shift": _f32(d, EXPERT_WIDTH),
                "delta": _random(d, HORIZON, EXPERT_WIDTH),
                "gate": _f32(d, EXPERT_WIDTH),
            },
            lambda ops, i: ops.ada_rms_norm(
                i["x"], i["scale"], i["shift"], delta=i["delta"], gate=i["gate"]
            ),
            8.0 * HORIZON * EXPERT_WIDTH + 12 * EXPERT_WIDTH,
            changed=("x",),
            tolerance=8e-3,
        ),
        *(_product(kind, fp8) for fp8 in (False, True) for kind in _PRODUCTS),
        Case(
            "suffix_attention",
            partial(_attention_inputs, rows=HORIZON, length=PREFIX),
            lambda ops, i: ops.suffix_attention(i["q"], i["keys"], i["values"], i["length"]),
            4.0 * (seen + HORIZON * HEADS) * HEAD_DIM,
            4.0 * HORIZON * HEADS * seen * HEAD_DIM,
            plain=partial(_plain_attention, seen=seen),
            tolerance=8e-3,
        ),
        Case(
            "embed_actions",
            lambda d: {
                "x_t": _f32(d, HORIZON, ACTIONS),
                "weight": _f32(d, EXPERT_WIDTH, ACTIONS),
                "bias": _f32(d, EXPERT_WIDTH),
                "scale": _f32(d, EXPERT_WIDTH),
                "out": _random(d, HORIZON, EXPERT_WIDTH),
            },
            lambda ops, i: ops.embed_actions(*i.values()),
            4.0 * EXPERT_WIDTH * ACTIONS + 2.0 * HORIZON * EXPERT_WIDTH,
            plain=lambda i: F.linear(i["x_t"], i["weight"], i["bias"]).bfloat16(),
            changed=("out",),
        ),
        Case(
            "euler_step",
            lambda d: {
                "x_t": _f32(d, HORIZON, ACTIONS),
                "hidden": _random(d, HORIZON, EXPERT_WIDTH),
                "scale": _f32(d, EXPERT_WIDTH),
                "shift": _f32(d, EXPERT_WIDTH),
                "weight": _f32(d, ACTIONS, EXPERT_WIDTH),
                "bias": _f32(d, ACTIONS),
                "target": _f32(d, HORIZON, ACTIONS),
                "gain": _f32(d, HORIZON),
            },
            lambda ops, i: ops.euler_step(*i.values(), t=0.6, dt=0.1),
            4.0 * EXPERT_WIDTH * ACTIONS + 2.0 * HORIZON * EXPERT_WIDTH,
            changed=("x_t",),
            tolerance=1e-5,
        ),
    )


@dataclass(frozen=True)
class _Product:
    """rows of the weight, K, and how inputs become a call."""

    name: str
    n: int
    k: int


_PRODUCTS = (
    _Product("expert_qkv", (HEADS + 2) * HEAD_DIM, EXPERT_WIDTH),
    _Product("gated_linear_o", EXPERT_WIDTH, HEADS * HEAD_DIM),
    _Product("expert_geglu", 2 * EXPERT_HIDDEN, EXPERT_WIDTH),
    _Product("gated_linear_down", EXPERT_WIDTH, EXPERT_HIDDEN),
)


def _product(kind: _Product, fp8: bool) -> Case:
    gated = kind.name.startswith("gated")

    def make(device: torch.device) -> Inputs:
        weight = _weight(device, kind.n, kind.k, fp8)
        if gated:
            return {
                "x": _random(device, HORIZON, kind.n),
                "y": _random(device, HORIZON, kind.k),
                "weight": weight,
                "gate": _f32(device, kind.n),
                "scale": _f32(device, kind.n),
            }
        inputs = {
            "x": scaled(_random(device, HORIZON, kind.k), _f32(device, kind.k)),
            "bias": _f32(device, kind.n),
            "weight": weight,
        }
        if kind.name == "expert_geglu":
            return inputs
        start = _scalar(device, PREFIX, torch.int32)
        return inputs | _rope(device) | {"start": start} | _buffers(device)

    calls: dict[str, Call] = {
        "expert_qkv": lambda ops, i: ops.expert_qkv(*i.values()),
        "expert_geglu": lambda ops, i: ops.expert_geglu(*i.values()),
    }
    changed = {"expert_qkv": ("keys", "values"), "expert_geglu": ()}
    return Case(
        kind.name + ("_fp8" if fp8 else ""),
        make,
        calls.get(kind.name, lambda ops, i: ops.gated_linear(*i.values())),
        kind.n * kind.k * (1.0 if fp8 else 2.0) + 2.0 * HORIZON * (kind.n + kind.k),
        2.0 * HORIZON * kind.n * kind.k,
        plain=None if fp8 else lambda i: F.linear(i["y"] if gated else i["x"].h, i["weight"].data),
        changed=changed.get(kind.name, ("x",)),
        tolerance=8e-3,
        fp8=fp8,
    )


# --- images


def _image_cases() -> tuple[Case, ...]:
    cameras = (_image_case(height, width) for height, width in ((480, 640), (720, 1280)))
    return (*cameras, _embed_case())


def _embed_case(cameras: int = 2, width: int = 1152) -> Case:
    tokens, columns = (SIZE // PATCH) ** 2, 3 * PATCH**2

    def make(device: torch.device) -> Inputs:
        dense = torch.randn(width, columns, device=device) / columns**0.5
        return {
            "images": torch.randn(cameras, 3, SIZE, SIZE, device=device),
            "dense": dense,
            "weight": split_patches(dense),
            "offset": torch.randn(tokens, width, device=device),
        }

    def call(ops: Ops, i: Inputs) -> Tensor:
        exactly = i["weight"].dtype != torch.bfloat16  # float64, of the measure
        weight, dtype = (i["dense"], torch.float64) if exactly else (i["weight"], torch.bfloat16)
        return ops.embed_patches(CameraImages(i["images"]), weight, i["offset"], dtype)

    rows = cameras * tokens
    moved = 4.0 * cameras * 3 * SIZE**2 + 2 * 6.0 * rows * columns + 6.0 * width * columns
    return Case("embed_patches", make, call, moved + 2.0 * rows * width + 4.0 * tokens * width)


def _image_case(height: int, width: int) -> Case:
    def make(device: torch.device) -> Inputs:
        taps = resize_taps(height, width, SIZE, device)
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, device=device)
        out = torch.empty((3, SIZE, SIZE), dtype=torch.uint8, device=device)
        return {"image": pixels, "taps": taps, "out": out}

    return Case(
        f"resize_image_{height}p",
        make,
        lambda ops, i: ops.resize_image(i["image"], i["taps"], i["out"]),
        3.0 * height * width + 3.0 * SIZE**2,
        changed=("out",),
    )


def exact(value: Any) -> Any:
    """Inputs on the CPU, in float64 where they were floating point; weights as what they mean."""
    if isinstance(value, Weight):
        return Weight(value.dense().double().cpu())
    if isinstance(value, Scaled):
        return Scaled(*(exact(x) for x in value))
    if isinstance(value, ResizeTaps):
        return resize_taps(value.height, value.width, value.size, "cpu")
    if isinstance(value, Tensor):
        copied = value.detach().cpu().clone()
        return copied.double() if copied.is_floating_point() else copied
    raise TypeError(f"no float64 of {type(value).__name__}")

"""Both ends of a denoise step, and the image path, against float64 and Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.kernel_errors import assert_close
from torch import Tensor

from thor_policy_ros.backends.kernels import create_ops, resize_taps
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.backends.kernels.weights import CameraImages, split_patches
from thor_policy_ros.model.pixels import PIXEL

EXACT = create_ops("reference", "cpu")
DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(2, 32, 1024), (3, 5, 40), (17, 7, 300)]


def _random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device)


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.double().cpu() for x in tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("horizon", "actions", "width"), [(10, 32, 1024), (3, 5, 40), (50, 7, 300)]
)
def test_embed_actions(
    triton_ops: Ops,
    device: torch.device,
    horizon: int,
    actions: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    shapes = ((horizon, actions), (width, actions), (width,), (width,))
    x_t, weight, bias, scale = (_random(device, *shape) for shape in shapes)
    out = torch.full((horizon, width), torch.nan, device=device, dtype=dtype)
    wanted = torch.empty(out.shape, dtype=torch.float64)
    read_next = triton_ops.embed_actions(x_t, weight, bias, scale, out)
    EXACT.embed_actions(*_exact(x_t, weight, bias, scale), wanted)
    assert_close(out, wanted)
    assert_close(read_next.h, _exact(out)[0] * scale.cpu())
    torch.testing.assert_close(read_next.squares.sum(0), out.float().square().sum(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("horizon", "actions", "width"), SIZES)
@pytest.mark.parametrize("gain", [0.0, 4.0])
def test_euler_step(
    triton_ops: Ops,
    device: torch.device,
    horizon: int,
    actions: int,
    width: int,
    gain: float,
    dtype: torch.dtype,
) -> None:
    x_t, wanted = _random(device, horizon, actions), _random(device, horizon, actions)
    hidden = (_random(device, horizon, width) * 9).to(dtype)
    scale, shift = _random(device, width), _random(device, width)
    weight, bias = _random(device, actions, width) / width**0.5, _random(device, actions)
    gains = torch.rand(horizon, device=device) * gain
    arguments = (hidden, scale, shift, weight, bias, wanted, gains)
    exact_x = _exact(x_t)[0]
    EXACT.euler_step(exact_x, *_exact(*arguments), t=0.7, dt=0.1)
    triton_ops.euler_step(x_t, *arguments, t=0.7, dt=0.1)
    assert_close(x_t, exact_x)


def embedded(ops: Ops, images: Tensor, *rest: Any) -> Tensor:
    return ops.embed_patches(CameraImages(images), *rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("cameras", "size", "patch", "width", "padding"),
    [(2, 56, 14, 40, 12), (1, 28, 7, 72, 0), (3, 24, 8, 64, 8)],
)
def test_embed_patches(
    triton_ops: Ops,
    device: torch.device,
    cameras: int,
    size: int,
    patch: int,
    width: int,
    padding: int,
    dtype: torch.dtype,
) -> None:
    columns, tokens = 3 * patch * patch, (size // patch) ** 2
    images = _random(device, cameras, 3, size, size)
    weight = torch.nn.functional.pad(_random(device, width, columns) / columns**0.5, (0, padding))
    offset = _random(device, tokens, width)
    wanted = embedded(EXACT, *_exact(images, weight, offset), torch.float64)
    made = embedded(triton_ops, images, weight, offset, dtype)
    assert made.shape == (cameras * tokens, width)
    assert made.dtype == dtype
    assert_close(made, wanted)
    parts = split_patches(weight[:, :columns])
    split = embedded(triton_ops, images, parts, offset, torch.float32)
    torch.testing.assert_close(split.double().cpu(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("are_pixels", [False, True])
def test_images_are_read_where_they_lie(
    triton_ops: Ops, device: torch.device, are_pixels: bool
) -> None:
    """Each at an address of its own, which may change without another launch's arguments; pixels
    stand for the very numbers that they are in `PIXEL`."""
    images = [_random(device, 3, 28, 28) for _ in range(3)]
    lie = images
    if are_pixels:
        lie = [torch.arange(k, k + 3 * 28 * 28, device=device).to(torch.uint8) for k in (0, 5, 9)]
        numbers = torch.from_numpy(PIXEL).to(device)
        images = [numbers[image.long()].view(3, 28, 28) for image in lie]
    addresses = torch.tensor([are_pixels, *(image.data_ptr() for image in lie)], device=device)
    nowhere = torch.full((3, 3, 28, 28), torch.nan, device=device)
    weight, offset = _random(device, 40, 147), _random(device, 16, 40)
    found = triton_ops.embed_patches(
        CameraImages(nowhere, addresses).first(2), weight, offset, torch.float32
    )
    wanted = embedded(triton_ops, torch.stack(images[:2]), weight, offset, torch.float32)
    assert torch.equal(found, wanted)


def test_a_split_weight_stands_for_what_it_was_split_from() -> None:
    weight, images = torch.randn(16, 27), torch.randn(1, 3, 6, 6)
    arguments = torch.zeros(4, 16), torch.float32
    torch.testing.assert_close(
        embedded(EXACT, images, split_patches(weight), *arguments),
        embedded(EXACT, images, weight, *arguments),
        rtol=0,
        atol=1e-4,
    )


def test_patches_are_cut_in_rows() -> None:
    """A weight that picks one pixel of a patch finds it where the image has it."""
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float64).view(2, 3, 6, 6)
    weight = torch.zeros(1, 27, dtype=torch.float64)
    weight[0, 1 * 9 + 2 * 3 + 0] = 1  # channel 1, third row, first column of a patch of 3
    picked = embedded(EXACT, images, weight, torch.zeros(4, 1).double(), torch.float64)
    assert picked.view(2, 2, 2).tolist() == images[:, 1, 2::3, 0::3].tolist()


def test_without_gain_the_target_does_not_matter_to_the_bit(
    triton_ops: Ops, device: torch.device
) -> None:
    x_t, hidden = _random(device, 4, 6), _random(device, 4, 32)
    rest = [_random(device, *shape) for shape in ((32,), (32,), (6, 32), (6,))]
    results = []
    for target in (torch.zeros(4, 6, device=device), _random(device, 4, 6) * 1e3):
        moved = x_t.clone()
        off = torch.zeros(4, device=device)
        triton_ops.euler_step(moved, hidden, *rest, target, off, t=1.0, dt=0.5)
        results.append(moved)
    assert torch.equal(*results)
    assert not torch.equal(results[0], x_t)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(12, 17, 6), (15, 9, 6), (8, 8, 8), (3, 5, 8), (40, 31, 7)]
)
def test_a_resized_image_to_the_bit(
    triton_ops: Ops, device: torch.device, height: int, width: int, size: int
) -> None:
    """The reference is Pillow's resize to the bit (test_reference.py)."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    image = torch.from_numpy(pixels)
    out = torch.full((3, size, size), 77, device=device, dtype=torch.uint8)
    wanted = torch.empty((3, size, size), dtype=torch.uint8)
    triton_ops.resize_image(image.to(device), resize_taps(height, width, size, device), out)
    EXACT.resize_image(image, resize_taps(height, width, size, "cpu"), wanted)
    assert torch.equal(out.cpu(), wanted)


@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 8, 3)])
def test_an_image_of_another_size_is_refused(
    triton_ops: Ops, device: torch.device, shape: tuple[int, ...]
) -> None:
    taps = resize_taps(8, 8, 16, device)
    image = torch.zeros(shape, dtype=torch.uint8, device=device)
    out = torch.empty(3, 15, 15, dtype=torch.uint8, device=device)
    with pytest.raises(ValueError, match="make the taps for their sizes"):
        triton_ops.resize_image(image, taps, out)

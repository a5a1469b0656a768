"""The fused engine through the Triton kernels: the recorded outputs of openpi, from end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fused_engine import fused_backend, padded
from support.golden import TOLERANCE, largest_error, toy_model_inputs, toy_noise, toy_outputs
from support.kernel_errors import relative_error

from thor_policy_ros.backends import fused_frames, fused_slot
from thor_policy_ros.backends.fp8 import emulated_matmul
from thor_policy_ros.backends.fused import FusedBackend
from thor_policy_ros.backends.fused_network import Tools
from thor_policy_ros.backends.fused_products import DeviceProducts
from thor_policy_ros.backends.kernels.ops import Ops
from thor_policy_ros.model.pixels import PIXEL
from thor_policy_ros.model.transforms import resized
from thor_policy_ros.types import U8

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this engine is on the CPU")


def engine(triton_ops: Ops) -> FusedBackend:
    tools = Tools(triton_ops, DeviceProducts(triton_ops, emulated_matmul))
    execution = replace(
        padded(20),
        make_tools=lambda: tools,
        make_graphs=None,
        step_counts=(3,),
        in_place=True,
    )
    return fused_backend(execution)


@pytest.mark.parametrize("in_reach", [True, False])
def test_pixels_are_the_numbers_that_they_stand_for(
    triton_ops: Ops, in_reach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fused_slot, "pinned_address", lambda images: images.ctypes.data if in_reach else None
    )
    backend, inputs = engine(triton_ops), toy_model_inputs()
    pixels = np.random.default_rng(0).integers(0, 256, inputs.images.shape, np.uint8)
    found = [
        backend.prefill(replace(inputs, images=images), 0.0).keys.clone()
        for images in (pixels, PIXEL[pixels])
    ]
    assert torch.equal(*found)


def frames_of(*sizes: tuple[int, int] | None) -> tuple[U8 | None, ...]:
    random = np.random.default_rng(3)
    return tuple(
        None if size is None else random.integers(0, 256, (*size, 3), dtype=np.uint8)
        for size in sizes
    )


def test_camera_frames_become_what_pillow_makes_of_them(triton_ops: Ops) -> None:
    """Frames of several sizes, one after the other, with cameras missing."""
    backend, inputs = engine(triton_ops), toy_model_inputs()
    assert backend.resizes_frames and fused_frames.WHAT in backend.notes
    cameras, _, size, _ = inputs.images.shape
    unsized = np.zeros((cameras, 3, 0, 0), np.uint8)
    growing = [(size, size + 3), (size, size), (2 * size, 3 * size)]
    for sizes in ([growing[0], None, growing[1]], [None, growing[2], growing[0]]):
        frames = frames_of(*(sizes * cameras)[:cameras])
        mask = np.array([frame is not None for frame in frames])
        given = replace(inputs, image_mask=mask, images=unsized, frames=frames)
        found = backend.prefill(given, 0.0).keys.clone()
        wanted = replace(inputs, image_mask=mask, images=resized(frames, size))
        assert torch.equal(found, backend.prefill(wanted, 0.0).keys)


def test_a_frame_that_is_missing_is_said(triton_ops: Ops) -> None:
    backend, inputs = engine(triton_ops), toy_model_inputs()
    unsized = np.zeros((*inputs.images.shape[:2], 0, 0), np.uint8)
    frames = (None, *frames_of(*[(9, 9)] * (len(unsized) - 1)))
    with pytest.raises(ValueError, match=r"wanted a frame of each of \d cameras, got \d"):
        backend.prefill(replace(inputs, images=unsized, frames=frames), 0.0)


def test_ops_that_resize_otherwise_than_pillow_are_not_trusted(
    triton_ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_ops, "resize_image", lambda image, taps, out: out.fill_(128))
    backend = engine(triton_ops)
    assert not backend.resizes_frames
    (note,) = (note for note in backend.notes if "Pillow" in note)
    assert note.startswith("camera frames resized by Pillow: a trial of")


def test_an_engine_on_the_cpu_refuses_frames_and_says_what_to_do() -> None:
    backend, inputs = fused_backend(), toy_model_inputs()
    assert not backend.resizes_frames
    unsized = np.zeros((*inputs.images.shape[:2], 0, 0), np.uint8)
    frames = frames_of(*[(9, 9)] * len(unsized))
    for given in (replace(inputs, images=unsized), replace(inputs, images=unsized, frames=frames)):
        with pytest.raises(ValueError, match="camera frames"):
            backend.prefill(given, 0.0)


@pytest.mark.parametrize("in_reach", [True, False])
def test_the_recorded_prefix_and_actions(
    triton_ops: Ops, in_reach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bucket larger than the prompt: the valid length alone keeps its padding out. Images
    are read where they lie, or copied where the device would not reach them."""
    monkeypatch.setattr(
        fused_slot, "pinned_address", lambda images: images.ctypes.data if in_reach else None
    )
    backend = engine(triton_ops)
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    valid = toy_outputs()["prefix_pad_mask"][0]
    assert largest_error(prefix.keys, toy_outputs()["prefix_k"][..., valid, :]) < TOLERANCE
    assert largest_error(prefix.values, toy_outputs()["prefix_v"][..., valid, :]) < TOLERANCE
    actions = torch.from_numpy(backend.denoise(prefix, toy_noise()[0].numpy(), 3))
    assert largest_error(actions, toy_outputs()["actions_3_steps"][0]) < TOLERANCE
    assert relative_error(actions, toy_outputs()["actions_3_steps"][0]) < 1e-5

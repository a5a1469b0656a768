"""The fused engine on a GPU: kernels, graphs and streams."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.golden import (
    TOLERANCE,
    TOY,
    largest_error,
    toy_config,
    toy_model_inputs,
    toy_noise,
    toy_outputs,
)

from thor_policy_ros.backends import fused_fp8
from thor_policy_ros.backends.fp8_calibration import ActivationRanges
from thor_policy_ros.backends.fp8_scales import Fp8Scales
from thor_policy_ros.backends.fused import FusedBackend, execution_on
from thor_policy_ros.backends.fused_weights import take_weights
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, availability, create_backend
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.image_memory import image_array, pinned_address
from thor_policy_ros.model.pixels import PIXEL
from thor_policy_ros.model.transforms import resized, within_reach
from thor_policy_ros.types import Guidance, ModelInputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
NOISE = toy_noise()[0].numpy()
SPEC = BACKENDS["fused_freq1"]


def engine(dtype: torch.dtype, *buckets: int) -> FusedBackend:
    device = torch.device("cuda")
    execution = replace(execution_on(device, dtype), buckets=buckets)
    backend = FusedBackend(
        SPEC, take_weights(load_pi05(TOY, toy_config(), device, dtype)), execution
    )
    backend.warmup()
    return backend


def varied(length: int, cameras: tuple[bool, ...]) -> ModelInputs:
    given = toy_model_inputs()
    tokens = np.arange(1, 25, dtype=np.int32)
    return ModelInputs(given.images, np.array(cameras), tokens, np.arange(24) < length)


@pytest.mark.parametrize("buckets", [(), (8, 20), (17,)], ids=str)
def test_recorded_outputs_in_float32_through_graphs(buckets: tuple[int, ...]) -> None:
    backend = engine(torch.float32, *buckets)
    prefix = backend.prefill(toy_model_inputs(), 0.0)
    valid = toy_outputs()["prefix_pad_mask"][0]
    assert largest_error(prefix.keys.cpu(), toy_outputs()["prefix_k"][..., valid, :]) < TOLERANCE
    for steps in (1, 3, 10):
        actions = torch.from_numpy(backend.denoise(prefix, NOISE, steps))
        assert largest_error(actions, toy_outputs()[f"actions_{steps}_steps"][0]) < TOLERANCE


def test_no_frame_captures_anything_after_warmup() -> None:
    backend = engine(torch.float32, 8)
    counts = [len(programs) for programs in backend.programs]
    exact = create_backend("pytorch", TOY, toy_config(), "cuda", "float32")
    cameras = [c for c in itertools.product([True, False], repeat=3) if any(c)]
    for length, present, steps in zip(
        (3, 8, 9, 24, 1, 20, 5), cameras, (10, 4, 1, 7, 2, 3, 5), strict=False
    ):
        inputs = varied(length, present)
        ours = backend.denoise(backend.prefill(inputs, 0.0), NOISE, steps)
        theirs = exact.denoise(exact.prefill(inputs, 0.0), NOISE, steps)
        assert np.abs(ours - theirs).max() < TOLERANCE
    assert [len(programs) for programs in backend.programs] == counts


@pytest.mark.parametrize("name", ["fused_freq1", "fused_pipelined"])
def test_camera_frames_are_resized_as_pillow_does_while_others_follow(name: str) -> None:
    """Of changing sizes; the next frame's prefix is launched before the frame is denoised, where
    there are two slots, and memory of frames that were let go is written to at once."""
    given, random = toy_model_inputs(), np.random.default_rng(0)
    cameras, _, size, _ = given.images.shape
    unsized = np.zeros((cameras, 3, 0, 0), np.uint8)
    sizes = [(480, 640), (size, size), (17, 31), (720, 1280), (480, 640)]
    shots = [
        [random.integers(0, 256, (*of, 3), np.uint8) for of in (sizes[k:] + sizes)[:cameras]]
        for k in range(len(sizes))
    ]
    missing = [
        [None if k % 3 == n % 4 else f for k, f in enumerate(s)] for n, s in enumerate(shots)
    ]
    masks = [np.array([frame is not None for frame in shot]) for shot in missing]

    def left(number: int) -> ModelInputs:
        frames = within_reach(missing[number])
        return replace(given, image_mask=masks[number], images=unsized, frames=frames)

    def made(number: int) -> ModelInputs:
        images = resized(missing[number], size)
        return replace(given, image_mask=masks[number], images=images)

    def answers(inputs_of: Callable[[int], ModelInputs]) -> list[np.ndarray]:
        ahead = 1 if backend.spec.pipelined else 0
        prefixes, found = [], []
        for number in range(len(shots) + ahead):
            if number < len(shots):
                prefixes.append(backend.prefill(inputs_of(number), 0.0))
                for frame in shots[number]:
                    image_array(frame.shape)[:] = 255
            if number >= ahead:
                found.append(backend.denoise(prefixes[number - ahead], NOISE, 3))
        return found

    backend = create_backend(name, TOY, toy_config(), "cuda")
    with closing(backend):
        backend.warmup()
        assert backend.resizes_frames  # type: ignore[attr-defined]
        wanted = answers(made)
        for _ in range(3):
            for ours, pillows in zip(answers(left), wanted, strict=True):
                assert np.array_equal(ours, pillows)
        assert not np.array_equal(wanted[0], wanted[3])


def test_images_in_pinned_memory_are_read_where_they_lie() -> None:
    """And give what copied ones give, to the bit, frame after frame; pixels, and the numbers that
    they stand for."""
    backend = engine(torch.bfloat16, 20)
    random = np.random.default_rng(3)
    for _ in range(3):
        given = varied(20, (True, False, True))
        pixels = image_array(given.images.shape)
        pixels[:] = random.integers(0, 256, pixels.shape, np.uint8)
        numbers = PIXEL[pixels]
        pinned = torch.from_numpy(numbers).pin_memory().numpy()
        assert pinned_address(pixels) == pixels.ctypes.data
        assert pinned_address(pinned) and pinned_address(numbers) is None
        first, *others = (
            backend.denoise(backend.prefill(replace(given, images=seen), 0.0), NOISE, 3)
            for seen in (numbers, pinned, pixels, pixels.copy())
        )
        assert all(np.array_equal(first, other) for other in others)


def test_a_frame_waits_for_the_device_at_most_once() -> None:
    backend = engine(torch.bfloat16, 20)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(wait.message) for wait in waits) <= 1


def test_guidance_off_changes_no_bit_and_on_is_the_references() -> None:
    backend = engine(torch.float32, 20)
    exact = create_backend("pytorch", TOY, toy_config(), "cuda", "float32")
    prefix, other = (b.prefill(toy_model_inputs(), 0.0) for b in (backend, exact))
    free = backend.denoise(prefix, NOISE, 10)
    target = np.random.default_rng(1).standard_normal(NOISE.shape, dtype=np.float32)
    off = Guidance(target, np.zeros(len(NOISE), np.float32))
    assert np.array_equal(backend.denoise(prefix, NOISE, 10, off), free)
    on = Guidance(target, np.linspace(1, 0, len(NOISE), dtype=np.float32))
    guided = backend.denoise(prefix, NOISE, 10, on)
    assert np.abs(guided - exact.denoise(other, NOISE, 10, on)).max() < TOLERANCE


def test_pipelined_frames_are_equal_to_plain_ones() -> None:
    plain, beside = (
        create_backend(name, TOY, toy_config(), "cuda")
        for name in ("fused_freq1", "fused_pipelined")
    )
    plain.warmup()
    beside.warmup()
    frames = [varied(length, (True, True, False)) for length in (3, 9, 24, 17) * 5]
    wanted = [plain.denoise(plain.prefill(f, 0.0), NOISE, 3) for f in frames]
    prefix = beside.prefill(frames[0], 0.0)
    for ahead, right in zip((*frames[1:], frames[0]), wanted, strict=True):
        following = beside.prefill(ahead, 0.0)
        assert np.array_equal(beside.denoise(prefix, NOISE, 3), right)
        prefix = following


@pytest.mark.parametrize("fp8", [False, True], ids=["bfloat16", "fp8"])
def test_low_precision_stays_close_to_float32(fp8: bool) -> None:
    if fp8 and (lacks := availability("fused_fp8")):
        pytest.skip("; ".join(lacks))
    source = load_pi05(TOY, toy_config(), "cuda")
    ranges, exact = ActivationRanges(source), PyTorchBackend(BACKENDS["pytorch"], source)
    with ranges.recording():
        wanted = exact.denoise(exact.prefill(toy_model_inputs(), 0.0), NOISE, 10).ravel()
    device = torch.device("cuda")
    model = load_pi05(TOY, toy_config(), device, torch.bfloat16)
    scales = Fp8Scales("", 100.0, 1, "test", (), ranges.inputs(100.0))
    taken = fused_fp8.quantised(model, scales) if fp8 else take_weights(model)
    backend = FusedBackend(SPEC, taken, execution_on(device, torch.bfloat16))
    backend.warmup()
    actions = backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 10).ravel()
    assert actions @ wanted / np.linalg.norm(actions) / np.linalg.norm(wanted) > 0.999

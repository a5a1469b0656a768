"""Full frames from camera images of a few sizes, resized by the engine and by Pillow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

SIZES = ((224, 224), (480, 640), (720, 1280))


def frames_from_cameras(
    backend: Any, subject: Any, count: int
) -> dict[str, list[dict[str, float]]]:
    """Rows of ms by images' size, `count` each, in turns: a whole frame of 10 steps, and the making
    of its inputs. AssertionError where the ways differ by a bit."""
    inputs, noise, random = subject.inputs(0), subject.noise(0), np.random.default_rng(0)
    ways, found = ways_of(backend, inputs), {}
    for height, width in SIZES:
        frames = [
            random.integers(0, 256, (height, width, 3), np.uint8) if seen else None
            for seen in inputs.image_mask
        ]
        rows: list[dict[str, float]] = []
        for _ in range(count):
            row, actions = {}, []
            for name, make in ways.items():
                begun = time.perf_counter()
                given = make(frames)
                row[f"{name}, inputs"] = (time.perf_counter() - begun) * 1e3
                actions.append(backend.denoise(backend.prefill(given, 0.0), noise, 10))
                row[f"{name}, frame"] = (time.perf_counter() - begun) * 1e3
            assert np.array_equal(actions[0], actions[-1]), "not the same to the bit"
            rows.append(row)
        found[f"{int(inputs.image_mask.sum())} of {height}x{width}"] = rows
    return found


def ways_of(backend: Any, inputs: Any) -> dict[str, Callable[[Sequence[Any]], Any]]:
    """How frames become the model's inputs; by the engine where it resizes them."""
    from thor_policy_ros.model.transforms import resized, within_reach

    cameras, _, size, _ = inputs.images.shape
    unsized = np.zeros((cameras, 3, 0, 0), np.uint8)
    ways: dict[str, Callable[[Sequence[Any]], Any]] = {
        "pillow": lambda frames: replace(inputs, images=resized(frames, size))
    }
    if backend.resizes_frames:
        ways["engine"] = lambda frames: replace(inputs, images=unsized, frames=within_reach(frames))
    return ways

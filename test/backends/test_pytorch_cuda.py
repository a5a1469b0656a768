"""The pytorch backend on a GPU: float32 meets the recorded outputs, bfloat16 stays close to it, a
frame waits for the device once, and stage times are the device's.

Tolerances: `support.golden`'s 2e-4 for float32, and a cosine of 0.999 for bfloat16; both held on
an H200.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from support.golden import TOLERANCE, TOY, TOY_LEROBOT, toy_config, toy_model_inputs, toy_noise

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.evaluation.comparison import compare
from thor_policy_ros.evaluation.recording import load_recording
from thor_policy_ros.model.checkpoint import load_pi05

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
NOISE = toy_noise()[0].numpy()


@pytest.mark.parametrize("folder", [TOY, TOY_LEROBOT], ids=lambda p: p.name)
def test_recorded_outputs_in_float32(folder: object) -> None:
    model = load_pi05(str(folder), toy_config(), "cuda")
    rows = compare(model, load_recording(TOY), TOLERANCE)
    assert [row.name for row in rows if not row.within] == []


def test_bfloat16_stays_close_to_float32() -> None:
    def actions(dtype: str) -> np.ndarray:
        backend = create_backend("pytorch", TOY, toy_config(), "cuda", dtype)
        return backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 10).ravel()

    half, full = actions("bfloat16"), actions("float32")
    assert np.dot(half, full) / np.linalg.norm(half) / np.linalg.norm(full) > 0.999


def test_a_frame_waits_for_the_device_once_to_read_the_actions() -> None:
    backend = create_backend("pytorch", TOY, toy_config(), "cuda")
    backend.warmup()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(wait.message) for wait in waits) == 1


def test_stage_times_come_from_the_device() -> None:
    backend = create_backend("pytorch", TOY, toy_config(), "cuda")
    backend.denoise(backend.prefill(toy_model_inputs(), 0.0), NOISE, 3)
    assert all(0 < ms < 10_000 for ms in backend.stage_times_ms().values())

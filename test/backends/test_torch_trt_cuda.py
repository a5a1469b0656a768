"""Backend torch_trt where there is a GPU and Torch-TensorRT: not run yet; the bounds are those
that verification has for each precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden import TOY, toy_config, toy_model_inputs, toy_noise, toy_outputs

from thor_policy_ros.backends.registry import create_backend
from thor_policy_ros.backends.torch_trt import missing
from thor_policy_ros.runtime.engine_difference import THRESHOLDS
from thor_policy_ros.types import EngineOptions

LACKING = missing()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason="missing: " + "; ".join(LACKING)),
]
NOISE = toy_noise()[0].numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_converted_built_kept_and_run(tmp_path: Path, dtype: str) -> None:
    options = EngineOptions(cache_dir=str(tmp_path))
    for origin in ("built", "found"):
        made = create_backend("torch_trt_freq1", TOY, toy_config(), "cuda", dtype, options)
        assert any(f"prefix {origin}" in note for note in made.notes)  # type: ignore[attr-defined]
        made.warmup()
        actions = made.denoise(made.prefill(toy_model_inputs(), 0.0), NOISE, 10)
        recorded = toy_outputs()["actions_10_steps"][0].numpy()
        assert cosine(actions, recorded) >= THRESHOLDS[dtype].cosine
        made.close()


def test_a_prefill_waits_for_nothing(tmp_path: Path) -> None:
    options = EngineOptions(cache_dir=str(tmp_path))
    made = create_backend("torch_trt_freq1", TOY, toy_config(), "cuda", "bfloat16", options)
    made.warmup()
    torch.cuda.set_sync_debug_mode("error")
    try:
        prefix = made.prefill(toy_model_inputs(), 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(made.denoise(prefix, NOISE, 10)).all()
    made.close()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

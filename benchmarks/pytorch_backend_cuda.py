"""The pytorch backend on a CUDA device at full size (pi05_libero, random weights).

    PYTHONPATH=. python3 benchmarks/pytorch_backend_cuda.py --out pytorch_cuda.json

Recorded outputs in float32 on the device, loading, latency by stage in bfloat16, how often a
frame waits for the device, and the cosine of bfloat16 with float32. Random weights say
nothing about the precision of trained ones; latency does not depend on them. Needs 8 GB of
disk for the weights it writes and about 25 GB of GPU memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.comparison import compare
from thor_policy_ros.evaluation.recording import load_recording
from thor_policy_ros.model.checkpoint import load_pi05, save_pi05
from thor_policy_ros.model.config import model_config_from_json
from thor_policy_ros.model.named_configs import LIBERO
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.types import F32, ModelInputs

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden"
TOLERANCE = 2e-4
DEVICE = "cuda"
CONFIG = LIBERO.model
SCENES = {"2 cameras, 20 tokens": (2, 20), "3 cameras, 200 tokens": (3, 200)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    parser.add_argument("--frames", type=int, default=30, help="frames per latency figure")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "golden_float32": golden_errors()}
    with tempfile.TemporaryDirectory() as folder:
        results["write_random_s"] = write_random_checkpoint(folder)
        results["load"], model = load(folder)
        backend = PyTorchBackend(BACKENDS["pytorch"], model)
        results["latency_ms"] = latencies(backend, arguments.frames)
        results["host_waits_per_frame"] = host_waits(backend)
        results["bfloat16_against_float32"] = precision(backend, folder)
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 0 if results["golden_float32"]["largest"] <= TOLERANCE else 1


def machine() -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0],
    }


def golden_errors() -> dict[str, Any]:
    """Largest error of every recorded array, over both key layouts."""
    config = model_config_from_json(json.loads((GOLDEN / "pi05_toy/config.json").read_text()))
    errors: dict[str, float] = {}
    for layout in ("pi05_toy", "pi05_toy_lerobot"):
        model = load_pi05(GOLDEN / layout, config, DEVICE)
        for row in compare(model, load_recording(GOLDEN / "pi05_toy"), TOLERANCE):
            errors[row.name] = max(errors.get(row.name, 0.0), row.max_abs_error)
    return {"largest": max(errors.values()), "arrays": errors}


def write_random_checkpoint(folder: str) -> float:
    """Random weights of the full size in bfloat16; returns the seconds taken."""
    begun = time.perf_counter()
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Pi05(CONFIG)
    save_pi05(model, folder, torch.bfloat16)
    del model
    torch.cuda.empty_cache()
    return time.perf_counter() - begun


def load(folder: str) -> tuple[dict[str, float], Pi05]:
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    model = load_pi05(folder, CONFIG, DEVICE, torch.bfloat16)
    torch.cuda.synchronize()
    figures = {
        "seconds": time.perf_counter() - begun,
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "memory_gb": torch.cuda.memory_allocated() / 1e9,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    return figures, model


def inputs_of(cameras: int, tokens: int) -> ModelInputs:
    random = np.random.default_rng(0)
    size = CONFIG.vision.image_size
    return ModelInputs(
        images=random.uniform(-1, 1, (CONFIG.num_cameras, 3, size, size)).astype(np.float32),
        image_mask=np.arange(CONFIG.num_cameras) < cameras,
        tokens=random.integers(0, CONFIG.vocab_size, CONFIG.max_token_len).astype(np.int32),
        token_mask=np.arange(CONFIG.max_token_len) < tokens,
    )


def noise() -> F32:
    shape = (CONFIG.action_horizon, CONFIG.action_dim)
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def latencies(backend: PyTorchBackend, frames: int) -> dict[str, dict[str, float]]:
    """Medians by scene, 10 denoise steps: stages by CUDA events, the frame by the wall clock."""
    backend.warmup()
    return {scene: latency(backend, inputs_of(*size), frames) for scene, size in SCENES.items()}


def latency(backend: PyTorchBackend, inputs: ModelInputs, frames: int) -> dict[str, float]:
    seen: list[dict[str, float]] = []
    for _ in range(frames + 3):
        begun = time.perf_counter()
        backend.denoise(backend.prefill(inputs, 0.0), noise(), 10)
        frame_ms = (time.perf_counter() - begun) * 1e3
        seen.append({**backend.stage_times_ms(), "frame": frame_ms})
    return {name: float(np.median([s[name] for s in seen[3:]])) for name in seen[0]}


def host_waits(backend: PyTorchBackend) -> int:
    """How often one frame makes the host wait for the device; reading the actions is one."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        backend.denoise(backend.prefill(inputs_of(2, 20), 0.0), noise(), 10)
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(wait.message) for wait in waits)


def precision(backend: PyTorchBackend, folder: str) -> dict[str, float]:
    """Cosines of the same weights, inputs and noise in both dtypes."""
    full = PyTorchBackend(BACKENDS["pytorch"], load_pi05(folder, CONFIG, DEVICE))
    ours, theirs = (b.prefill(inputs_of(2, 20), 0.0) for b in (backend, full))
    actions, reference = (b.denoise(p, noise(), 10) for b, p in ((backend, ours), (full, theirs)))
    return {
        "actions_cosine": cosine(torch.from_numpy(actions), torch.from_numpy(reference)),
        "actions_max_abs_error": float(np.abs(actions - reference).max()),
        "keys_cosine": cosine(ours.keys, theirs.keys),
        "values_cosine": cosine(ours.values, theirs.values),
    }


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.double().flatten(), b.double().flatten()
    return float(torch.dot(x, y) / (x.norm() * y.norm()))


if __name__ == "__main__":
    sys.exit(main())

"""FLOPs and bytes against hand counts, torch's own counter and the real parameters."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.golden import toy_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.device_peaks import DEVICES, DevicePeaks, find_device
from thor_policy_ros.evaluation.model_costs import FrameCosts, Part, frame_costs
from thor_policy_ros.evaluation.roofline import part_floors, roofline_report, stage_floors_ms
from thor_policy_ros.model.config import Pi05Config
from thor_policy_ros.model.named_configs import DEMO, LIBERO
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.types import ModelInputs

LIBERO_COSTS = frame_costs(LIBERO.model, cameras=2, prompt_tokens=20, num_steps=10)


def flops(parts: tuple[Part, ...]) -> int:
    return sum(p.count * p.flops for p in parts)


def weights(parts: tuple[Part, ...]) -> int:
    return sum(p.count * p.weights for p in parts)


def part(parts: tuple[Part, ...], name: str) -> Part:
    (found,) = [p for p in parts if p.name == name]
    return found


def test_flops_of_libero_by_hand() -> None:
    assert LIBERO_COSTS.prefix_tokens == 532
    mlp = part(LIBERO_COSTS.prefill, "layer: MLP")
    assert mlp.count == 17 and mlp.flops == 3 * 2 * 532 * 2048 * 16384
    attention = part(LIBERO_COSTS.prefill, "layer: attention")
    assert attention.flops == 8 * 2 * (2 * 532 * 532 * 256)
    last = part(LIBERO_COSTS.prefill, "last layer: K, V")
    assert last.flops == 2 * 532 * 2048 * 512
    vision = part(LIBERO_COSTS.vision, "layer: MLP")
    assert vision.count == 27 and vision.flops == 2 * 2 * 512 * 1152 * 4304
    step = part(LIBERO_COSTS.denoise_step, "layer: attention")
    assert step.flops == 8 * 2 * (2 * 10 * 542 * 256)


def test_bytes_of_libero_by_hand() -> None:
    mlp = part(LIBERO_COSTS.denoise_step, "layer: MLP")
    assert mlp.weights == 3 * 1024 * 4096
    modulation = 1024 * (4 + 4 + 2)
    assert mlp.other_bytes == modulation + 2 * (10 * 1024 + 10 * 1024)
    attention = part(LIBERO_COSTS.denoise_step, "layer: attention")
    queries_and_outputs, keys_and_values = 2 * 10 * 8 * 256, 2 * 542 * 256
    assert attention.other_bytes == 2 * (queries_and_outputs + keys_and_values)


@pytest.mark.parametrize("config", [toy_config(), DEMO.model], ids=["toy", "demo"])
@pytest.mark.parametrize(("cameras", "prompt_tokens"), [(1, 1), (2, 7)])
def test_flops_are_those_that_torch_counts(
    config: Pi05Config, cameras: int, prompt_tokens: int
) -> None:
    costs = frame_costs(config, cameras, prompt_tokens, num_steps=3)
    backend = PyTorchBackend(BACKENDS["pytorch"], Pi05(config).eval())
    backend.warmup()
    noise = np.zeros((config.action_horizon, config.action_dim), np.float32)
    inputs = inputs_of(config, cameras, prompt_tokens)
    backend.denoise(backend.prefill(inputs, 0.0), noise, 3)  # the modulations are kept
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as prefill:
            prefix = backend.prefill(inputs, 0.0)
        with FlopCounterMode(display=False) as denoise:
            backend.denoise(prefix, noise, 3)
    assert prefill.get_total_flops() == flops(costs.vision) + flops(costs.prefill)
    assert denoise.get_total_flops() == 3 * flops(costs.denoise_step)


def inputs_of(config: Pi05Config, cameras: int, prompt_tokens: int) -> ModelInputs:
    size = config.vision.image_size
    return ModelInputs(
        images=np.zeros((config.num_cameras, 3, size, size), np.float32),
        image_mask=np.arange(config.num_cameras) < cameras,
        tokens=np.zeros(config.max_token_len, np.int32),
        token_mask=np.arange(config.max_token_len) < prompt_tokens,
    )


@pytest.mark.parametrize("config", [toy_config(), LIBERO.model], ids=["toy", "libero"])
def test_weights_are_the_matrices_of_the_model(config: Pi05Config) -> None:
    with torch.device("meta"):
        model = Pi05(config)
    costs = frame_costs(config, 1, 1, 1)
    assert weights(costs.vision) == matrices(model.vision.layers, model.projector)
    prefix = list(model.language.layers)
    gemma = config.language
    kv_alone = 2 * gemma.num_kv_heads * gemma.head_dim * gemma.width
    assert weights(costs.prefill) == matrices(*prefix[:-1]) + kv_alone
    expert = sum(matrices(x.self_attn, x.mlp) for x in model.expert.layers)  # type: ignore[arg-type]
    assert weights(costs.denoise_step) == expert


def matrices(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters() if p.ndim == 2)


def test_a_floor_is_the_longer_of_compute_and_memory() -> None:
    device = DevicePeaks("toy", {"bf16": 1.0, "fp8": 2.0}, 1.0, "a test")
    busy = Part("busy", 2, linear_flops=4_000_000_000, weights=500_000)
    idle = Part("idle", 3, other_flops=1_000_000, other_bytes=6_000_000)
    costs = FrameCosts(1, 5, (busy,), (idle,), (idle,))
    floors = part_floors(costs, device, "bf16")
    assert [f.limit for f in floors] == ["compute", "memory", "memory"]
    assert floors[0].floor_ms == pytest.approx(2 * 4.0)
    assert floors[1].floor_ms == pytest.approx(3 * 6.0)
    assert floors[0].intensity == pytest.approx(4e9 / 1e6)
    stages = stage_floors_ms(floors, num_steps=5)
    assert stages["denoise"] == pytest.approx(90.0) and stages["total"] == pytest.approx(116.0)
    halved = part_floors(costs, device, "fp8")
    assert halved[0].compute_ms == pytest.approx(2.0) and halved[0].mbytes == pytest.approx(0.5)
    assert halved[1] == floors[1], "attention is not quantised"


def test_denoising_on_every_device_waits_for_memory() -> None:
    for device in DEVICES.values():
        floors = part_floors(LIBERO_COSTS, device, "bf16")
        layers = [f for f in floors if f.stage == "denoise step" and f.count > 1]
        assert {f.limit for f in layers} == {"memory"}


def test_the_h200_floor_of_a_frame() -> None:
    stages = stage_floors_ms(part_floors(LIBERO_COSTS, DEVICES["h200"], "bf16"), 10)
    assert stages["total"] == pytest.approx(4.8, abs=0.1)
    assert stages["prefill"] == pytest.approx(2.7, abs=0.1)


def test_a_device_without_the_format_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", "--device", "orin", "--dtype", "fp8"]) == 2
    assert "no rate for 'fp8'; choose one of: bf16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [("--cameras=4", "wanted 1 to 3 cameras"), ("--num-steps=0", "at least 1 denoise step")],
)
def test_counts_that_cannot_be(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", "--device", "thor", option]) == 2
    assert said in capsys.readouterr().err


def test_peaks_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "peaks.yaml"
    path.write_text("{name: mine, tflops: {bf16: 10}, bandwidth_gb_s: 100, source: guess}")
    assert find_device(str(path)) == DevicePeaks("mine", {"bf16": 10.0}, 100.0, "guess")
    path.write_text("{name: mine, tflops: {int8: 10}, bandwidth_gb_s: 100, source: guess}")
    with pytest.raises(ValueError, match="tflops wants bf16"):
        find_device(str(path))
    with pytest.raises(ValueError, match="unknown device 'h2000'; choose one of: thor, orin"):
        find_device("h2000")


def bench_file(path: Path, cameras: int = 2) -> Path:
    from dataclasses import asdict

    settings = {"config": "demo", "cameras": cameras, "prompt_tokens": 12, "num_steps": 4}
    entry: dict[str, Any] = {
        "backend": asdict(BACKENDS["pytorch"]),
        "dtype": "bfloat16",
        "stages_ms": {"vision": {"p50": 2.0}, "frame": {"p50": 9.0}},
    }
    machine = {"device": "a GPU"}
    sizes = asdict(DEMO.model)
    data = {"kind": "latency", "settings": settings, "sizes": sizes, "machine": machine}
    path.write_text(json.dumps({**data, "backends": [entry]}))
    return path


def report(*options: str) -> dict[str, Any]:
    from thor_policy_ros.evaluation import roofline

    parser = argparse.ArgumentParser()
    roofline.add_arguments(parser)
    return roofline_report(parser.parse_args(options))


def test_measured_over_floor_takes_the_settings_of_the_bench_file(tmp_path: Path) -> None:
    path = bench_file(tmp_path / "bench.json")
    found = report("--device", "h200", "--bench", str(path))
    assert found["settings"]["prefix_tokens"] == 2 * 64 + 12
    (row,) = found["measured"]
    assert row["over_floor"]["vision"] == pytest.approx(2.0 / found["floor_ms"]["vision"])
    assert row["over_floor"]["total"] == pytest.approx(9.0 / found["floor_ms"]["total"])
    with pytest.raises(ValueError, match=r"differs in \['cameras'\]"):
        report("--device", "h200", "--bench", str(path), "--cameras", "1")


def test_the_tables_name_what_they_show(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench_file(tmp_path / "bench.json")
    assert main(["roofline", "--device", "h200", "--bench", str(path)]) == 0
    out = capsys.readouterr().out
    for wanted in ("743 TFLOP/s in bf16", "140 prefix tokens", "last layer: K, V", "x)"):
        assert wanted in out
    stored = Path(__file__).parents[2] / "benchmarks" / "results" / "bench_latency_h200.json"
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["roofline", "--device", "h200", "--bench", str(stored)]) == 0
    out = capsys.readouterr().out
    assert "…" not in out and "87.70 (18.2x)" in out, "five backends fit a terminal"

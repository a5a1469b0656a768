"""FP8 on a CUDA device: products, MLPs, and backend fp8_mlp at pi05_libero's size.

    PYTHONPATH=. python3 benchmarks/fp8_on_cuda.py --out fp8.json

Random weights: they say nothing about the precision of trained ones; latency does not depend on
them. Needs 8 GB of disk for the weights it writes and about 30 GB of GPU memory.
`--rehearse` runs the same steps at toy size on a CPU, with emulated products: a test of this
script, not a measurement.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thor_policy_ros.backends.fp8 import (
    E4M3_MAX,
    Fp8Linear,
    ScaledMatmul,
    activation_scale,
    device_matmul,
    emulated_matmul,
    saturating_cast,
)
from thor_policy_ros.backends.fp8_calibration import ActivationRanges
from thor_policy_ros.backends.fp8_mlp import (
    FP8MLP,
    FP8MLPWithStaticScale,
    HybridMlp,
    notes_of,
    quantise_mlps,
    warnings_of,
)
from thor_policy_ros.backends.fp8_scales import (
    Fp8Scales,
    LayerRanges,
    Range,
    read_scales,
    write_scales,
)
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS, create_backend
from thor_policy_ros.model.checkpoint import load_pi05, save_pi05
from thor_policy_ros.model.config import Pi05Config, model_config_from_json
from thor_policy_ros.model.gemma import Mlp
from thor_policy_ros.model.named_configs import LIBERO
from thor_policy_ros.model.pi05 import Pi05
from thor_policy_ros.model.weight_files import checkpoint_hash
from thor_policy_ros.types import F32, Backend, ModelInputs

TOY = Path(__file__).parents[1] / "test" / "data" / "golden" / "pi05_toy" / "config.json"
BACKEND_NAMES = ("pytorch", "fp8_mlp_freq1", "fp8_mlp_dynamic")
NUM_STEPS = 10
CALIBRATION_FRAMES = 8


@dataclass(frozen=True)
class Setting:
    """Where and at which sizes everything runs."""

    device: str
    config: Pi05Config
    matmul: ScaledMatmul
    token_counts: tuple[int, ...]
    repeats: int

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    parser.add_argument("--rehearse", action="store_true", help="toy size on a CPU")
    arguments = parser.parse_args()
    setting = rehearsal() if arguments.rehearse else measurement()
    begun = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(setting)}

    def finish(name: str, measure: Callable[[], Any]) -> None:
        started = time.perf_counter()
        results[name] = measure()
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        write(results, arguments.out)

    finish("products", lambda: products(setting))
    finish("mlp", lambda: [mlp_figures(setting, tokens) for tokens in setting.token_counts])
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        finish("checkpoint", lambda: prepare_checkpoint(setting, Path(folder)))
        finish("backends", lambda: backends(setting, Path(folder)))
        finish("pipelined", lambda: pipelined(setting, Path(folder)))
    results["seconds"] = time.perf_counter() - begun
    write(results, arguments.out)
    print(json.dumps(results, indent=1))
    return 0 if passes(results) else 1


def measurement() -> Setting:
    return Setting("cuda", LIBERO.model, device_matmul, (544, 970), 50)


def rehearsal() -> Setting:
    config = model_config_from_json(json.loads(TOY.read_text()))
    return Setting("cpu", config, emulated_matmul, (5, 9), 2)


def machine(setting: Setting) -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if setting.on_gpu else "none: a rehearsal"
    return {"gpu": gpu, "torch": torch.__version__, "python": sys.version.split()[0]}


def write(results: dict[str, Any], out: Path | None) -> None:
    """After every part, so that a run cut short leaves what it measured."""
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n")


def passes(results: dict[str, Any]) -> bool:
    """Products are those of their quantised operands; every engine stays above 0.99."""
    sound = all(row["of_its_operands"] > 0.99999 for row in results["products"])
    rows = results["backends"]["engines"].values()
    close = all(min(r["keys"] + r["values"] + [r["actions"]]) >= 0.99 for r in rows)
    return sound and close and all(results["pipelined"]["equal"].values())


# Products


def products(setting: Setting) -> list[dict[str, Any]]:
    """Each product against float64: of its quantised operands, and of the exact ones."""
    shapes = [(17, 64, 48), (10, 100, 36), (544, 2048, 1024)]
    return [product(setting, shape, large) for shape in shapes for large in (1.0, 1e4)]


def product(setting: Setting, shape: tuple[int, int, int], large: float) -> dict[str, Any]:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inner, generator=generator).to(setting.device, torch.bfloat16) * large
    weight = torch.randn(columns, inner, generator=generator).to(setting.device, torch.bfloat16)
    linear = Fp8Linear(weight, None, setting.matmul)
    scale = activation_scale(x.abs().amax())
    seen = saturating_cast(x, scale).double() * scale.double()
    stored = linear.weight.double()[:columns, :inner] * linear.weight_scale.double()
    out = linear(x)
    return {
        "rows, inner, columns": list(shape),
        "largest activation": float(x.abs().max()),
        "of_its_operands": cosine(out, seen @ stored.t()),
        "of_exact_operands": cosine(out, x.double() @ weight.double().t()),
        "relative_error": relative(out, seen @ stored.t()),
        "saturates": saturates(setting),
    }


def saturates(setting: Setting) -> bool:
    """Beyond the calibrated range the largest value, not NaN."""
    eye = torch.eye(16, device=setting.device, dtype=torch.bfloat16)
    linear = Fp8Linear(eye, 1.0, setting.matmul)
    out = linear(torch.full((16, 16), 1e6, device=setting.device, dtype=torch.bfloat16))
    limit = E4M3_MAX * float(activation_scale(torch.tensor(1.0)))
    return bool(((out.float() / limit - 1).abs() < 0.02).all())


# One MLP


def mlp_figures(setting: Setting, tokens: int) -> dict[str, Any]:
    """Latency and cosine with float64 of every way to run one MLP of the prefix."""
    torch.manual_seed(0)
    with torch.device(setting.device):
        mlp = Mlp(setting.config.language).bfloat16().requires_grad_(False)
        x = torch.randn(1, tokens, setting.config.language.width).bfloat16()
    ranges = ranges_of(mlp, x)
    ways: dict[str, nn.Module] = {
        "bf16": mlp,
        "hybrid dynamic": HybridMlp(mlp, None, setting.matmul),
        "hybrid static": HybridMlp(mlp, ranges, setting.matmul),
        "FP8MLP (all, dynamic)": FP8MLP(mlp, setting.matmul),
        "FP8MLPWithStaticScale": FP8MLPWithStaticScale(mlp, ranges, setting.matmul),
    }
    exact = exact_mlp(mlp, x)
    with torch.inference_mode():
        rows = {
            name: {"cosine": cosine(way(x), exact), **latency(setting, lambda way=way: way(x))}
            for name, way in ways.items()
        }
    return {"tokens": tokens, "ways": rows}


def ranges_of(mlp: Mlp, x: Tensor) -> LayerRanges:
    hidden: list[float] = []
    handle = mlp.down_proj.register_forward_pre_hook(
        lambda module, arguments: hidden.append(float(arguments[0].abs().max()))
    )
    mlp(x)
    handle.remove()
    largest = float(x.abs().max())
    return LayerRanges(Range(largest, largest), Range(hidden[0], hidden[0]))


def exact_mlp(mlp: Mlp, x: Tensor) -> Tensor:
    gate, up = (x.double() @ mlp.gate_up_proj.weight.double().t()).chunk(2, -1)
    hidden = nn.functional.gelu(gate, approximate="tanh") * up
    return hidden @ mlp.down_proj.weight.double().t()


def latency(setting: Setting, call: Callable[[], object]) -> dict[str, float]:
    """Medians in ms: launched one by one, and replayed as one CUDA graph."""
    if not setting.on_gpu:
        return {"eager_ms": median_ms(setting, call)}
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return {"eager_ms": median_ms(setting, call), "graph_ms": median_ms(setting, graph.replay)}


def median_ms(setting: Setting, call: Callable[[], object]) -> float:
    if not setting.on_gpu:
        return float(np.median([wall_ms(call) for _ in range(setting.repeats)]))
    call()
    events = [
        [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(setting.repeats)
    ]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(np.median([begin.elapsed_time(end) for begin, end in events]))


def wall_ms(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


# The whole policy


def prepare_checkpoint(setting: Setting, folder: Path) -> dict[str, Any]:
    """Random weights in bfloat16 and their calibration, in `folder`."""
    begun = time.perf_counter()
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = Pi05(setting.config)
    save_pi05(model, folder, torch.bfloat16)
    del model
    saved = time.perf_counter()
    digest = checkpoint_hash(folder)
    hashed = time.perf_counter()
    layers = calibrate(setting, folder)
    write_scales(folder, Fp8Scales(digest, 99.9, CALIBRATION_FRAMES, "random images", layers))
    return {
        "write_s": saved - begun,
        "hash_s": hashed - saved,
        "calibrate_s": time.perf_counter() - hashed,
        "layers_that_overflow": sum(ranges.input.overflows for ranges in layers),
        "input_absmax": [ranges.input.largest for ranges in layers],
        "hidden_absmax": [ranges.hidden.largest for ranges in layers],
    }


def calibrate(setting: Setting, folder: Path) -> tuple[LayerRanges, ...]:
    model = load_pi05(folder, setting.config, setting.device, torch.bfloat16)
    backend, ranges = PyTorchBackend(BACKENDS["pytorch"], model), ActivationRanges(model)
    with ranges.recording():
        for seed in range(CALIBRATION_FRAMES):
            backend.prefill(inputs_of(setting, 100 + seed), 0.0)
    backend.close()
    return ranges.layers(99.9)


def inputs_of(setting: Setting, seed: int) -> ModelInputs:
    """Two cameras and 20 words, or half the words there is room for."""
    config, random = setting.config, np.random.default_rng(seed)
    size, words = config.vision.image_size, min(20, config.max_token_len // 2)
    return ModelInputs(
        images=random.uniform(-1, 1, (config.num_cameras, 3, size, size)).astype(np.float32),
        image_mask=np.arange(config.num_cameras) < 2,
        tokens=random.integers(0, config.vocab_size, config.max_token_len).astype(np.int32),
        token_mask=np.arange(config.max_token_len) < words,
    )


def noise_of(setting: Setting, seed: int) -> F32:
    shape = (setting.config.action_horizon, setting.config.action_dim)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def created(setting: Setting, name: str, folder: Path) -> Backend:
    """As the registry makes it; in a rehearsal with emulated products."""
    spec = BACKENDS[name]
    if setting.on_gpu or spec.engine == "pytorch":
        return create_backend(name, folder, setting.config, setting.device, torch.bfloat16)
    static = spec.fp8_scale == "static"
    scales = read_scales(folder, setting.config.language.depth - 1) if static else None
    model = load_pi05(folder, setting.config, setting.device, torch.bfloat16)
    quantise_mlps(model, scales, setting.matmul)
    return PyTorchBackend(spec, model, notes=notes_of(scales), warnings=warnings_of(spec, scales))


def backends(setting: Setting, folder: Path) -> dict[str, Any]:
    """Each engine against float32 on unseen inputs (the worst of 3), and its latency."""
    reference = frames(
        create_backend("pytorch", folder, setting.config, setting.device, "float32"), setting
    )
    engines = {}
    for name in BACKEND_NAMES:
        backend = created(setting, name, folder)
        compared = [
            difference(a, b) for a, b in zip(frames(backend, setting), reference, strict=True)
        ]
        engines[name] = {
            **worst(compared),
            **frame_latency(setting, backend),
            "notes": list(getattr(backend, "notes", ())),
            "warnings": list(getattr(backend, "warnings", ())),
            "memory_gb": torch.cuda.memory_allocated() / 1e9 if setting.on_gpu else 0.0,
        }
        backend.close()
        del backend
    return {"reference": "pytorch, float32", "engines": engines}


@dataclass(frozen=True)
class Frame:
    keys: Tensor
    values: Tensor
    actions: Tensor


def frames(backend: Backend, setting: Setting) -> list[Frame]:
    made = []
    for seed in range(3):
        prefix = backend.prefill(inputs_of(setting, seed), 0.0)
        actions = torch.from_numpy(backend.denoise(prefix, noise_of(setting, seed), NUM_STEPS))
        keys, values = (x.float().cpu().clone() for x in (prefix.keys, prefix.values))
        made.append(Frame(keys, values, actions))
    return made


def difference(ours: Frame, theirs: Frame) -> dict[str, Any]:
    return {
        "keys": [cosine(a, b) for a, b in zip(ours.keys, theirs.keys, strict=True)],
        "values": [cosine(a, b) for a, b in zip(ours.values, theirs.values, strict=True)],
        "actions": cosine(ours.actions, theirs.actions),
        "actions_max_abs_error": float((ours.actions - theirs.actions).abs().max()),
    }


def worst(compared: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "keys": [min(layer) for layer in zip(*(c["keys"] for c in compared), strict=True)],
        "values": [min(layer) for layer in zip(*(c["values"] for c in compared), strict=True)],
        "actions": min(c["actions"] for c in compared),
        "actions_max_abs_error": max(c["actions_max_abs_error"] for c in compared),
    }


def frame_latency(setting: Setting, backend: Backend) -> dict[str, float]:
    """Medians in ms, 2 cameras, 10 steps: stages on the device, the frame by the clock."""
    backend.warmup()
    inputs, noise = inputs_of(setting, 0), noise_of(setting, 0)
    seen = []
    for _ in range(3 + setting.repeats // 2):
        frame = wall_ms(lambda: backend.denoise(backend.prefill(inputs, 0.0), noise, NUM_STEPS))
        seen.append({**backend.stage_times_ms(), "frame": frame})
    return {f"{name}_ms": float(np.median([s[name] for s in seen[3:]])) for name in seen[0]}


# Pipelining


def pipelined(setting: Setting, folder: Path) -> dict[str, Any]:
    """That frames are equal to those of the plain engine, and the time between two chunks."""
    plain = created(setting, "pytorch", folder)
    beside = created(setting, "pytorch_pipelined", folder)
    beside.warmup()
    wanted = [one_frame(plain, setting, seed, seed) for seed in range(4)]
    prefixes = [beside.prefill(inputs_of(setting, 0), 0.0)]
    equal = {}
    for seed in range(4):
        if seed < 3:
            prefixes.append(beside.prefill(inputs_of(setting, seed + 1), 0.0))
        ours = beside.denoise(prefixes[seed], noise_of(setting, seed), NUM_STEPS)
        equal[f"frame {seed}"] = bool(np.array_equal(ours, wanted[seed]))
    return {
        "equal": equal,
        "plain_period_ms": period_ms(setting, plain, ahead=False),
        "pipelined_period_ms": period_ms(setting, beside, ahead=True),
        "device_stages_ms": dict(beside.stage_times_ms()),
    }


def one_frame(backend: Backend, setting: Setting, seed: int, noise: int) -> F32:
    prefix = backend.prefill(inputs_of(setting, seed), 0.0)
    return backend.denoise(prefix, noise_of(setting, noise), NUM_STEPS)


def period_ms(setting: Setting, backend: Backend, ahead: bool) -> float:
    inputs, noise = inputs_of(setting, 0), noise_of(setting, 0)
    held = backend.prefill(inputs, 0.0)
    taken = []
    for _ in range(3 + setting.repeats // 2):
        begun = time.perf_counter()
        newest = backend.prefill(inputs, 0.0)
        backend.denoise(held if ahead else newest, noise, NUM_STEPS)
        held = newest
        taken.append((time.perf_counter() - begun) * 1e3)
    return float(np.median(list(itertools.islice(taken, 3, None))))


def cosine(a: Tensor, b: Tensor) -> float:
    x, y = a.double().flatten(), b.double().flatten()
    return float(torch.dot(x, y) / (x.norm() * y.norm()))


def relative(a: Tensor, b: Tensor) -> float:
    """Root mean square of the error over that of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())


if __name__ == "__main__":
    sys.exit(main())

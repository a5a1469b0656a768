"""Backends fused and fused_fp8 on a CUDA GPU at pi05_libero's size: the whole table of targets.

    PYTHONPATH=. python3 benchmarks/fused_on_cuda.py --out fused.json

Sections, each a process of its own with what is left of --budget (440 s); one that fails is
recorded with what it said and the next begins; results are written after each:
toy        recorded outputs in float32 through graphs, every bucket, pipelined frames bit-equal
weights    random weights and FP8 scales, written to a temporary folder (7 GB)
reference  64 inputs through float32 eager PyTorch
precision  worst cosine of actions and flow of 64 inputs, for both engines and bfloat16 PyTorch
frames     p50 and p99 in turns: full frames of 10 and 3 steps, reuse frames, single steps, for
           eager PyTorch, the same sequence of torch operations as graphs, fused with a kernel for
           each product of a denoise step, overlapping (fused_single) or not (fused_serial), fused
           and fused_fp8
cameras    full frames from camera images of a few sizes, resized by the engine and by Pillow
profile    time by kernel of a full frame
ready      seconds from the start of a process to its first chunk that meets the reference
table      the targets, what was measured, and whether it is met

`--rehearse` runs everything at toy size on a CPU, with emulated products: a test of this script.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fused_cameras import frames_from_cameras
from fused_targets import print_table, table_of

ROOT = Path(__file__).parents[1]
TOY = ROOT / "test" / "data" / "golden" / "pi05_toy"
SAID_LAST = 4000
INPUTS, CAMERAS, PROMPT_TOKENS = 64, 2, 20
ENGINES = ("pytorch", "torch_graphs", "fused_serial", "fused_single", "fused", "fused_fp8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=440, help="seconds (default: 440)")
    parser.add_argument("--frames", type=int, default=300, help="of each kind (default: 300)")
    parser.add_argument("--engines", default=",".join(ENGINES), help="of the section frames")
    parser.add_argument("--rehearse", action="store_true", help="toy size on a CPU")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--section", help=argparse.SUPPRESS)  # of the inner processes
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        result = {**SECTIONS, **HIDDEN_SECTIONS}[arguments.section](arguments)
        print("\n" + json.dumps(result), flush=True)
        return 0
    with tempfile.TemporaryDirectory(prefix="fused_on_cuda_") as work:
        arguments.work = arguments.work or Path(work)
        return run_all(arguments)


def run_all(arguments: argparse.Namespace) -> int:
    begun_s = time.monotonic()
    results: dict[str, Any] = {"command": " ".join(sys.argv), "sections": {}}
    for name in arguments.sections.split(","):
        left_s = arguments.budget - (time.monotonic() - begun_s)
        results["sections"][name] = run_section(name, arguments, max(left_s, 1.0))
        results["seconds"] = time.monotonic() - begun_s
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        said = results["sections"][name]
        print(f"{name}: {said.get('error', 'done')} ({results['seconds']:.0f} s)", flush=True)
    print_table(results["sections"].get("table", {}))
    return int(any("error" in section for section in results["sections"].values()))


def run_section(name: str, arguments: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """What the section's process printed last, or what went wrong with it."""
    command = [sys.executable, __file__, "--section", name, "--out", str(arguments.out)]
    command += ["--work", str(arguments.work), "--frames", str(arguments.frames)]
    command += ["--engines", arguments.engines]
    command += ["--rehearse"] if arguments.rehearse else []
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    started = str(time.time())
    environment = {**os.environ, "PYTHONPATH": path, "SECTION_STARTED": started}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, env=environment
        )
    except subprocess.TimeoutExpired as error:
        return {"error": f"out of time after {error.timeout:.0f} s"}
    if done.returncode:
        return {"error": f"exit status {done.returncode}", "said": done.stderr[-SAID_LAST:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# What is measured


def device_of(arguments: argparse.Namespace) -> str:
    return "cpu" if arguments.rehearse else "cuda"


def config_of(arguments: argparse.Namespace) -> Any:
    from thor_policy_ros.model.config import model_config_from_json
    from thor_policy_ros.model.named_configs import LIBERO

    if arguments.rehearse:
        return model_config_from_json(json.loads((TOY / "config.json").read_text()))
    return LIBERO.model


def subject_of(arguments: argparse.Namespace) -> Any:
    from thor_policy_ros.evaluation.bench_subject import Subject

    config = config_of(arguments)
    words = min(PROMPT_TOKENS, config.max_token_len // 2)
    return Subject(arguments.work, "random", "pi05_libero", config, CAMERAS, words)


def made(name: str, arguments: argparse.Namespace) -> Any:
    """A backend of ENGINES, not warmed up; in a rehearsal with emulated products."""
    import torch

    from thor_policy_ros.backends import fused_fp8
    from thor_policy_ros.backends.fp8 import device_matmul, emulated_matmul
    from thor_policy_ros.backends.fp8_scales import read_scales
    from thor_policy_ros.backends.fused import FusedBackend, execution_on
    from thor_policy_ros.backends.fused_network import Tools
    from thor_policy_ros.backends.fused_products import DeviceProducts
    from thor_policy_ros.backends.fused_weights import take_weights
    from thor_policy_ros.backends.kernels.ops import create_ops
    from thor_policy_ros.backends.registry import BACKENDS, create_backend
    from thor_policy_ros.model.checkpoint import load_pi05

    device, config = device_of(arguments), config_of(arguments)
    row = {"fused": "fused_freq1", "fused_fp8": "fused_fp8_freq1"}.get(name, name)
    special = name in ("torch_graphs", "fused_serial", "fused_single")
    if name == "pytorch" or not (arguments.rehearse or special):
        return create_backend(row, arguments.work, config, device, torch.bfloat16)

    def tools() -> Tools:
        triton = name == "fused_serial" and not arguments.rehearse
        ops = create_ops("triton" if triton else "reference", device)
        return Tools(
            ops, DeviceProducts(ops, emulated_matmul if device == "cpu" else device_matmul)
        )

    execution = replace(execution_on(torch.device(device), torch.bfloat16), make_stack=None)
    if name == "torch_graphs":
        execution = replace(execution, in_place=False)  # torch reads tensors, not addresses
    if name != "fused_single" or arguments.rehearse:
        execution = replace(execution, make_tools=tools)
    model = load_pi05(arguments.work, config, device, torch.bfloat16)
    if name == "fused_fp8":
        scales = read_scales(arguments.work, config.language.depth - 1)
        assert scales is not None
        return FusedBackend(BACKENDS[row], fused_fp8.quantised(model, scales), execution)
    return FusedBackend(BACKENDS["fused_freq1"], take_weights(model), execution)


def toy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest errors against the recorded outputs, through graphs where there is a GPU."""
    import numpy as np
    import torch

    sys.path.insert(0, str(ROOT / "test"))
    from support.golden import toy_config, toy_model_inputs, toy_noise, toy_outputs

    from thor_policy_ros.backends.fused import FusedBackend, execution_on
    from thor_policy_ros.backends.fused_weights import take_weights
    from thor_policy_ros.backends.registry import BACKENDS, create_backend
    from thor_policy_ros.evaluation.result_files import machine_of, versions
    from thor_policy_ros.model.checkpoint import load_pi05

    device, noise, errors = torch.device(device_of(arguments)), toy_noise()[0].numpy(), {}
    valid = toy_outputs()["prefix_pad_mask"][0]
    for buckets in ((), (8, 20), (17,)):
        execution = replace(execution_on(device, torch.float32), buckets=buckets)
        model = take_weights(load_pi05(TOY, toy_config(), device))
        with closing(FusedBackend(BACKENDS["fused_freq1"], model, execution)) as backend:
            backend.warmup()
            prefix = backend.prefill(toy_model_inputs(), 0.0)
            found = {
                f"actions_{n}_steps": torch.from_numpy(backend.denoise(prefix, noise, n))[None]
                for n in (1, 3, 10)
            }
            found["prefix_k"], found["prefix_v"] = prefix.keys.cpu(), prefix.values.cpu()
            for key, ours in found.items():
                theirs = toy_outputs()[key]
                theirs = theirs[..., valid, :] if key.startswith("prefix") else theirs
                errors[f"{key}, buckets {buckets}"] = float((ours - theirs).abs().max())
    plain, beside = (
        create_backend(name, TOY, toy_config(), device)
        for name in ("fused_freq1", "fused_pipelined")
    )
    plain.warmup()
    beside.warmup()
    wanted = plain.denoise(plain.prefill(toy_model_inputs(), 0.0), noise, 10)
    prefix = beside.prefill(toy_model_inputs(), 0.0)
    equal = []
    for _ in range(20):
        ahead = beside.prefill(toy_model_inputs(), 0.0)
        equal.append(bool(np.array_equal(beside.denoise(prefix, noise, 10), wanted)))
        prefix = ahead
    return {
        "machine": machine_of(device),
        "versions": versions(),
        "errors": errors,
        "within_2e-4": max(errors.values()) < 2e-4,
        "pipelined_equal": all(equal),
    }


def weights(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from thor_policy_ros.evaluation.bench_subject import calibrate, write_random_weights

    device, begun = torch.device(device_of(arguments)), time.perf_counter()
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_random_weights(arguments.work, config_of(arguments), device)
    written = time.perf_counter()
    calibrate(subject_of(arguments), device)
    return {"write_s": written - begun, "calibrate_s": time.perf_counter() - written}


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    """Actions of float32 eager PyTorch, kept for the sections that follow."""
    import numpy as np

    from thor_policy_ros.backends.registry import create_backend

    subject, begun = subject_of(arguments), time.perf_counter()
    backend = create_backend(
        "pytorch", arguments.work, subject.config, device_of(arguments), "float32"
    )
    with closing(backend):
        actions = [frame(backend, subject, seed, 10) for seed in range(INPUTS)]
    np.save(arguments.work / "reference.npy", np.stack(actions))
    return {"inputs": INPUTS, "seconds": time.perf_counter() - begun}


def frame(backend: Any, subject: Any, seed: int, steps: int) -> Any:
    return backend.denoise(backend.prefill(subject.inputs(seed), 0.0), subject.noise(seed), steps)


def precision(arguments: argparse.Namespace) -> dict[str, Any]:
    """The worst of all inputs, by engine."""
    import numpy as np

    subject, wanted = subject_of(arguments), np.load(arguments.work / "reference.npy")
    results = {}
    for name in ("pytorch", "fused", "fused_fp8"):
        try:
            results[name] = worst_of(made(name, arguments), subject, wanted)
        except Exception as error:  # noqa: BLE001 (recorded: the others go on)
            results[name] = {"error": repr(error)[-SAID_LAST:]}
    return results


def worst_of(backend: Any, subject: Any, wanted: Any) -> dict[str, float]:
    import numpy as np

    from thor_policy_ros.runtime.engine_difference import cosine

    with closing(backend):
        backend.warmup()
        found = [frame(backend, subject, seed, 10) for seed in range(INPUTS)]
    noise = [subject.noise(seed) for seed in range(INPUTS)]
    pairs = list(zip(found, wanted, noise, strict=True))
    return {
        "actions_cosine": min(cosine(a, b) for a, b, _ in pairs),
        "flow_cosine": min(cosine(a - n, b - n) for a, b, n in pairs),
        "largest_error": max(float(np.abs(a - b).max()) for a, b, _ in pairs),
    }


def frames(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kinds of frames by engine, ms; engines take turns, and one that fails leaves the others."""
    subject, results, engines = subject_of(arguments), {}, {}
    for name in arguments.engines.split(","):
        begun = time.perf_counter()
        try:
            backend = made(name, arguments)
            loaded = time.perf_counter()
            backend.warmup()
            engines[name] = backend
            results[name] = {
                "load_s": loaded - begun,
                "warmup_s": time.perf_counter() - loaded,
                **facts_of(backend),
            }
        except Exception as error:  # noqa: BLE001 (recorded: the others go on)
            results[name] = {"error": repr(error)[-SAID_LAST:]}
    measured = {name: times_of(backend, subject) for name, backend in engines.items()}
    for number in range(arguments.frames):
        for name, times in measured.items():
            if name != "pytorch" or number < max(arguments.frames // 10, 5):
                times()
    for name, times in measured.items():
        results[name]["ms"] = quantiles(times.keywords["rows"])
    return results


def facts_of(backend: Any) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"notes": list(getattr(backend, "notes", ()))}
    if torch.cuda.is_available():
        facts["allocated_gb"] = torch.cuda.memory_allocated() / 1e9
        facts["reserved_gb"] = torch.cuda.memory_reserved() / 1e9
        facts["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    if hasattr(backend, "programs"):
        facts["programs"] = [len(programs) for programs in backend.programs]
        facts["instantiations_ms"] = [list(programs.spread_ms) for programs in backend.programs]
    return facts


def times_of(backend: Any, subject: Any) -> Any:
    """A call that measures one frame of each kind and appends it to its `rows`."""
    inputs, noise = [subject.inputs(seed) for seed in range(4)], subject.noise(0)
    rows: list[dict[str, float]] = []

    def measure(rows: list[dict[str, float]]) -> None:
        given, row = inputs[len(rows) % len(inputs)], {}
        for steps in (10, 3):
            begun = time.perf_counter()
            prefix = backend.prefill(given, 0.0)
            backend.denoise(prefix, noise, steps)
            row[f"full, {steps} steps"] = (time.perf_counter() - begun) * 1e3
        stages = backend.stage_times_ms()
        row |= {"vision on the device": stages["vision"], "prefix on the device": stages["prefill"]}
        for steps in (10, 1, 4):
            begun = time.perf_counter()
            backend.denoise(prefix, noise, steps)
            row[f"reuse, {steps} steps"] = (time.perf_counter() - begun) * 1e3
            row[f"denoise {steps} on the device"] = backend.stage_times_ms()["denoise"]
        ten, one = (row[f"denoise {steps} on the device"] for steps in (10, 1))
        row["one step"] = (ten - one) / 9
        rows.append(row)

    return partial(measure, rows=rows)


def quantiles(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    import numpy as np

    kept = rows[3:] if len(rows) > 6 else rows
    return {
        kind: dict(
            zip(
                ("p50", "p95", "p99"),
                np.quantile([row[kind] for row in kept], [0.5, 0.95, 0.99]).tolist(),
                strict=True,
            )
        )
        for kind in kept[0]
    }


def cameras(arguments: argparse.Namespace) -> dict[str, Any]:
    """From camera images to actions, ms: the whole, and the host's making of the model's inputs."""
    with closing(made("fused", arguments)) as backend:
        backend.warmup()
        rows = frames_from_cameras(backend, subject_of(arguments), arguments.frames)
        ms = {size: quantiles(found) for size, found in rows.items()}
        return {"notes": list(backend.notes), "ms": ms}


def profile(arguments: argparse.Namespace) -> dict[str, Any]:
    """The kernels of one full frame by device time, us; calls and share."""
    import torch
    from torch.profiler import ProfilerActivity

    subject, results = subject_of(arguments), {}
    on_gpu = device_of(arguments) == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    self_time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    for name in ("fused", "fused_fp8"):
        try:
            with closing(made(name, arguments)) as backend:
                backend.warmup()
                frame(backend, subject, 0, 10)
                with torch.profiler.profile(activities=[activity]) as profiler:
                    frame(backend, subject, 0, 10)
            rows = [
                (row.key[:120], row.count, getattr(row, self_time))
                for row in profiler.key_averages()
            ]
            rows.sort(key=lambda row: -row[2])
            results[name] = {"total_us": sum(row[2] for row in rows), "kernels": rows[:40]}
        except Exception as error:  # noqa: BLE001 (recorded: the other goes on)
            results[name] = {"error": repr(error)[-SAID_LAST:]}
    return results


def ready(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each engine in a process of its own; the weights are in the page cache by now."""
    names = ("fused", "fused_fp8")
    return {name: run_section(f"ready_{name}", arguments, 150) for name in names}


def ready_one(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from thor_policy_ros.runtime.engine_difference import cosine

    imported = time.time()
    subject = subject_of(arguments)
    backend = made(name, arguments)
    loaded = time.time()
    backend.warmup()
    warm = time.time()
    actions = frame(backend, subject, 0, 10)
    alike = cosine(actions, np.load(arguments.work / "reference.npy")[0])
    done, started = time.time(), float(os.environ["SECTION_STARTED"])
    return {
        "import_s": imported - started,
        "load_s": loaded - imported,
        "warmup_s": warm - loaded,
        "ready_s": done - started,
        "first_chunk_cosine": alike,
        **facts_of(backend),
    }


def table(arguments: argparse.Namespace) -> dict[str, Any]:
    sections = json.loads(arguments.out.read_text())["sections"]
    return table_of(sections, "a rehearsal" if arguments.rehearse else "a GPU")


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "toy": toy,
    "weights": weights,
    "reference": reference,
    "precision": precision,
    "frames": frames,
    "cameras": cameras,
    "profile": profile,
    "ready": ready,
    "table": table,
}
HIDDEN_SECTIONS = {f"ready_{name}": partial(ready_one, name) for name in ("fused", "fused_fp8")}

if __name__ == "__main__":
    sys.exit(main())

"""Backend tensorrt on a CUDA GPU: exactness, engines, latency. Needs the package tensorrt (or
tensorrt_rtx, on a GPU that it knows).

    PYTHONPATH=. python3 benchmarks/tensorrt_on_cuda.py --out tensorrt.json [--cache DIR]

Sections: toy (recorded outputs, pipelining and guidance, float32 and bfloat16), build (engines of
pi05_libero's size with random weights), latency (stages beside eager PyTorch, in turns), verify
(keys, values and actions against float32 PyTorch). Each is a process of its own with what is left
of --budget; one that fails is recorded and the next begins. Builds wait in --cache for later runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = "pi05_libero"
SAID_LAST = 4000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="of engines; a temporary one by default")
    parser.add_argument("--budget", type=float, default=440, help="seconds (default: 440)")
    parser.add_argument("--config", default=CONFIG, help="sizes (default: %(default)s)")
    parser.add_argument("--sections", default="facts,toy,weights,latency,verify")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # of the inner processes
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        print(json.dumps(SECTIONS[arguments.section](arguments)))
        return 0
    with tempfile.TemporaryDirectory() as work:
        arguments.work = Path(work)
        return run_all(arguments)


def run_all(arguments: argparse.Namespace) -> int:
    """Results are written after every section."""
    results: dict[str, Any] = {"sections": {}}
    begun_s = time.monotonic()
    for name in arguments.sections.split(","):
        left_s = arguments.budget - (time.monotonic() - begun_s)
        results["sections"][name] = run_section(name, arguments, max(left_s, 1.0))
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(name, results["sections"][name].get("error", "done"), flush=True)
    return int(any("error" in section for section in results["sections"].values()))


def run_section(name: str, arguments: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """What the section's process printed last, or what went wrong with it."""
    cache = arguments.cache or arguments.work / "engines"
    command = [
        sys.executable, __file__, "--section", name, "--out", str(arguments.out),
        "--work", str(arguments.work), "--cache", str(cache), "--config", arguments.config,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit_s,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        return {"error": f"out of time after {error.timeout:.0f} s"}
    if done.returncode:
        return {"error": f"exit status {done.returncode}", "said": done.stderr[-SAID_LAST:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions, and what is missing."""
    import torch

    from thor_policy_ros.backends.registry import availability
    from thor_policy_ros.evaluation.result_files import machine_of, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    missing = availability("tensorrt")
    return {"machine": machine_of(device), "versions": versions(), "missing": missing}


def toy(arguments: argparse.Namespace) -> dict[str, Any]:
    """The GPU's own tests of the backend."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-ra", "test/backends/test_tensorrt_cuda.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    said = {"said": done.stdout[-SAID_LAST:].splitlines()}
    return said if done.returncode == 0 else {"error": f"status {done.returncode}", **said}


def weights(arguments: argparse.Namespace) -> dict[str, Any]:
    """Random weights of full size in the work folder, and their engines in the cache."""
    import torch

    from thor_policy_ros.evaluation.bench_subject import write_random_weights
    from thor_policy_ros.model.named_configs import NAMED

    folder = checkpoint_of(arguments)
    folder.mkdir()
    write_random_weights(folder, NAMED[arguments.config].model, torch.device("cuda"))
    report = arguments.work / "build.json"
    command_line("build", *subject(arguments), "--cache", str(arguments.cache), "--json", report)
    built: dict[str, Any] = json.loads(report.read_text())
    return built


def latency(arguments: argparse.Namespace) -> dict[str, Any]:
    """Stages and frames of tensorrt and tensorrt_pipelined beside eager PyTorch."""
    report = arguments.work / "latency.json"
    os.environ["XDG_CACHE_HOME"] = str(linked_cache(arguments))
    names = "tensorrt,tensorrt_pipelined"
    command_line("bench", "latency", *subject(arguments), "--backend", names, "--json", report)
    measured: dict[str, Any] = json.loads(report.read_text())
    return measured


def verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keys, values and flow of frames, the worst one, against float32 PyTorch."""
    import numpy as np
    import torch

    from thor_policy_ros.backends.registry import create_backend
    from thor_policy_ros.model.named_configs import NAMED
    from thor_policy_ros.types import EngineOptions

    config, folder = NAMED[arguments.config].model, checkpoint_of(arguments)
    options = EngineOptions(cache_dir=str(arguments.cache))

    def frames(name: str, dtype: str) -> list[list[np.ndarray]]:
        made = create_backend(name, folder, config, "cuda", dtype, options)
        found = []
        for seed in range(3):
            inputs, noise = random_frame(config, seed)
            prefix = made.prefill(inputs, 0.0)
            actions = made.denoise(prefix, noise, 10)
            kv = [tensor.float().cpu().numpy().copy() for tensor in (prefix.keys, prefix.values)]
            found.append([*kv, actions - noise])
        made.close()
        torch.cuda.empty_cache()
        return found

    pairs = zip(frames("tensorrt", "bfloat16"), frames("pytorch", "float32"), strict=True)
    cosines = [[cosine(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs]
    worst = np.min(cosines, 0)
    return {"worst_cosine": dict(zip(("keys", "values", "flow"), worst.tolist(), strict=True))}


def random_frame(config: Any, seed: int) -> tuple[Any, Any]:
    """Two cameras and 20 words, as `thor-policy bench` takes them."""
    from thor_policy_ros.evaluation.bench_subject import Subject

    given = Subject(Path(), "random", "", config, 2, 20)
    return given.inputs(seed), given.noise(seed)


def cosine(a: Any, b: Any) -> float:
    """Of two arrays, as vectors."""
    a, b = a.ravel().astype("f8"), b.ravel().astype("f8")
    return float(a @ b / ((a @ a) * (b @ b)) ** 0.5)


def checkpoint_of(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.work / "weights"
    return folder


def subject(arguments: argparse.Namespace) -> list[str]:
    return ["--checkpoint", str(checkpoint_of(arguments)), "--config", arguments.config]


def linked_cache(arguments: argparse.Namespace) -> Path:
    """A cache home whose engines are those of --cache."""
    home: Path = arguments.work / "home"
    (home / "thor_policy_ros").mkdir(parents=True, exist_ok=True)
    engines = home / "thor_policy_ros" / "engines"
    if not engines.exists():
        engines.symlink_to(arguments.cache.resolve())
    return home


def command_line(*arguments: Any) -> None:
    """One `thor-policy` command; RuntimeError with what it said if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "thor_policy_ros.evaluation", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-SAID_LAST:])


SECTIONS = {
    "facts": facts,
    "toy": toy,
    "weights": weights,
    "latency": latency,
    "verify": verify,
}

if __name__ == "__main__":
    raise SystemExit(main())

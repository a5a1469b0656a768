"""Loading full-size checkpoints, and several clients in one pass, on a CUDA device.

    PYTHONPATH=. python3 benchmarks/load_on_cuda.py --out load_cuda.json

Draws random weights of pi0.5's size on the device and writes them in openpi's layout, LeRobot's,
and merged with FP8 (24 GB of disk in --folder), then loads each into bfloat16 on the device in a
process of its own, --rounds times, from a warm page cache: seconds, and the most host memory beyond
the mapped file. Last, latency of `pytorch` for 1 to 8 observations in one pass. With --device cpu
the same on a CPU. --keep leaves the checkpoints, and takes those that are there. What fails is
recorded as an error; the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thor_policy_ros.backends.batched import sample_batch
from thor_policy_ros.backends.fp8_stored import FILE, store_fp8
from thor_policy_ros.backends.pytorch import PyTorchBackend
from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.random_checkpoint import write_random_checkpoint
from thor_policy_ros.evaluation.result_files import machine_of, versions
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.config import Pi05Config, PolicyConfig
from thor_policy_ros.model.conversion import convert_weights
from thor_policy_ros.model.named_configs import chosen_config
from thor_policy_ros.model.weight_files import WEIGHTS, remember_hash
from thor_policy_ros.types import ModelInputs

LOADS = ("openpi", "lerobot", "merged", "merged, FP8 as stored")
CHILD = """
import json, sys, threading, time
from pathlib import Path
import torch
from thor_policy_ros.backends.fp8_mlp import load_quantised
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.named_configs import chosen_config
folder, device, fp8 = sys.argv[1], torch.device(sys.argv[2]), sys.argv[3] == "fp8"
config, counted = chosen_config(sys.argv[4]).model, sys.argv[5].split(",")
torch.zeros(1, device=device)
with torch.device("meta"):
    torch.nn.Linear(1, 1)
def own():
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(rows[name].split()[0]) * 1024 for name in counted)
begun, most, ended = own(), [0], threading.Event()
def sample():
    while not ended.is_set():
        most[0] = max(most[0], own() - begun)
        time.sleep(0.002)
thread = threading.Thread(target=sample, daemon=True)
thread.start()
begun_s = time.perf_counter()
if fp8:
    model = load_quantised(folder, config, device, None)
else:
    model = load_pi05(folder, config, device, torch.bfloat16)
if device.type == "cuda":
    torch.cuda.synchronize()
seconds = time.perf_counter() - begun_s
ended.set()
thread.join()
tensors = [*model.parameters(), *model.buffers()]
size = sum(t.numel() * t.element_size() for t in tensors)
host = size if device.type == "cpu" else 0
print(json.dumps({"seconds": seconds, "model_bytes": size, "host_bytes_beyond": most[0] - host}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the results go, as JSON")
    parser.add_argument("--folder", type=Path, help="for the checkpoints; default: a temporary one")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--config", default="pi05_libero", help="a name, or a JSON file")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints in --folder")
    parser.add_argument("--frames", type=int, default=10, help="for each batch size")
    parser.add_argument("--rounds", type=int, default=3, help="loads of each layout")
    parser.add_argument("--skip-batches", action="store_true")
    arguments = parser.parse_args()
    name_of_config, config = arguments.config, chosen_config(arguments.config)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="thor_policy_load_"))
    results = Results(arguments.out)
    results.add("machine", lambda: machine_of(torch.device(arguments.device)) | versions())
    try:
        results.add("made", lambda: make(folder, config, arguments.device))
        for turn in range(arguments.rounds):  # in turn: a busy minute meets them all
            for name in LOADS:
                section = f"load {name}, round {turn + 1}"
                results.add(
                    section,
                    lambda name=name: load_once(folder, name, arguments.device, name_of_config),
                )
        results.add("loads", lambda: summary(results.found, arguments.rounds))
        if not arguments.skip_batches:
            results.add(
                "batches", lambda: batches(folder, config, arguments.device, arguments.frames)
            )
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(results.found, indent=2))
    return 1 if results.failed else 0


class Results:
    """Written after every section; a section that raises leaves its error instead."""

    def __init__(self, path: Path) -> None:
        self.found: dict[str, Any] = {}
        self.failed = False
        self._path = path

    def add(self, section: str, measure: Callable[[], Any]) -> None:
        begun_s = time.perf_counter()
        try:
            self.found[section] = measure()
        except Exception:  # noqa: BLE001 - recorded, and the run's status says so
            self.found[section] = {"error": traceback.format_exc()}
            self.failed = True
        print(f"{section}: {time.perf_counter() - begun_s:.1f} s", file=sys.stderr, flush=True)
        self._path.write_text(json.dumps(self.found, indent=2) + "\n")


def make(folder: Path, config: PolicyConfig, device: str) -> dict[str, Any]:
    """The checkpoints that are not there yet: seconds and bytes of each. LeRobot's and the merged
    one are converted side by side, so that their seconds are not those of a conversion alone."""
    model, seconds = config.model, {}

    def made(name: str, file: str, make_it: Callable[[], Any]) -> None:
        if not (folder / name / file).is_file():
            begun_s = time.perf_counter()
            make_it()
            seconds[f"{name}/{file}"] = time.perf_counter() - begun_s

    openpi, lerobot, merged = (folder / name for name in ("openpi", "lerobot", "merged"))

    def make_merged() -> None:
        made("merged", WEIGHTS, lambda: convert_weights(openpi, merged, model, "merged"))
        made("merged", "weights_hash.json", lambda: remember_hash(merged))
        made("merged", FILE, lambda: store_fp8(merged, model.language))

    def make_lerobot() -> None:
        made("lerobot", WEIGHTS, lambda: convert_weights(openpi, lerobot, model, "lerobot"))

    made("openpi", WEIGHTS, lambda: write_random_checkpoint(openpi, config, device=device))
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(make_merged), pool.submit(make_lerobot)]:
            done.result()
    files = sorted(folder.glob("*/*.safetensors"))
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    return {"seconds": seconds, "bytes": sizes}


def load_once(folder: Path, name: str, device: str, config: str) -> dict[str, Any]:
    """In a fresh process, after the files were read into the page cache."""
    layout, _, fp8 = name.partition(", ")
    block = bytearray(1 << 24)
    for file in (folder / layout).glob("*.safetensors"):
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(block):
                pass
    kind = "fp8" if fp8 else ""
    words = [str(folder / layout), device, kind, config, ",".join(own_memory(folder))]
    command = [sys.executable, "-c", CHILD, *words]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def own_memory(folder: Path) -> tuple[str, ...]:
    """Lines of /proc/self/status that hold a process's memory and no page of the mapped files,
    which on a tmpfs are shared memory themselves."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(m, kind) for m, kind in mounts if folder.resolve().is_relative_to(m)]
    kind = max(inside, key=lambda mount: len(mount[0]))[1]
    return ("RssAnon",) if kind == "tmpfs" else ("RssAnon", "RssShmem")


def summary(found: dict[str, Any], turns: int) -> dict[str, Any]:
    """By layout that loaded in every round: seconds, their median, and the most host memory."""
    lines = {}
    for name in LOADS:
        rounds = [found[f"load {name}, round {turn + 1}"] for turn in range(turns)]
        if any("error" in one for one in rounds):
            continue
        seconds = [one["seconds"] for one in rounds]
        lines[name] = {
            "seconds_median": statistics.median(seconds),
            "seconds": seconds,
            "host_mb_beyond_most": max(one["host_bytes_beyond"] for one in rounds) / 1e6,
        }
    return lines


def batches(folder: Path, config: PolicyConfig, device: str, frames: int) -> dict[str, Any]:
    """Latency of one pass over B observations (two cameras, 20 tokens, 10 steps), by B."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_pi05(folder / "merged", config.model, device, dtype)
    backend = PyTorchBackend(BACKENDS["pytorch"], model)
    shape = (config.model.action_horizon, config.model.action_dim)
    found = {}
    for size in (1, 2, 4, 8):
        inputs = [observation(config.model, seed) for seed in range(size)]
        noise = np.random.default_rng(0).standard_normal((size, *shape)).astype(np.float32)
        sample_batch(backend, inputs, noise, 10)
        times = []
        for _ in range(frames):
            begun_s = time.perf_counter()
            sample_batch(backend, inputs, noise, 10)  # which waits for the actions
            times.append((time.perf_counter() - begun_s) * 1e3)
        median = statistics.median(times)
        found[str(size)] = {"pass_ms": median, "ms_per_observation": median / size}
    return found


def observation(config: Pi05Config, seed: int) -> ModelInputs:
    random = np.random.default_rng(seed)
    size, cameras = config.vision.image_size, config.num_cameras
    return ModelInputs(
        images=random.uniform(-1, 1, (cameras, 3, size, size)).astype(np.float32),
        image_mask=np.arange(cameras) < 2,
        tokens=random.integers(1, min(1000, config.vocab_size), config.max_token_len).astype(
            np.int32
        ),
        token_mask=np.arange(config.max_token_len) < 20,
    )


if __name__ == "__main__":
    raise SystemExit(main())

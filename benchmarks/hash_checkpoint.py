"""What checksums cost beside loading: reading, hashing and loading the same file, in turns.

    PYTHONPATH=. python3 benchmarks/hash_checkpoint.py --out hash.json

Writes random weights (about 1.5 GB: pi05_libero's networks with fewer layers) in openpi's layout
to --folder or a temporary one. Then, round by round and from a warm page cache, the file is read,
is hashed as a load with checksums.json hashes it, and is loaded into bfloat16 on the CPU. Seconds
are of the process's CPU time, which a busy machine stretches less than the clock's; the ratios are
of one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thor_policy_ros.evaluation.random_checkpoint import write_random_checkpoint
from thor_policy_ros.evaluation.result_files import machine_of, versions
from thor_policy_ros.model import file_hashes
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.config import Pi05Config, PolicyConfig
from thor_policy_ros.model.named_configs import LIBERO

LAYERS = 4
VISION_LAYERS = 8
WORDS = 16384


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the results go, as JSON")
    parser.add_argument("--folder", type=Path, help="for the checkpoint; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), shorter(LIBERO), arguments.rounds)
    command = f"PYTHONPATH=. python3 benchmarks/hash_checkpoint.py --rounds {arguments.rounds}"
    machine = {"cpu": cpu(), **machine_of(torch.device("cpu")), **versions()}
    text = json.dumps({"command": command, "machine": machine, **found}, indent=2)
    print(text)
    arguments.out.write_text(text + "\n")
    return 0


def shorter(config: PolicyConfig) -> PolicyConfig:
    model = dataclasses.replace(
        config.model,
        vocab_size=WORDS,
        vision=dataclasses.replace(config.model.vision, depth=VISION_LAYERS),
        language=dataclasses.replace(config.model.language, depth=LAYERS),
        action_expert=dataclasses.replace(config.model.action_expert, depth=LAYERS),
    )
    return dataclasses.replace(config, model=model)


def measure(folder: Path, config: PolicyConfig, rounds: int) -> dict[str, Any]:
    """GB of the file, MB a second of CPU time for each way, and hashing over loading."""
    path = write_random_checkpoint(folder, config)
    time.sleep(file_hashes.SETTLED_NS / 1e9)
    ways: dict[str, Callable[[], object]] = {
        "read": lambda: read(path),
        "hash": lambda: file_hashes.sha256_of(path),
        "load": lambda: load(folder, config.model),
    }
    cpu_s: dict[str, list[float]] = {name: [] for name in ways}
    clock_s: dict[str, list[float]] = {name: [] for name in ways}
    read(path)
    for _ in range(rounds):
        file_hashes._known.clear()  # a process hashes a file once
        for name, way in ways.items():
            begun = time.process_time(), time.perf_counter()
            way()
            cpu_s[name].append(time.process_time() - begun[0])
            clock_s[name].append(time.perf_counter() - begun[1])
    size = path.stat().st_size
    ratios = [a / b for a, b in zip(cpu_s["hash"], cpu_s["load"], strict=True)]
    return {
        "gigabytes": size / 1e9,
        "mb_per_cpu_second": {n: size / 1e6 / statistics.median(s) for n, s in cpu_s.items()},
        "mb_per_second_by_the_clock": {
            n: [size / 1e6 / max(s), size / 1e6 / min(s)] for n, s in clock_s.items()
        },
        "hash_over_load": statistics.median(ratios),
        "hash_over_load_by_round": ratios,
    }


def read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(file_hashes.HASH_BLOCK):
            pass


def load(folder: Path, config: Pi05Config) -> None:
    load_pi05(folder, config, "cpu", torch.bfloat16)


def cpu() -> str:
    """Its name, and whether it has instructions for SHA."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {word for line in lines for word in line.split()}
    sha = "SHA instructions" if flags & {"sha_ni", "sha2"} else "no SHA instructions"
    return f"{named[0] if named else platform.machine()}, {sha}"


if __name__ == "__main__":
    raise SystemExit(main())

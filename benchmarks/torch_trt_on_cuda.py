"""How far Torch-TensorRT takes pi0.5 on this machine, stage by stage, each in a process of its own.

    PYTHONPATH=. python3 benchmarks/torch_trt_on_cuda.py --out torch_trt.json [--packages TREE]

Stages: import; for toy size and pi05_libero's, each part: graph (export, the graph against the
module, dry run of the partitioner) and engine (converted and built; one for another GPU is
offered to TensorRT here all the same); own (a toy engine for this very GPU, or how it is refused);
backend (loaded, compared with float32 PyTorch, timed) where nothing is missing. A stage that fails
is recorded and the next begins. Random weights at full size: they say nothing about precision.

--packages: folder of wheels, or a .tar.xz of an installed tree (`pip install --target`), for a
machine without a network. --capability sm_120: build for that GPU instead of this one, as
tensorrt_rtx can; such an engine is not run. --without-gpu: for a machine with a CUDA build of
torch and no driver; what torch_tensorrt asks torch.cuda is answered as that GPU would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from torch_trt_stages import DEFAULT_CAPABILITY, WORK, Setting

PARTS = ("vision", "prefix", "denoise")
STAGES = [
    ("import", "", ""),
    *((stage, "toy", part) for part in PARTS for stage in ("graph", "engine")),
    *(
        (stage, "full", part)
        for part in ("prefix", "denoise", "vision")
        for stage in ("graph", "engine")
    ),
    ("own", "toy", "denoise"),
    ("backend", "toy", ""),
    ("backend", "full", ""),
]
SAID_LAST = 25


def main() -> int:
    arguments = parsed()
    if arguments.stage:
        return run_stage(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tree = unpacked(arguments.packages, Path(folder)) if arguments.packages else None
        results = run_all(arguments, tree, Path(folder))
    failed = [name for name, r in results["stages"].items() if r["status"] == "failed"]
    print(f"failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    parser.add_argument("--packages", type=Path, help="folder of wheels, or .tar.xz of a tree")
    parser.add_argument("--capability", default="", help="such as sm_120; this GPU's if it can")
    parser.add_argument(
        "--without-gpu", action="store_true", help="no driver: convert all the same"
    )
    parser.add_argument("--sizes", default="toy,full", help="of toy, full")
    parser.add_argument("--dtypes", default="bfloat16", help="of bfloat16, float32")
    parser.add_argument("--budget", type=float, default=420, help="seconds for all stages")
    for name in ("--stage", "--size", "--part", "--dtype", "--work"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)  # of the inner processes
    return parser.parse_args()


# All stages


def run_all(arguments: argparse.Namespace, tree: Path | None, folder: Path) -> dict[str, Any]:
    """Every stage in a process of its own; written after each."""
    begun, results = time.monotonic(), {"command": sys.argv[1:], "stages": {}}
    environment = {**os.environ, "PYTHONPATH": python_path(tree)}
    for stage, size, part in STAGES:
        if size and size not in arguments.sizes.split(","):
            continue
        for dtype in arguments.dtypes.split(",") if size else [""]:
            name = " ".join(filter(None, (stage, size, part, dtype)))
            left = arguments.budget - (time.monotonic() - begun)
            flags = {
                "stage": stage,
                "size": size,
                "part": part,
                "dtype": dtype,
                "work": str(folder),
            }
            result = one_stage(arguments, flags, environment, left)
            results["stages"][name] = result
            results["seconds"] = round(time.monotonic() - begun, 1)
            print(f"{name}: {result['status']} ({result['seconds']} s)", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def one_stage(
    arguments: argparse.Namespace, flags: dict[str, str], environment: dict[str, str], left: float
) -> dict[str, Any]:
    """status: 'done', 'failed' (with what was said last), 'skipped' (with why)."""
    if left < 5:
        return {"status": "skipped", "why": "the time budget is used up", "seconds": 0}
    command = [sys.executable, __file__, "--capability", arguments.capability]
    command += ["--without-gpu"] if arguments.without_gpu else []
    for name, value in flags.items():
        command += [f"--{name}", value]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=left, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "why": "out of time", "seconds": round(left, 1)}
    seconds = round(time.monotonic() - begun, 1)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-SAID_LAST:]
        return {"status": "failed", "exit": done.returncode, "said": said, "seconds": seconds}
    found = json.loads(done.stdout)
    if "refused" in found:
        found["said"] = done.stderr.strip().splitlines()[-SAID_LAST:]
    return {"status": found.pop("status", "done"), "seconds": seconds, **found}


def python_path(tree: Path | None) -> str:
    root = str(Path(__file__).parents[1])
    return os.pathsep.join(filter(None, (str(tree or ""), root, os.environ.get("PYTHONPATH"))))


def unpacked(packages: Path, folder: Path) -> Path:
    """A folder to import from. The packages that torch needs are taken from the machine."""
    tree = folder / "packages"
    if packages.is_dir():
        wheels = [str(path) for path in packages.glob("*.whl")]
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
        subprocess.run([*pip, "--target", str(tree), *wheels], check=True)
    else:
        with tarfile.open(packages) as archive:
            archive.extractall(tree, filter="data")
    return tree


# One stage


def run_stage(arguments: argparse.Namespace) -> int:
    """Nothing but the result goes to stdout, whatever libraries print."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stand_ins = answer_as_a_gpu(arguments.capability) if arguments.without_gpu else ()
    stand_ins += importable_2_11()
    setting = Setting(
        size=arguments.size,
        part=arguments.part,
        dtype=arguments.dtype,
        capability=arguments.capability,
        on_gpu=not arguments.without_gpu,
        work=Path(arguments.work),
        stand_ins=stand_ins,
    )
    result = WORK[arguments.stage](setting)
    with answers:
        json.dump(result, answers)
    return 0


def answer_as_a_gpu(capability: str) -> tuple[str, ...]:
    """What torch_tensorrt asks while it is imported and converts, without a driver."""
    import torch

    numbers = (capability or DEFAULT_CAPABILITY).removeprefix("sm_")
    major, minor = int(numbers[:-1]), int(numbers[-1])
    properties = SimpleNamespace(name="none", major=major, minor=minor, total_memory=10**11)
    answers: dict[str, Callable[..., Any]] = {
        "get_device_capability": lambda *_: (major, minor),
        "get_device_properties": lambda *_: properties,
        "current_device": lambda: 0,
        "mem_get_info": lambda *_: (10**11, 10**11),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    return tuple(f"torch.cuda.{name}" for name in answers)


def importable_2_11() -> tuple[str, ...]:
    """torch-tensorrt-rtx 2.11 looks for a module that no tensorrt_rtx from 1.4 on has."""
    from importlib import metadata

    try:
        version = metadata.version("torch-tensorrt-rtx")
    except metadata.PackageNotFoundError:
        return ()
    if not version.startswith("2.11."):
        return ()
    name = "tensorrt_rtx_bindings.plugin"
    sys.modules[name] = ModuleType(name)
    return (f"an empty module {name}, without which 2.11 cannot be imported",)


if __name__ == "__main__":
    sys.exit(main())

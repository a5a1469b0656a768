"""What gpu_checks.py measures: each section yields (item, result) as it comes to them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "checkpoints" / "demo"
FULL = "pi05_libero"
EXHAUSTED = ("pytorch", "pytorch_pipelined", "fused_freq1")  # none that builds engines for minutes
Items = Iterator[tuple[str, dict[str, Any]]]


class Place(NamedTuple):
    """work: folder of the run. limit_s: of the section's process."""

    work: Path
    device: str
    toy: bool
    limit_s: float


def facts(place: Place, items: Sequence[str]) -> Items:
    """Machine and versions; of every backend whether it runs here; one name for each engine."""
    import torch

    from thor_policy_ros.backends.registry import BACKENDS, availability
    from thor_policy_ros.evaluation.result_files import machine_of, versions

    missing = {name: list(availability(name)) for name in BACKENDS}
    memory = torch.cuda.mem_get_info() if place.device.startswith("cuda") else None
    yield (
        "all",
        {
            "machine": machine_of(torch.device(place.device)),
            "gpu_memory_free_and_total": memory,
            "versions": versions(),
            "backends": [name for name, lacks in missing.items() if not lacks],
            "missing": {name: lacks for name, lacks in missing.items() if lacks},
            "engines": _engines([name for name, lacks in missing.items() if not lacks]),
        },
    )


def demo(place: Place, items: Sequence[str]) -> Items:
    """Against float32 on the demo checkpoint; FP8 with the scales of the simulated arm."""
    yield from _verified(place, items, _calibrated_demo(place), None)


def full(place: Place, items: Sequence[str]) -> Items:
    """Against float32 at full size, with random weights that the first process writes."""
    yield from _verified(place, items, _full_size(place), None if place.toy else FULL)


def soak(place: Place, items: Sequence[str]) -> Items:
    """100 switches among all backends that run here, two of them once in a while in between."""
    from runtime_soak import soak as run_soak

    from thor_policy_ros.backends.registry import BACKENDS, availability

    names = [name for name in BACKENDS if not availability(name)]
    yield (
        "all",
        run_soak(
            _calibrated_demo(place),
            names,
            place.device,
            8 if place.toy else 100,
            place.limit_s * 0.8,
        ),
    )


def exhausted(place: Place, items: Sequence[str]) -> Items:
    """The GPU's memory used up, at full size: see gpu_exhausted.py."""
    from gpu_exhausted import exhausted as run_exhausted

    from thor_policy_ros.backends.registry import BACKENDS, availability

    engines = _engines([name for name in BACKENDS if not availability(name)])
    names = [name for name in engines if name in EXHAUSTED]
    folder, config = (DEMO, None) if place.toy else (_full_size(place), FULL)
    yield "all", run_exhausted(folder, names, place.device, config)


def success(place: Place, items: Sequence[str]) -> Items:
    """Each engine plays the same scenes, in pairs with `pytorch`; refilled on every tick where
    there is such a name, so that precision is judged and not reuse.
    """
    if importlib.util.find_spec("mujoco") is None:
        yield from ((name, {"skipped": "package mujoco is not installed"}) for name in items)
        return
    from thor_policy_ros.evaluation.closed_loop import Conditions
    from thor_policy_ros.evaluation.paired_success import success_of
    from thor_policy_ros.evaluation.pairs import pairs
    from thor_policy_ros.evaluation.rollouts import PolicyChoice, run_rollouts

    checkpoint, conditions = str(_calibrated_demo(place)), Conditions(speed_m_s=0.12)
    episodes, workers = (1, 1) if place.toy else (60, min(16, os.cpu_count() or 1))
    first, records = "pytorch", {}
    for name in dict.fromkeys([first, *items]):
        begun_s = time.perf_counter()
        policy = PolicyChoice(checkpoint, name, place.device)
        played = run_rollouts(policy, conditions, episodes, workers)
        records[name] = sorted(played, key=lambda record: record.seed)
        if name in items:
            found = {"num_steps": conditions.num_steps, "speed_m_s": conditions.speed_m_s}
            found.update(success_of(records[name]), seconds=time.perf_counter() - begun_s)
            paired = {} if name == first else {"paired": pairs(records, first, name)}
            yield name, {**found, **paired}


def tests(place: Place, items: Sequence[str]) -> Items:
    """The tests marked `gpu`, of the files that have some."""
    if importlib.util.find_spec("pytest") is None:
        yield "all", {"skipped": "package pytest is not installed"}
        return
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "test").rglob("test_*.py"))
        if "mark.gpu" in path.read_text() and "rclpy" not in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()[-40:]
    wrong = [] if done.returncode == 0 else [f"pytest ended with status {done.returncode}"]
    yield "all", {"files": files, "said": said, "faults": wrong}


def _engines(names: Sequence[str]) -> list[str]:
    """One name of each engine: the one that refills on every tick, where there is one."""
    from thor_policy_ros.backends.registry import BACKENDS
    from thor_policy_ros.runtime.backend_switch import is_variant

    chosen: list[str] = []
    for name in sorted(names, key=lambda n: (n != "pytorch", BACKENDS[n].reuse_every)):
        if not any(is_variant(BACKENDS[name], BACKENDS[other]) for other in chosen):
            chosen.append(name)
    return chosen


def _verified(place: Place, names: Sequence[str], folder: Path, config: str | None) -> Items:
    """Each engine loaded, warmed up, compared and timed; the reference made once, then freed."""
    import torch

    from thor_policy_ros.ros.memory_use import memory_values
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
    from thor_policy_ros.runtime.verification import (
        reference_frames,
        verification_json,
        verify_frames,
    )
    from thor_policy_ros.runtime.verification_inputs import engine_inputs, synthetic_observations

    with UnifiedPolicy(
        folder, "pytorch", config=config, device=place.device, dtype="float32"
    ) as reference:
        seen = synthetic_observations(reference.config, 6)
        inputs = engine_inputs(reference.preprocess, reference.config, seen)
        frames = reference_frames(reference, inputs)
    del reference
    for name in names:
        begun_s = time.perf_counter()
        try:
            with UnifiedPolicy(folder, name, config=config, device=place.device) as policy:
                loaded_s = time.perf_counter()
                policy.warmup()
                warm_s = time.perf_counter()
                found = verification_json(verify_frames(policy, frames))
                taken_ms = [_frame_ms(policy, seen[0]) for _ in range(12)][2:]
                yield (
                    name,
                    {
                        **found,
                        "faults": [] if found["ok"] else [found["reason"]],
                        "load_s": loaded_s - begun_s,
                        "warmup_s": warm_s - loaded_s,
                        "frame_ms_p50": sorted(taken_ms)[len(taken_ms) // 2],
                        "notes": list(getattr(policy.backend, "notes", ())),
                        "warnings": list(getattr(policy.backend, "warnings", ())),
                        **memory_values(torch.device(place.device)),
                    },
                )
        except Exception as error:  # noqa: BLE001 - recorded; the next engine is tried
            said = traceback.format_exc().splitlines()[-12:]
            yield name, {"error": repr(error), "said": said}


def _frame_ms(policy: Any, observation: Any) -> float:
    begun_s = time.perf_counter()
    policy.infer(observation, num_steps=10, seed=0)
    return (time.perf_counter() - begun_s) * 1e3


def _calibrated_demo(place: Place) -> Path:
    """The demo checkpoint with FP8 scales beside it: of the simulated arm where there is mujoco,
    else of synthetic observations."""
    folder = place.work / "demo"
    if folder.is_dir():
        return folder
    copy = place.work / f"demo.{os.getpid()}"
    shutil.copytree(DEMO, copy)
    if importlib.util.find_spec("mujoco") is not None:
        _command(
            "calibrate", "--checkpoint", str(copy), "--device", place.device, "--episodes", "2"
        )
    else:
        _command(
            "calibrate", "--checkpoint", str(copy), "--device", place.device,
            "--recorded", str(_synthetic_recording(copy, place.work / "synthetic.safetensors")),
        )  # fmt: skip
    copy.rename(folder)
    return folder


def _synthetic_recording(checkpoint: Path, path: Path) -> Path:
    from thor_policy_ros.evaluation.recorded_observations import write_observations
    from thor_policy_ros.model.named_configs import load_policy_config
    from thor_policy_ros.runtime.verification_inputs import synthetic_observations

    config = load_policy_config(checkpoint, None)
    # Every second one lacks a camera, and a recording has the same cameras throughout.
    write_observations(path, synthetic_observations(config, 16)[::2])
    return path


def _full_size(place: Place) -> Path:
    """A checkpoint folder with random weights, statistics of one, a tokenizer and FP8 scales."""
    from dataclasses import asdict

    import torch

    from thor_policy_ros.evaluation.bench_subject import (
        Subject,
        calibrate,
        write_random_weights,
    )
    from thor_policy_ros.model.named_configs import NAMED
    from thor_policy_ros.training.demo_tokenizer import write_demo_tokenizer

    if place.toy:
        return _calibrated_demo(place)
    folder, config = place.work / "full", NAMED[FULL]
    if (folder / "complete").is_file():
        return folder
    folder.mkdir(exist_ok=True)
    write_random_weights(folder, config.model, torch.device(place.device))
    calibrate(Subject(folder, "random", FULL, config.model, 2, 20), torch.device(place.device))
    write_demo_tokenizer(folder / "tokenizer.model")
    one = {"q01": -1.0, "q99": 1.0, "mean": 0.0, "std": 1.0}
    stats = {
        group: {name: [value] * dims for name, value in one.items()}
        for group, dims in (("state", config.state_dim), ("actions", config.action_dim))
    }
    path = folder / "assets" / config.asset_id / "norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"norm_stats": stats}))
    (folder / "complete").write_text(json.dumps(asdict(config.model)))
    return folder


def _command(*arguments: str) -> None:
    """`thor-policy`, in a process of its own; RuntimeError with what it said last."""
    command = [sys.executable, "-m", "thor_policy_ros.evaluation", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stdout + done.stderr)[-1500:]}")

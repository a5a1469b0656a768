"""Run a recorded episode through a backend, and compare actions and latency with the recording.

Each chunk is computed again from the observation that it was computed from, with its noise, its
denoise steps and its prefix: new where it was new, used again where it was used again, whatever the
backend's own reuse. Exit status 1 if an action differs by more than the tolerance. Frames that
depend on more than their inputs (chunks guided by the one before, vision tokens kept from an older
image) or whose inputs are not in the bag are counted and not compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table

from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.evaluation.bag import Bag, RecordedChunk, RecordedFrame
from thor_policy_ros.runtime.engine_difference import THRESHOLDS
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification import precision_of
from thor_policy_ros.types import F32, Observation, PrefixKV

STAGES = ("preprocess", "vision", "prefill", "denoise", "postprocess", "total")
SAME_TIME_S = 1e-6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy replay`."""
    parser.add_argument("bag", type=Path, help="folder that `thor-policy record` made")
    parser.add_argument("--backend", choices=sorted(BACKENDS), metavar="NAME",
                        help="default: as recorded")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, help="default: as recorded")
    parser.add_argument("--config", help="named policy, where the checkpoint does not say")
    parser.add_argument("--tokenizer", type=Path, help="where the checkpoint has none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as the device")
    parser.add_argument("--seed", type=int, help="of other noise than the recorded, counted up")
    parser.add_argument(
        "--tolerance", type=float, metavar="UNITS", help="largest difference of an action, robot "
        "units; default: what `thor-policy verify` allows the precision, by joint",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


@dataclass(frozen=True)
class ReplayedFrame:
    """actions: f32[H,A], robot units. ranges: f32[A], half the range of each action."""

    recorded: RecordedFrame
    chunk: RecordedChunk
    actions: F32
    ranges: F32
    timing_ms: Mapping[str, float]


class Replayer:
    """Follows the recording's decisions; one policy, one thread.

    seed: None takes the recorded noise. `skipped` counts frames that cannot be compared, by reason.
    """

    def __init__(self, policy: UnifiedPolicy, seed: int | None) -> None:
        self._policy = policy
        self._seed = seed
        self._prefix: PrefixKV | None = None
        self._state: F32 | None = None
        self._earlier: Observation | None = None
        self._done = 0
        self.skipped: Counter[str] = Counter()

    def frames(
        self, observed: Iterator[tuple[RecordedFrame, Observation | str]]
    ) -> Iterator[ReplayedFrame]:
        for frame, observation in observed:
            if isinstance(observation, str):
                self.skipped[observation] += 1
                self._forget()
                continue
            if frame.num_steps:
                found = self._step(frame, observation)
                if isinstance(found, str):
                    self.skipped[found] += 1
                else:
                    yield found

    def _forget(self) -> None:
        self._prefix = self._earlier = None

    def _step(self, frame: RecordedFrame, observation: Observation) -> ReplayedFrame | str:
        earlier, self._earlier = self._earlier, observation
        if frame.decision.startswith("refused"):
            self._forget()
            return "its chunk was refused"
        if "kept " in frame.decision:
            self._prefix = None
            return "vision tokens of an older image were kept"
        if frame.chunk is None:
            self._prefix = None
            return "its chunk is not in the bag"
        reused = frame.decision.startswith("reuse")
        if frame.decision.startswith("pipelined"):
            if earlier is None:
                return "the frame that its prefix was made in is not in the bag"
            observation = earlier
        if reused and self._prefix is None:
            return "the prefix that it used again is not in the bag"
        if not reused and abs(observation.stamp_s - frame.chunk.observed_at_s) > SAME_TIME_S:
            return "its chunk is of another observation"
        timing = self._timed_prefix(observation, reused)
        if frame.guided_rows:
            return "guided by the chunk before"
        return self._compute(frame, frame.chunk, timing)

    def _timed_prefix(self, observation: Observation, reused: bool) -> dict[str, float]:
        if reused:
            return {"preprocess": 0.0, "begun": time.perf_counter()}
        begun = time.perf_counter()
        inputs = self._policy.preprocess(observation)
        ready = time.perf_counter()
        self._prefix = self._policy.backend.prefill(inputs, observation.stamp_s)
        self._state = observation.state
        return {"preprocess": (ready - begun) * 1e3, "begun": begun}

    def _compute(
        self, frame: RecordedFrame, chunk: RecordedChunk, timing: dict[str, float]
    ) -> ReplayedFrame:
        assert self._prefix is not None and self._state is not None
        noise, begun = self._noise(frame), timing.pop("begun")
        normalised = self._policy.backend.denoise(self._prefix, noise, frame.num_steps)
        denoised = time.perf_counter()
        actions = self._policy.postprocess(normalised, self._state)
        done = time.perf_counter()
        stages = dict(self._policy.backend.stage_times_ms())
        if not timing["preprocess"]:
            stages["vision"] = stages["prefill"] = 0.0
        timing.update(stages, postprocess=(done - denoised) * 1e3, total=(done - begun) * 1e3)
        self._done += 1
        if actions.shape != chunk.actions.shape:
            raise ValueError(
                f"the recording has chunks of {chunk.actions.shape}, this checkpoint gives "
                f"{actions.shape}; name the recorded one with --checkpoint"
            )
        return ReplayedFrame(frame, chunk, actions, self._ranges(noise), timing)

    def _noise(self, frame: RecordedFrame) -> F32:
        seed = frame.seed if self._seed is None else self._seed + self._done
        model = self._policy.config.model
        shape = (model.action_horizon, model.action_dim)
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def _ranges(self, noise: F32) -> F32:
        """Half of what each command moves by while its normalised action goes from -1 to 1."""
        assert self._state is not None
        ones = np.ones_like(noise)
        high, low = (self._policy.postprocess(sign * ones, self._state) for sign in (1, -1))
        ranges: F32 = (np.abs(high - low) / 2).max(axis=0)
        return ranges


def run(arguments: argparse.Namespace) -> int:
    """Replay and print; 0 if every action is within the tolerance, else 1."""
    with Bag(arguments.bag) as bag, _threads(int(bag.parameters["cpu_threads"])):
        frames = bag.frames()
        backend = arguments.backend or str(bag.parameters["backend"])
        with _open(arguments, bag, backend) as policy:
            policy.warmup()
            replayer = Replayer(policy, arguments.seed)
            replayed = list(replayer.frames(bag.observations(frames)))
            if not replayed:
                raise ValueError(
                    f"{arguments.bag} holds no frame that can be compared: "
                    + ("; ".join(f"{n} x {why}" for why, n in replayer.skipped.items()) or "none")
                )
            facts: dict[str, Any] = {
                "bag": str(arguments.bag),
                "backend": backend,
                "recorded_backends": sorted({one.chunk.backend for one in replayed}),
                "device": str(getattr(policy.backend, "device", "")),
                "noise": "recorded" if arguments.seed is None else f"seed {arguments.seed}",
                "precision": precision_of(policy),
                "frames": len(frames),
                "compared": len(replayed),
                "not_compared": dict(replayer.skipped),
            }
    result = {**facts, **compare(replayed, facts["precision"], arguments.tolerance)}
    if arguments.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        _print(result)
    return 0 if result["ok"] else 1


@contextmanager
def _threads(recorded: int) -> Iterator[None]:
    """As many CPU threads as the node had (0: torch's choice): another split of a sum rounds
    otherwise, by 1e-7 rad."""
    before = torch.get_num_threads()
    torch.set_num_threads(recorded or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open(arguments: argparse.Namespace, bag: Bag, backend: str) -> UnifiedPolicy:
    values = bag.parameters
    if backend not in BACKENDS:
        raise ValueError(f"recorded with {backend!r}, which is not run here; name a --backend")
    return UnifiedPolicy(
        arguments.checkpoint or values["checkpoint"],
        backend,
        config=arguments.config or values["policy_config"] or None,
        tokenizer=arguments.tokenizer or values["tokenizer"] or None,
        device=arguments.device or (None if values["device"] == "auto" else values["device"]),
        dtype=arguments.dtype,
    )


def compare(
    replayed: Sequence[ReplayedFrame], precision: str, tolerance: float | None
) -> dict[str, Any]:
    """Differences by joint, the worst frame, and both sides' latency."""
    errors = np.stack([np.abs(one.actions - one.chunk.actions).max(axis=0) for one in replayed])
    errors = np.where(np.isfinite(errors), errors, np.finfo(np.float32).max)
    ranges = np.stack([one.ranges for one in replayed])
    share = THRESHOLDS[precision].range_error
    allowed = ranges * share if tolerance is None else np.full_like(ranges, tolerance)
    worst = int(np.argmax((errors - allowed).max(axis=1)))
    cosines = [_cosine(one.actions, one.chunk.actions) for one in replayed]
    names = replayed[0].chunk.joint_names
    joints = {
        name: {
            "max_abs_difference": float(errors[:, column].max()),
            "allowed": float(allowed[:, column].min()),
        }
        for column, name in enumerate(names)
    }
    return {
        "ok": bool((errors <= allowed).all()),
        "bit_equal": bool((errors == 0).all()),
        "joints": joints,
        "cosine": {"min": min(cosines), "median": float(np.median(cosines))},
        "worst_sequence": replayed[worst].recorded.sequence,
        "latency_ms": {stage: _latency(replayed, stage) for stage in STAGES},
    }


def _cosine(ours: F32, theirs: F32) -> float:
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    value = float(a @ b) / norm if norm > 0 else float(np.array_equal(a, b))
    return value if np.isfinite(value) else -1.0


def _latency(replayed: Sequence[ReplayedFrame], stage: str) -> dict[str, list[float] | None]:
    """p50, p95, p99 of the stage; of the recording None where its latencies are not in the bag."""
    ours = [one.timing_ms[stage] for one in replayed]
    theirs = [one.recorded.latency for one in replayed if one.recorded.latency]
    recorded = [float(figures[f"{stage}_ms"]) for figures in theirs]
    return {"replayed": _quantiles(ours), "recorded": _quantiles(recorded) if recorded else None}


def _quantiles(values: Sequence[float]) -> list[float]:
    return [round(float(one), 3) for one in np.percentile(values, (50, 95, 99))]


def _print(result: Mapping[str, Any]) -> None:
    console = Console()
    recorded = ", ".join(result["recorded_backends"])
    console.print(
        f"{result['backend']} ({result['precision']} on {result['device']}) against {recorded} as "
        f"recorded: {result['compared']} of {result['frames']} frames, noise: {result['noise']}",
        highlight=False,
    )
    for reason, count in result["not_compared"].items():
        console.print(f"  not compared: {count} x {reason}", highlight=False)
    right = {"justify": "right"}
    table = Table("joint", Column("max difference", **right), Column("allowed", **right))  # type: ignore[arg-type]
    for name, joint in result["joints"].items():
        table.add_row(name, f"{joint['max_abs_difference']:.3g}", f"{joint['allowed']:.3g}")
    console.print(table)
    table = Table("ms: p50 / p95 / p99", Column("recorded", **right), Column("replayed", **right))  # type: ignore[arg-type]
    for stage, sides in result["latency_ms"].items():
        table.add_row(stage, *(_three(sides[side]) for side in ("recorded", "replayed")))
    console.print(table)
    cosine = result["cosine"]
    console.print(f"cosine: smallest {cosine['min']:.9f}, median {cosine['median']:.9f}")
    if result["ok"]:
        console.print("[green]within the tolerance[/]" + (", bit for bit" * result["bit_equal"]))
    else:
        console.print(f"[red]BEYOND the tolerance[/], most in chunk {result['worst_sequence']}")


def _three(values: Sequence[float] | None) -> str:
    return "-" if values is None else " / ".join(f"{value:.1f}" for value in values)

"""Verify that a backend is the policy, against backend `pytorch` in float32.

Both get the same inputs and the same noise. Keys and values of every prefix layer and the
actions are compared by cosine, scale and largest error; the worst observation decides. Without
--recorded the observations are synthetic, the same for a seed. The reference is loaded, run and
freed before the backend is loaded. Exit status 0 only if every check passes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thor_policy_ros.backends.registry import BACKENDS
from thor_policy_ros.runtime.engine_difference import THRESHOLDS
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy
from thor_policy_ros.runtime.verification import (
    REFERENCE_BACKEND,
    REFERENCE_DTYPE,
    ReferenceFrame,
    reference_frames,
    verification_json,
    verify_frames,
    with_seconds,
)
from thor_policy_ros.runtime.verification_inputs import (
    engine_inputs,
    recorded_inputs,
    synthetic_observations,
)
from thor_policy_ros.types import Verification

DEMO_CHECKPOINT = Path("checkpoints/demo")


@dataclass(frozen=True)
class Options:
    """Which policy, and how it is loaded, as UnifiedPolicy takes it."""

    checkpoint: Path
    config: str | None
    tokenizer: Path | None
    device: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy verify`."""
    parser.add_argument("--backend", default="pytorch", choices=sorted(BACKENDS), metavar="NAME")
    parser.add_argument(
        "--checkpoint", type=Path, default=DEMO_CHECKPOINT, help="default: %(default)s"
    )
    parser.add_argument("--config", help="named policy, where the checkpoint does not say")
    parser.add_argument("--tokenizer", type=Path, help="where the checkpoint has none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as the device")
    parser.add_argument("--observations", type=int, default=6, metavar="N", help="default 6")
    parser.add_argument("--seed", type=int, default=0, help="of observations and noise")
    parser.add_argument(
        "--recorded", type=Path, metavar="DIR", help="use DIR/inputs.safetensors instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Verify and print; 0 if the backend is the policy, else 1."""
    options = Options(arguments.checkpoint, arguments.config, arguments.tokenizer, arguments.device)
    frames = _reference(options, arguments)
    result, facts = _verify(options, arguments, frames)
    if arguments.json:
        print(json.dumps({**facts, **verification_json(result)}, indent=2, allow_nan=False))
    else:
        _print_table(facts, result)
    return 0 if result.ok else 1


def _load(options: Options, backend: str, dtype: str | None) -> UnifiedPolicy:
    return UnifiedPolicy(
        options.checkpoint,
        backend,
        config=options.config,
        tokenizer=options.tokenizer,
        device=options.device,
        dtype=dtype,
    )


def _reference(options: Options, arguments: argparse.Namespace) -> tuple[ReferenceFrame, ...]:
    with _load(options, REFERENCE_BACKEND, REFERENCE_DTYPE) as reference:
        if arguments.recorded is not None:
            inputs = recorded_inputs(arguments.recorded, reference.config)
        else:
            seen = synthetic_observations(reference.config, arguments.observations, arguments.seed)
            inputs = engine_inputs(reference.preprocess, reference.config, seen, arguments.seed)
        return reference_frames(reference, inputs)


def _verify(
    options: Options, arguments: argparse.Namespace, frames: tuple[ReferenceFrame, ...]
) -> tuple[Verification, dict[str, Any]]:
    """The result, and the facts that it holds for."""
    with _load(options, arguments.backend, arguments.dtype) as policy:
        policy.warmup()
        begun_s = time.perf_counter()
        result = with_seconds(verify_frames(policy, frames), time.perf_counter() - begun_s)
        facts = {
            "checkpoint": str(options.checkpoint),
            "device": str(getattr(policy.backend, "device", options.device or "")),
            "dtype": str(getattr(policy.backend, "dtype", "")).removeprefix("torch."),
            "thresholds": asdict(THRESHOLDS[result.precision]),
        }
    return result, facts


def _print_table(facts: dict[str, Any], result: Verification) -> None:
    console = Console()
    console.print(
        f"backend {result.backend} ({facts['dtype']} on {facts['device']}) against float32"
        f" pytorch: {facts['checkpoint']}, {result.observations} observations"
    )
    table = Table("layer", "keys: cosine", "values: cosine")
    pairs = zip(result.keys_cosine, result.values_cosine, strict=True)
    for layer, (keys, values) in enumerate(pairs):
        table.add_row(str(layer), f"{keys:.9f}", f"{values:.9f}")
    console.print(table)
    console.print(
        f"actions: cosine {result.actions_cosine:.9f}, largest error {result.max_abs_error:.3g}"
        f" (robot units); smallest cosine {result.cosine:.9f}, on {result.worst}"
    )
    bounds = THRESHOLDS[result.precision]
    colour, verdict = ("green", "verified") if result.ok else ("red", f"REFUSED: {result.reason}")
    console.print(
        f"[{colour}]{verdict}[/] (bounds for {bounds.precision}: cosine {bounds.cosine:g})"
    )

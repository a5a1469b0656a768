"""How far backends are from float32, on the same inputs and noise: the worst of N.

Keys, values, actions and the flow (actions less noise) of random images, prompts and noise;
the float32 reference is the `pytorch` backend on the same device. Cosine of keys and values is
that of the worst layer. `thor-policy verify` is the check that decides; this is the measurement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from thor_policy_ros.backends.registry import create_backend, spec_of
from thor_policy_ros.evaluation.bench_subject import (
    REFERENCE,
    Subject,
    add_subject_arguments,
    backend_names,
    device_and_dtype,
    opened_subject,
    positive,
)
from thor_policy_ros.evaluation.result_files import (
    command_line,
    figure_table,
    machine_of,
    versions,
    write_json,
)
from thor_policy_ros.runtime.engine_difference import cosine
from thor_policy_ros.types import F32, Backend, PrefixKV


@dataclass(frozen=True)
class Outputs:
    """Of one frame: keys, values f32[layers,G,P,D] of valid tokens; actions, flow f32[H,32]."""

    keys: F32
    values: F32
    actions: F32
    flow: F32


def outputs(backend: Backend, subject: Subject, num_steps: int, seed: int) -> Outputs:
    """What `backend` makes of the frame that `seed` stands for."""
    noise = subject.noise(seed)
    prefix = backend.prefill(subject.inputs(seed), 0.0)
    actions = backend.denoise(prefix, noise, num_steps)
    keys, values = (_valid_rows(array, prefix) for array in (prefix.keys, prefix.values))
    return Outputs(keys, values, actions, actions - noise)


def _valid_rows(array: Any, prefix: PrefixKV) -> F32:
    """A copy: [layers,1,G,P,D] of the device -> f32[layers,G,valid P,D]."""
    rows: F32 = array[:, 0][:, :, prefix.pad_mask[0]].float().cpu().numpy()
    return rows.copy()


def worst_difference(ours: list[Outputs], reference: list[Outputs]) -> dict[str, dict[str, float]]:
    """Array -> smallest cosine and largest absolute error over frames (and layers)."""
    found = {}
    for name in ("keys", "values", "actions", "flow"):
        pairs = [
            (a, b)
            for x, y in zip(ours, reference, strict=True)
            for a, b in _by_layer(name, getattr(x, name), getattr(y, name))
        ]
        found[name] = {
            "cosine": min(cosine(a, b) for a, b in pairs),
            "max_abs_error": max(float(np.abs(a - b).max()) for a, b in pairs),
        }
    return found


def _by_layer(name: str, a: F32, b: F32) -> Iterator[tuple[F32, F32]]:
    if a.shape != b.shape:
        raise ValueError(f"{name}: wanted shape {b.shape} like the reference's, got {a.shape}")
    if name in ("keys", "values"):
        yield from zip(a, b, strict=True)
    else:
        yield a, b


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy bench precision`."""
    add_subject_arguments(parser)
    parser.add_argument("--frames", type=positive, default=10, help="compared (default: 10)")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write."""
    report = precision_report(arguments)
    if arguments.json != "-":
        Console().print(report_table(report))
    write_json(report, arguments.json)
    return 0


def precision_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command, machine, versions, settings and each backend's worst, as plain JSON data."""
    names = backend_names(arguments)
    device, dtype = device_and_dtype(arguments)
    dtypes = {name: str(dtype).removeprefix("torch.") for name in names}

    def made_by(name: str, kind: str) -> list[Outputs]:
        with closing(create_backend(name, subject.folder, subject.config, device, kind)) as backend:
            backend.warmup()
            seeds = range(arguments.frames)
            return [outputs(backend, subject, arguments.num_steps, seed) for seed in seeds]

    with opened_subject(arguments) as subject:
        reference = made_by(REFERENCE, "float32")
        found = {name: worst_difference(made_by(name, dtypes[name]), reference) for name in names}
    return {
        "kind": "precision",
        "command": command_line(),
        "machine": machine_of(device),
        "versions": versions(),
        "settings": {
            "config": subject.config_name,
            "weights": subject.weights,
            "cameras": subject.cameras,
            "prompt_tokens": subject.prompt_tokens,
            "num_steps": arguments.num_steps,
            "frames": arguments.frames,
            "inputs": "random images, tokens and noise",
        },
        "reference": f"{REFERENCE}, float32",
        "backends": [
            {"backend": asdict(spec_of(name)), "dtype": dtypes[name], "worst": worst}
            for name, worst in found.items()
        ],
    }


def report_table(report: Mapping[str, Any]) -> Table:
    """Backends as rows; cosine and largest error of each array as columns."""
    settings = report["settings"]
    arrays = ("keys", "values", "actions", "flow")
    table = figure_table(
        ("backend", ""),
        arrays,
        f"{settings['config']} on {report['machine']['device']},"
        f" {report['backends'][0]['dtype']}, against"
        f" {report['reference']}: worst of {settings['frames']} frames",
    )
    for entry in report["backends"]:
        worst = entry["worst"]
        cosines = (f"{worst[name]['cosine']:.7f}" for name in arrays)
        errors = (f"{worst[name]['max_abs_error']:.2e}" for name in arrays)
        table.add_row(entry["backend"]["name"], "cosine", *cosines)
        table.add_row("", "largest error", *errors)
    return table
